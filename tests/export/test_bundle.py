"""Bundles of every family say what their models say; damaged or dishonest ones are refused in words."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tests.export.kinds import KINDS, student

from clipette.adapt.packed import PACKED
from clipette.errors import BadImageError, ConfigError, DataError, ModelError, UnsupportedError, UserError
from clipette.evaluate.protocol import FILE as TRAINED_ON
from clipette.evaluate.protocol import TrainedOn, read_trained_on
from clipette.evaluate.wording import fitting_templates
from clipette.evaluate.zero_shot import class_vectors
from clipette.export import bundle as writing
from clipette.export.bundle import export_bundle
from clipette.export.classes import add_classes, with_classes
from clipette.export.graphs import pads_behind_the_end
from clipette.export.parity import PARITY, Parity, pictures
from clipette.io import digest
from clipette.measuring import classify
from clipette.models.core import Blueprint, DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.prompted_text import KnownTokenizer
from clipette.models.rebuild import table_text_tower
from clipette.resolve import resolve
from clipette.runtime import load_bundle, open_bundle
from clipette.types import Sample


def encoder_of(model: DualEncoder) -> TorchEncoder:
    return TorchEncoder(model, name="tried", device="cpu")


# One of each way into a graph: an export takes ten seconds, and `make test-bench` and `make bench-export` have all.
EVERY_TIME = {
    "open_clip, vit",
    "student, pruned",
}


@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.bench) for name in KINDS]
)
def test_every_kind_says_what_its_model_says(name: str, tmp_path: Path) -> None:
    found = export_bundle(encoder_of(KINDS[name](tmp_path)), tmp_path / "b")
    assert found.parity.images is not None
    assert found.parity.texts is not None
    assert found.parity.worst <= PARITY


def test_a_tokenizer_that_reads_otherwise_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = writing.bundled_tokenizer

    def shorter(tokenizer: Any) -> Any:
        settings, files = honest(tokenizer)
        return {**settings, "cleaning": "whitespace"}, files

    monkeypatch.setattr(writing, "bundled_tokenizer", shorter)
    with pytest.raises(UnsupportedError, match="strings otherwise than the model's"):
        export_bundle(encoder_of(KINDS["student, clip's tokens"](tmp_path)), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


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
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    assert {each["label"] for each in classify(str(path), tmp_path / "red.png")["scores"]} == {
        "red star",
        "ring",
        "a blue sky",
    }
    with pytest.raises(ConfigError, match="has the class 'ring' already"):
        add_classes(path, model, ["ring"])
    with pytest.raises(ConfigError, match="given twice"):
        with_classes(model, ["ring", "ring"], "plain")
    other = TorchEncoder(model.model, name="other", space="o" * 32, device="cpu")
    with pytest.raises(ModelError, match="cannot be compared"):
        add_classes(path, other, ["x"])
    with pytest.raises(UnsupportedError, match="no class bundle"):
        add_classes(kept[0], model, ["x"])


ROOMS = ("runtime", "index", "serve")


@pytest.mark.parametrize("room", ROOMS)
def test_starts_fast_without_torch(room: str) -> None:
    code = """
import importlib, sys, time
sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "open_clip", "transformers"]))  # import fails
importlib.import_module(sys.argv[1])
print(time.process_time())
"""
    command = [sys.executable, "-c", code, f"clipette.{room}"]
    # Processor time since the interpreter began, of the best of three: other work on the machine is not counted.
    seconds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 1.0


def test_works_without_torch(kept: tuple[Path, TorchEncoder]) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "open_clip", "transformers"]))  # import fails
import clipette
from PIL import Image
encoder = clipette.load(sys.argv[1])
print(encoder.encode_texts(["a red star"]).shape, encoder.encode_images([Image.new("RGB", (50, 40))]).shape)
print(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module is None}))
"""
    done = subprocess.run([sys.executable, "-c", code, kept[0]], capture_output=True, text=True, check=True)
    shapes, blocked = done.stdout.splitlines()
    assert shapes == "(1, 16) (1, 16)"
    assert blocked == "['open_clip', 'timm', 'torch', 'torchvision', 'transformers']", "still blocked at the end"


