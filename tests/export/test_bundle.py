"""Bundles of every family say what their models say; damaged or dishonest ones are refused in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.models import test_open_clip_models as open_clip_kinds
from tests.models import test_transformers_models as transformers_kinds

from clipette.errors import BadImageError, ConfigError, ModelError, UnsupportedError
from clipette.evaluate.wording import fitting_templates
from clipette.evaluate.zero_shot import class_vectors
from clipette.export import bundle as writing
from clipette.export.bundle import export_bundle
from clipette.export.classes import add_classes, with_classes
from clipette.export.parity import PARITY, Parity, pictures
from clipette.io import digest
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.open_clip_models import load_open_clip
from clipette.models.rebuild import table_text_tower
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.models.transformers_models import load_transformers
from clipette.resolve import resolve
from clipette.runtime import load_bundle, open_bundle
from clipette.types import Sample

tokenizer_folder = open_clip_kinds.tokenizer_folder


def encoder_of(model: DualEncoder) -> TorchEncoder:
    return TorchEncoder(model, name="tried", device="cpu")


@pytest.mark.parametrize("name", list(open_clip_kinds.FAMILIES))
def test_open_clips_families(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    how = {"resize_mode": open_clip_kinds.PREPROCESS.get(name, "shortest")}
    folder = open_clip_kinds.write_folder(tmp_path / "m", open_clip_kinds.FAMILIES[name], how, tokenizer_folder)
    open_clip_kinds.peer(folder)
    found = export_bundle(encoder_of(load_open_clip(f"local-dir:{folder}")), tmp_path / "b")
    assert found.parity.images is not None
    assert found.parity.texts is not None
    assert found.parity.worst <= PARITY


@pytest.mark.parametrize("name", list(transformers_kinds.FAMILIES))
def test_transformers_families(name: str, tmp_path: Path) -> None:
    build, _, length = transformers_kinds.FAMILIES[name]
    folder = transformers_kinds.write(tmp_path / "m", *build(), length)
    found = export_bundle(encoder_of(load_transformers(str(folder))), tmp_path / "b")
    assert found.parity.worst <= PARITY
    assert found.parity.texts is not None


def student() -> DualEncoder:
    spec = {
        "dim": 16,
        "image": {"kind": "timm", "name": "test_efficientnet", "size": 32, "head": {"kind": "residual", "hidden": 24}},
        "text": {"kind": "small", "width": 32, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300},
    }
    captions = ["a red star on a blue sky", "two dotted rings"]
    return build_model(ModelSpec.model_validate(spec), captions=captions).eval()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TorchEncoder]:
    """One small student's bundle, for tests that change copies of it."""
    encoder = TorchEncoder(student(), name="star", space="s" * 32, device="cpu")
    return export_bundle(encoder, tmp_path_factory.mktemp("bundle") / "b", card={"teacher": "t"}).path, encoder


@pytest.fixture
def bundle(kept: tuple[Path, TorchEncoder], tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept[0], tmp_path / "b"))


def test_an_encoder_like_any_other(kept: tuple[Path, TorchEncoder], tmp_path: Path) -> None:
    path, model = kept
    ours = resolve(str(path))
    assert (ours.space, ours.dim, ours.name) == ("s" * 32, 16, "b")
    assert ours.logit_scale == pytest.approx(model.logit_scale)
    assert ours.logit_bias == model.logit_bias
    images = pictures(5)
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    given = [images[0], tmp_path / "1.png", (tmp_path / "2.png").read_bytes(), str(tmp_path / "3.png")]
    np.testing.assert_allclose(ours.encode_images(given, batch_size=3), model.encode_images(given), atol=PARITY)
    texts = [f"a star {'and a ring ' * i}" for i in range(9)]
    np.testing.assert_allclose(ours.encode_texts(texts, batch_size=2), model.encode_texts(texts), atol=PARITY)
    assert ours.encode_images([]).shape == ours.encode_texts([]).shape == (0, 16)
    with pytest.raises(BadImageError, match=r"absent\.png"):
        ours.encode_images([tmp_path / "absent.png"])
    encoded = ours.encode_samples([Sample("text only"), Sample("also")])
    assert [failure.key for failure in encoded.failures] == ["text only", "also"]
    assert "teacher" in (path / "card.md").read_text()


def test_one_side_alone(tmp_path: Path) -> None:
    whole = student()
    image = load_bundle(export_bundle(encoder_of(DualEncoder(whole.image, None)), tmp_path / "i").path)
    assert not image.can_encode_text
    with pytest.raises(UnsupportedError, match="no text side"):
        image.encode_texts(["a"])
    texts = ("a red star", "a ring")
    vectors = encoder_of(whole).encode_texts(texts)
    tower = table_text_tower(texts, whole.logit_scale.new_tensor(vectors) * 3)
    stored = load_bundle(export_bundle(encoder_of(DualEncoder(whole.image, tower)), tmp_path / "c").path)
    np.testing.assert_allclose(stored.encode_texts(["a ring", "a red star"]), vectors[::-1], atol=1e-6)
    with pytest.raises(UnsupportedError, match="'a cat' is not among"):
        stored.encode_texts(["a cat"])


