"""Smaller bundles: what is kept, what is refused, and the hazards that the gate is there for."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.kinds import student
from tests.export.pictures import Pixels, captioned

from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.errors import ConfigError, GateError, UnsupportedError
from clipette.export import smaller
from clipette.export.bundle import export_bundle
from clipette.export.classes import with_classes
from clipette.export.gate import Budget, Quality
from clipette.export.nncf_int8 import Nncf
from clipette.export.quantize import Static, dynamic, half, median_cosine, runs_of_layers, unshared, vectors
from clipette.export.smaller import TEXTS, quantize
from clipette.models.inference import TorchEncoder
from clipette.runtime import load_bundle, sessions

needs_nncf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nncf", "openvino")), reason="NNCF is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    def draw(generator: np.random.Generator) -> Pixels:
        colour = generator.integers(0, 256, 3)
        return ((generator.integers(0, 60, (40, 40, 3)) + colour) % 256).astype(np.uint8)

    return load_data(captioned(tmp_path_factory.mktemp("pictures"), 24, draw))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = TorchEncoder(student(), name="star", device="cpu")
    return export_bundle(encoder, tmp_path_factory.mktemp("bundle") / "b").path


def graph_of(bundle: Path, side: str) -> bytes:
    return load_bundle(bundle).bundle.files[f"{side}.onnx"]


def shared_weight() -> onnx.ModelProto:
    """Two products by one tensor, as PyTorch's exporter leaves two equal layers."""
    weight = np.random.default_rng(0).normal(0, 0.2, (16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["input_ids", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "w"], ["vectors"], "second"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in ("input_ids", "vectors")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_shared_weights_survive() -> None:
    model = shared_weight()
    rows = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)
    alone = unshared(model)
    assert len(alone.graph.initializer) == 2
    assert alone.graph.node[0].input[1] != alone.graph.node[1].input[1]
    batches = [{"input_ids": rows}]
    before = vectors(model.SerializeToString(), batches)
    np.testing.assert_array_equal(vectors(alone.SerializeToString(), batches), before)
    after = vectors(dynamic(model.SerializeToString()), batches)
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert np.median(cosines) > 0.99


def test_runs_cover_the_graph_once_and_in_order(bundle: Path) -> None:
    model = onnx.load_from_string(graph_of(bundle, "image"))
    runs = runs_of_layers(model, 4)
    assert len(runs) == 4
    assert [name for run in runs for name in run] == [node.name for node in model.graph.node]
    assert runs_of_layers(helper.make_model(helper.make_graph([], "g", [], []))) == []


def test_what_is_kept_is_left_alone(bundle: Path) -> None:
    graph = graph_of(bundle, "image")
    pixels = np.random.default_rng(0).normal(size=(12, 3, 32, 32)).astype(np.float32)
    batches = [{"pixels": pixels[:6]}, {"pixels": pixels[6:]}]
    static = Static(graph, batches)
    every = [node.name for node in onnx.load_from_string(graph).graph.node]
    np.testing.assert_allclose(vectors(static(every), batches), vectors(graph, batches), atol=1e-6)
    eight = static()
    assert len(eight) < len(graph)
    assert 0.9 < median_cosine(vectors(eight, batches), vectors(graph, batches)) < 1
    with pytest.raises(UnsupportedError, match="images to calibrate"):
        Static(graph, [])


def weights_size(graph: bytes) -> int:
    return sum(len(each.raw_data) for each in onnx.load_from_string(graph).graph.initializer)


def test_half_is_half_the_size_and_says_the_same(bundle: Path) -> None:
    model = load_bundle(bundle)
    graph = graph_of(bundle, "text")
    tokens = model.tokenizer(["a red star", "two dotted rings"])  # type: ignore[misc]
    small = half(graph)
    # Whole numbers stay as they are, and of a graph this small the nodes are the greater part.
    assert weights_size(small) < 0.55 * weights_size(graph)
    assert len(small) < len(graph)
    assert median_cosine(vectors(small, [tokens]), vectors(graph, [tokens])) > 0.9999


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_smaller_bundle_says_what_it_lost(bundle: Path, data: Dataset, tmp_path: Path) -> None:
    found = quantize(bundle, data, tmp_path / "q", kept=0, budget=Budget(cosine=0.9, loss=1.0))
    assert found.bytes < found.bytes_before
    assert found.quality.figure == "mean_recall"
    assert found.quality.cosine_texts is not None
    made = load_bundle(tmp_path / "q")
    assert made.space == load_bundle(bundle).space
    assert made.bundle.manifest["precision"] == "int8, 0 of 10 runs of layers kept, texts fp16"
    assert made.bundle.manifest["gate"]["cosine_images"] == found.quality.cosine_images
    assert made.bundle.manifest["engine"] == "onnxruntime"
    assert found.bytes == sum(len(data) for data in made.bundle.files.values())
    assert "int8" in (tmp_path / "q" / "card.md").read_text()
    with pytest.raises(ConfigError, match="int8, 0 of 10 runs of layers kept, texts fp16 already"):
        quantize(tmp_path / "q", data, tmp_path / "again")
    again = quantize(bundle, data, tmp_path / "h", precision="fp16")
    assert again.setting == "fp16"
    assert again.quality.cosine_images > 0.9999


def test_a_text_is_the_same_alone_and_in_company(bundle: Path, data: Dataset, tmp_path: Path) -> None:
    """Ranges that are taken as they come are taken over the whole batch."""
    budget = Budget(cosine=0.5, loss=1.0)
    captions = [caption for sample in data.samples for caption in sample.captions]
    apart = {}
    for texts in ("fp16", "int8"):
        quantize(bundle, data, tmp_path / texts, kept=0, budget=budget, texts=TEXTS[texts])
        made = load_bundle(tmp_path / texts)
        alone = np.concatenate([made.encode_texts([caption]) for caption in captions])
        apart[texts] = np.abs(alone - made.encode_texts(captions)).max()
    assert apart["fp16"] < 1e-5 < apart["int8"]


def test_a_class_bundle_is_judged_by_its_images_where_it_knows_no_text_of_the_data(
    data: Dataset, tmp_path: Path
) -> None:
    encoder = TorchEncoder(student(), name="star", device="cpu")
    export_bundle(with_classes(encoder, ["ring", "star"], "plain"), tmp_path / "classes", templates="plain")
    found = quantize(tmp_path / "classes", data, tmp_path / "q", precision="fp16")
    assert (found.quality.figure, found.quality.cosine_texts) == (None, None)
    assert found.quality.cosine_images > 0.9999


def test_a_broken_quantization_is_refused_and_milder_ones_are_tried(
    bundle: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    honest = smaller._Graphs.__call__

    def broken(self: smaller._Graphs, kept: int) -> dict[str, bytes]:
        asked.append(kept)
        graphs = honest(self, kept)
        if kept < 4:
            model = onnx.load_from_string(graphs["image.onnx"])
            for weight in model.graph.initializer:
                # The head's rows in another order, in whatever precision it was left.
                if "tower.head" in weight.name and len(weight.raw_data) >= 64:
                    middle = len(weight.raw_data) // 2
                    weight.raw_data = weight.raw_data[middle:] + weight.raw_data[:middle]
            graphs["image.onnx"] = model.SerializeToString()
        return graphs

    monkeypatch.setattr(smaller._Graphs, "__call__", broken)
    out = tmp_path / "q"
    with pytest.raises(GateError, match=r"(?s)1 of 10 runs.*median cosine of images.*--milder"):
        quantize(bundle, data, out, budget=Budget(cosine=0.9, loss=1.0))
    assert asked == [1]
    assert not out.exists()
    before = contents(bundle)
    found = quantize(bundle, data, out, milder=True, budget=Budget(cosine=0.9, loss=1.0))
    assert asked == [1, 1, 2, 4]
    assert found.setting == "int8, 4 of 10 runs of layers kept, texts fp16"
    assert contents(bundle) == before
    with pytest.raises(GateError):
        quantize(bundle, data, out, kept=0, budget=Budget(cosine=0.9, loss=1.0))
    assert load_bundle(out).bundle.manifest["precision"] == found.setting, "a refused bundle replaces nothing"


@needs_nncf
def test_nncf_quantizes_both_towers_for_openvino(bundle: Path, data: Dataset, tmp_path: Path) -> None:
    budget = Budget(cosine=0.8, loss=1.0)
    found = quantize(bundle, data, tmp_path / "q", precision="nncf", kept=0, budget=budget)
    assert found.bytes < found.bytes_before
    made = load_bundle(tmp_path / "q")
    assert made.bundle.manifest["engine"] == "openvino"
    for file in ("image.onnx", "text.onnx"):
        kinds = {node.op_type for node in onnx.load_from_string(made.bundle.files[file]).graph.node}
        assert "QuantizeLinear" in kinds, file
    # It runs on onnxruntime too.
    texts = ["a red star", "two dotted rings"]
    other = load_bundle(tmp_path / "q", engine="onnxruntime")
    assert median_cosine(other.encode_texts(texts), made.encode_texts(texts)) > 0.95


def test_nncf_is_an_extra(bundle: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_installed", lambda name: name == "onnxruntime")
    with pytest.raises(UnsupportedError, match=r"clipette\[openvino\]"):
        quantize(bundle, data, tmp_path / "q", precision="nncf")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UnsupportedError, match=r"clipette\[openvino\]"):
        Nncf(graph_of(bundle, "image"), [])


def test_the_budget() -> None:
    quality = Quality(0.995, 0.98, "mean_recall", 0.5, 0.49)
    assert quality.loss == pytest.approx(0.02)
    assert quality.faults(Budget(0.97, 0.03)) == []
    assert quality.faults(Budget()) == [
        "median cosine of texts 0.9800 < 0.99",
        "mean_recall falls from 0.5000 to 0.4900, 2.0% > 1.0%",
    ]
    assert Quality(float("nan"), None, None, None, None).faults(Budget()), "what is not a number is no pass"


def test_settings_that_do_not_exist(bundle: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kept: 3"):
        quantize(bundle, data, tmp_path / "q", kept=3)
    texts = Dataset("none", tuple(data.samples[:0]))
    with pytest.raises(ConfigError, match="captions or class names"):
        smaller._Graphs(load_bundle(bundle), texts, "int8")._tokens()
    with pytest.raises(ConfigError, match="this is the bundle that is to be made smaller"):
        quantize(bundle, data, bundle)