def test_says_what_it_was_trained_on(kept: tuple[Path, TorchEncoder], tmp_path: Path) -> None:
    places = tuple(range(0, 3 * writing.MOST_PLACES, 2))
    seen = TrainedOn(("red star", "ring"), places, 2**64, ("fingerprint",))
    whole = export_bundle(kept[1], tmp_path / "b", trained_on=seen)
    found = read_trained_on(whole.path)
    assert found is not None
    assert found.classes == seen.classes
    assert found.fingerprints == seen.fingerprints
    assert found.places == places[: writing.MOST_PLACES]
    assert found.reach == places[writing.MOST_PLACES - 1], "it knows up to where it knows"
    few = TrainedOn((), (1, 2), 2**64, ())
    assert few.fewer(2) == few
    assert read_trained_on(kept[0]) is None
    # It is one of the bundle's files: checked, and passed on.
    assert TRAINED_ON in load_bundle(whole.path).bundle.files
    (whole.path / TRAINED_ON).write_text("{}")
    with pytest.raises(ModelError, match="not the file that was exported"):
        load_bundle(whole.path)


def changed(bundle: Path, **facts: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def other_mean(bundle: Path, mean: float = 9.0) -> None:
    """In the manifest alone."""
    image = json.loads((bundle / "manifest.json").read_text())["image"]
    changed(bundle, image={**image, "preprocess": {**image["preprocess"], "mean": [mean] * 3}})


def preprocessed(bundle: Path, **settings: object) -> None:
    """In the manifest and in its file."""
    image = json.loads((bundle / "manifest.json").read_text())["image"]
    settings = {**image["preprocess"], **settings}
    changed(bundle, image={**image, "preprocess": settings})
    reseal(bundle, "preprocess.json", json.dumps(settings).encode())


def piped(bundle: Path) -> None:
    path = bundle / "tokenizer" / "words.json"
    path.unlink()
    os.mkfifo(path)


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


def renamed_input(bundle: Path) -> None:
    graph = onnx.load(bundle / "image.onnx")
    graph.graph.input[0].name = "picture"
    for node in graph.graph.node:
        node.input[:] = ["picture" if name == "pixels" else name for name in node.input]
    reseal(bundle, "image.onnx", graph.SerializeToString())


def newer_graph(bundle: Path) -> None:
    """The manifest says an old operator set, the graph has a new one."""
    graph = onnx.load(bundle / "image.onnx")
    graph.opset_import[0].version = 999
    reseal(bundle, "image.onnx", graph.SerializeToString())


def linked(bundle: Path) -> None:
    """The same bytes, but in a file outside."""
    secret = bundle.parent / "secret"
    shutil.move(bundle / "text.onnx", secret)
    (bundle / "text.onnx").symlink_to(secret)


def npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def numbered_classes(bundle: Path) -> None:
    shifted_classes(bundle, np.eye(2, 16))
    reseal(bundle, "classes.json", b"[1, 2]")


def shifted_classes(bundle: Path, vectors: npt.NDArray[Any] = np.eye(2, 16)) -> None:
    """More names than vectors."""
    changed(bundle, text={"file": "classes.npy", "tokenizer": {"kind": "stored"}})
    reseal(bundle, "classes.json", b'["a", "b", "c"]')
    reseal(bundle, "classes.npy", npy(vectors))


def pickled_classes(bundle: Path) -> None:
    """A table of Python objects, which reading would run."""
    shifted_classes(bundle)
    reseal(bundle, "classes.npy", npy(np.array([{"a": 1}] * 3, dtype=object)))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"image\.onnx: not the file that was exported"),
    "tampered": (tamper, r"text\.onnx: not the file that was exported"),
    "missing": (lambda b: (b / "tokenizer" / "words.json").unlink(), r"words\.json: missing"),
    "outside": (point_outside, "lies outside the bundle: refused"),
    "newer format": (lambda b: changed(b, version=99), "version 99"),
    "another format": (lambda b: changed(b, format="zip"), "not a bundle of Clipette"),
    "newer operators": (lambda b: changed(b, opset=99), "operator set 99"),
    "operators below none": (lambda b: changed(b, opset=-5), "it does not say opset"),
    "operators that are a truth": (lambda b: changed(b, opset=True), "it does not say opset"),
    "texts that fill the memory": (
        lambda b: reseal(b, "tokenizer/words.json", b'{"context_length": 1000000000000, "words": ["a"]}'),
        "context_length 1000000000000 is more than",
    ),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no bundle here"),
    "broken manifest": (lambda b: (b / "manifest.json").write_text("{"), "damaged"),
    "a manifest of brackets": (lambda b: (b / "manifest.json").write_text("[" * 100_000), "damaged"),
    "a scale that no float holds": (lambda b: changed(b, logit_scale=10**400), "it does not say logit_scale"),
    "a scale below none": (lambda b: changed(b, logit_scale=-5), "it does not say logit_scale"),
    "a scale that is none": (lambda b: changed(b, logit_scale=float("nan")), "it does not say logit_scale"),
    "half a manifest": (
        lambda b: (b / "manifest.json").write_text('{"format": "clipette-bundle", "version": 1}'),
        "say",
    ),
    "external data": (external, "keeps weights in other files: refused"),
    "external data, hidden": (external_in_a_subgraph, "keeps weights in other files: refused"),
    "no graph": (lambda b: reseal(b, "image.onnx", b"\x3a\xff\xff\xff"), r"image\.onnx: not an ONNX graph"),
    "newer graph": (newer_graph, r"image\.onnx: ONNX operator set 999"),
    "other inputs": (renamed_input, r"image\.onnx: it reads 'picture'"),
    "a link outside": (linked, "lies outside the bundle: refused"),
    "fewer vectors than names": (shifted_classes, "3 names and 2 vectors"),
    "names that are none": (numbered_classes, r"classes\.json is no list of names"),
    "vectors that are none": (lambda b: shifted_classes(b, np.full((3, 16), np.nan)), "NaN or infinity"),
    "no space": (lambda b: changed(b, space=""), "it does not say space"),
    "pickled vectors": (pickled_classes, r"classes\.npy: not a table of vectors"),
    "no words": (lambda b: reseal(b, "tokenizer/words.json", b"[1]"), "no saved word tokenizer"),
    "no preprocessing": (lambda b: changed(b, image={"file": "image.onnx", "preprocess": {"size": [0]}}), "preprocess"),
    "a file of nobody": (lambda b: changed(b, image={"file": "x", "preprocess": {}}), "damaged"),
    "other preprocessing": (other_mean, r"does not say of preprocessing what preprocess\.json says"),
    "words that are none": (
        lambda b: reseal(b, "tokenizer/words.json", b'{"context_length": 8, "words": {"a": 1}}'),
        "its words are no list of texts",
    ),
    "a size that is a truth": (lambda b: preprocessed(b, size=[True, 32]), "'True' is no whole number"),
    "a length that no number is": (lambda b: preprocessed(b, shorter=1e30), "is no whole number"),
    "no number": (lambda b: preprocessed(b, mean=[float("nan")] * 3), "std"),
    "a pipe": (piped, r"words\.json: missing"),
    "another graph": (lambda b: reseal(b, "image.onnx", b""), "onnxruntime cannot run this graph"),
}