def test_class_bundles_grow_by_classes(kept: tuple[Path, TorchEncoder], tmp_path: Path) -> None:
    _, model = kept
    path = tmp_path / "pets"
    export_bundle(with_classes(model, ["red star", "ring"], "plain"), path, templates="plain")
    ours = load_bundle(path)
    assert ours.space == model.space
    assert "text.onnx" not in ours.bundle.files
    np.testing.assert_allclose(ours.encode_texts(["ring"]), class_vectors(model, ["ring"], "plain"), atol=1e-5)
    assert fitting_templates([ours], ["ring", "red star"]) == "none"
    assert add_classes(path, model, ["a blue sky"]) == ("red star", "ring", "a blue sky")
    grown = load_bundle(path)
    np.testing.assert_array_equal(grown.encode_texts(["ring"]), ours.encode_texts(["ring"]))
    expected = class_vectors(model, ["a blue sky"], "plain")
    np.testing.assert_allclose(grown.encode_texts(["a blue sky"]), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="has the class 'ring' already"):
        add_classes(path, model, ["ring"])
    with pytest.raises(ConfigError, match="given twice"):
        with_classes(model, ["ring", "ring"], "plain")
    other = TorchEncoder(model.model, name="other", space="o" * 32, device="cpu")
    with pytest.raises(ModelError, match="cannot be compared"):
        add_classes(path, other, ["x"])
    with pytest.raises(UnsupportedError, match="no class bundle"):
        add_classes(kept[0], model, ["x"])


def test_needs_no_torch_and_starts_fast(kept: tuple[Path, TorchEncoder]) -> None:
    code = """
import sys, time
sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "open_clip", "transformers"]))  # import fails
begun = time.perf_counter()
import clipette.runtime
print(time.perf_counter() - begun)
import clipette
encoder = clipette.load(sys.argv[1])
pixels = __import__("numpy").zeros((1, 3, 32, 32), "f")
print(encoder.encode_texts(["a red star"]).shape, encoder.encode_pixels(pixels).shape)
"""
    done = subprocess.run([sys.executable, "-c", code, kept[0]], capture_output=True, text=True, check=True)
    seconds, shapes = done.stdout.splitlines()
    assert shapes == "(1, 16) (1, 16)"
    assert float(seconds) < 2.0, "about half a second on a quiet machine"


def changed(bundle: Path, **facts: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def reseal(bundle: Path, name: str, data: bytes) -> None:
    """What somebody would do who wants a changed file to be believed."""
    (bundle / name).write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    changed(bundle, files={**files, name: {"size": len(data), "digest": digest(data)}})


def truncate(bundle: Path) -> None:
    path = bundle / "image.onnx"
    path.write_bytes(path.read_bytes()[:-10])


def tamper(bundle: Path) -> None:
    path = bundle / "text.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def point_outside(bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(b"x")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    changed(bundle, files={**files, "../secret": {"size": 1, "digest": digest(b"x")}})


def external(bundle: Path) -> None:
    graph = onnx.load(bundle / "image.onnx")
    onnx.external_data_helper.set_external_data(graph.graph.initializer[0], location="/etc/hostname")
    graph.graph.initializer[0].ClearField("raw_data")
    graph.graph.initializer[0].data_location = TensorProto.EXTERNAL
    reseal(bundle, "image.onnx", graph.SerializeToString())


def external_in_a_subgraph(bundle: Path) -> None:
    graph = onnx.load(bundle / "image.onnx")
    hidden = helper.make_tensor("w", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    onnx.external_data_helper.set_external_data(hidden, location="../../secret")
    hidden.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=hidden)], "g", [], [])
    graph.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    reseal(bundle, "image.onnx", graph.SerializeToString())


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"image\.onnx: not the file that was exported"),
    "tampered": (tamper, r"text\.onnx: not the file that was exported"),
    "missing": (lambda b: (b / "tokenizer" / "words.json").unlink(), r"words\.json: missing"),
    "outside": (point_outside, "lies outside the bundle: refused"),
    "newer format": (lambda b: changed(b, version=99), "version 99"),
    "another format": (lambda b: changed(b, format="zip"), "not a bundle of Clipette"),
    "newer operators": (lambda b: changed(b, opset=99), "operator set 99"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no bundle here"),
    "broken manifest": (lambda b: (b / "manifest.json").write_text("{"), "damaged"),
    "half a manifest": (
        lambda b: (b / "manifest.json").write_text('{"format": "clipette-bundle", "version": 1}'),
        "say",
    ),
    "external data": (external, "keeps weights in other files: refused"),
    "external data, hidden": (external_in_a_subgraph, "keeps weights in other files: refused"),
    "no graph": (lambda b: reseal(b, "image.onnx", b"\x3a\xff\xff\xff"), "not an ONNX graph"),
    "another graph": (lambda b: reseal(b, "image.onnx", b""), "onnxruntime cannot run this graph"),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks(name: str, bundle: Path) -> None:
    attack, words = ATTACKS[name]
    attack(bundle)
    with pytest.raises(ModelError, match=words):
        load_bundle(bundle)


def test_nothing_is_written_over_strangers_or_in_part(
    bundle: Path, kept: tuple[Path, TorchEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "photos"
    stranger.mkdir()
    with pytest.raises(ConfigError, match="is there and no bundle"):
        export_bundle(kept[1], stranger)
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    monkeypatch.setattr(writing, "measure_parity", lambda *_: Parity(0.0, 0.3))
    with pytest.raises(UnsupportedError, match=r"up to 3\.0e-01"):
        export_bundle(kept[1], bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "photos"], "no half-written folder stays"
    monkeypatch.undo()
    export_bundle(kept[1], bundle)
    assert open_bundle(bundle).manifest["card"] == {}