def test_a_class_bundle_that_cannot_be_loaded_is_not_written_anew(
    kept: tuple[Path, TorchEncoder], bundle: Path
) -> None:
    for damage in (shifted_classes, pickled_classes):
        damage(bundle)
        before = (bundle / "manifest.json").read_bytes()
        with pytest.raises(ModelError, match=r"classes\.npy"):
            add_classes(bundle, kept[1], ["ring"])
        assert (bundle / "manifest.json").read_bytes() == before
    changed(bundle, text={"file": "classes.npy", "tokenizer": {"kind": "stored"}, "templates": {"a": 1}})
    reseal(bundle, "classes.npy", npy(np.eye(3, 16, dtype=np.float32)))
    with pytest.raises(ModelError, match="its templates are no text"):
        add_classes(bundle, kept[1], ["ring"])


def test_one_in_place_of_a_list_is_refused(kept: tuple[Path, TorchEncoder]) -> None:
    """A string's letters would be encoded one by one."""
    for encoder in (load_bundle(kept[0]), kept[1]):
        with pytest.raises(DataError, match=r"write \['a star'\]"):
            encoder.encode_texts("a star")
        with pytest.raises(DataError, match=r"write \[image\]"):
            encoder.encode_images("red.png")
        with pytest.raises(DataError, match="text 1 is a bytes"):
            encoder.encode_texts(["a", b"b"])  # type: ignore[list-item]
        with pytest.raises(DataError, match="not a ndarray"):
            encoder.encode_images([np.zeros((4, 4, 3))])  # type: ignore[list-item]
        for size in (0, -1):
            with pytest.raises(ConfigError, match=f"batch_size is {size}"):
                encoder.encode_texts(["a star"], batch_size=size)
        with pytest.raises(BadImageError, match="0x4 pixels"):
            encoder.encode_images([Image.new("RGB", (0, 4))])


def test_a_folder_with_some_manifest_is_no_bundle_to_replace(kept: tuple[Path, TorchEncoder], tmp_path: Path) -> None:
    page = tmp_path / "my-page"
    page.mkdir()
    (page / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    (page / "index.html").write_text("years of work")
    with pytest.raises(ConfigError, match="is there and no bundle"):
        export_bundle(kept[1], page)
    assert (page / "index.html").read_text() == "years of work"


def test_half_of_a_character_is_read_as_a_question_mark(kept: tuple[Path, TorchEncoder]) -> None:
    for ours in (load_bundle(kept[0]), kept[1]):
        np.testing.assert_array_equal(ours.encode_texts(["red \ud800 star"]), ours.encode_texts(["red ? star"]))


def test_padding_behind_a_causal_towers_texts_is_not_computed(
    kept: tuple[Path, TorchEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a red star", "a blue square and a green circle"]
    ours = load_bundle(kept[0])
    graph, widths = ours._text, []

    def seen(tokens: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        widths.append(tokens["input_ids"].shape[1])
        assert graph is not None
        out: npt.NDArray[np.float32] = graph(tokens)
        return out

    monkeypatch.setattr(ours, "_text", seen)
    short = ours.encode_texts(texts)
    monkeypatch.setattr(ours, "_until_end", False)
    np.testing.assert_allclose(short, ours.encode_texts(texts), atol=1e-6)
    assert ours.tokenizer is not None
    assert widths[0] < widths[1] == ours.tokenizer.context_length
    np.testing.assert_allclose(short, kept[1].encode_texts(texts), atol=1e-5)


def test_adaptations_without_a_form_are_refused_before_the_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreached(*_: object, **__: object) -> bytes:
        raise AssertionError("a graph was begun")

    monkeypatch.setattr(writing, "image_graph", unreached)
    classifier, worded = student(), student()
    classifier.image_tower().blueprint = Blueprint(PACKED, {}, {})
    worded.text_tower().tokenizer = KnownTokenizer.__new__(KnownTokenizer)
    for model, words in ((classifier, "is a classifier"), (worded, "name the classes")):
        with pytest.raises(UnsupportedError, match=words):
            export_bundle(encoder_of(model), tmp_path / "x")


def test_a_tower_that_sees_its_padding_gets_it(tmp_path: Path) -> None:
    """SigLIP's has no causal mask: its vectors are those of the whole context."""
    model = KINDS["open_clip, siglip"](tmp_path)
    assert not pads_behind_the_end(model.text_tower())
    assert pads_behind_the_end(KINDS["open_clip, vit"](tmp_path / "vit").text_tower())
    assert pads_behind_the_end(student().text_tower())


def test_pixels_of_another_size_are_an_error_in_words(kept: tuple[Path, TorchEncoder]) -> None:
    ours = load_bundle(kept[0])
    with pytest.raises(ModelError, match=r"image\.onnx: .* cannot run this graph"):
        ours.encode_pixels(np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks(name: str, bundle: Path) -> None:
    attack, words = ATTACKS[name]
    attack(bundle)
    with pytest.raises(ModelError, match=words):
        load_bundle(bundle)


def test_no_truncation_is_believed(bundle: Path) -> None:
    """Cut anywhere and sealed again, a file is refused in words, or is still whole."""
    for name in ("image.onnx", "tokenizer/words.json", "manifest.json"):
        path = bundle / name
        whole = path.read_bytes()
        for share in np.linspace(0, 0.97, 12):
            data = whole[: int(share * len(whole))]
            if name == "manifest.json":
                path.write_bytes(data)
            else:
                reseal(bundle, name, data)
            with pytest.raises(ModelError):
                load_bundle(bundle)
        if name == "manifest.json":
            path.write_bytes(whole)
        else:
            reseal(bundle, name, whole)
    load_bundle(bundle)


def leaves(value: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value inside nested objects."""
    if at:
        yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*at, name))


def refusal(bundle: Path) -> str:
    """What a user is told; empty where the bundle opens."""
    try:
        load_bundle(bundle)
    except UserError as error:
        return str(error)
    return ""


def test_no_manifest_ends_in_a_traceback(bundle: Path) -> None:
    """Whatever stands in place of a value: a bundle that opens, or a message."""
    path = bundle / "manifest.json"
    whole = json.loads(path.read_text())
    told = 0
    facts = {name: value for name, value in whole.items() if name not in ("card", "files")}
    facts["files"] = dict(list(whole["files"].items())[:1])
    for at in leaves(facts):
        for value in (None, "x\0", -1e400, [[]]):
            copy = json.loads(json.dumps(whole))
            inner = copy
            for name in at[:-1]:
                inner = inner[name]
            inner[at[-1]] = value
            path.write_text(json.dumps(copy))
            told += bool(refusal(bundle))
    assert told > 60


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
