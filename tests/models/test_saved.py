"""A saved model is the model: same bytes in, same numbers out, for every kind of tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.encoders import write_bert

from clipette.errors import ClipetteError, ModelError, UnsupportedError
from clipette.models.core import DualEncoder, weights_digest
from clipette.models.rebuild import table_text_tower
from clipette.models.saved import load_model, save_model, state_bytes
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model

CAPTIONS = ["a red dog", "a blue cat running"]
SMALL = {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300}
RESNET = {"kind": "timm", "name": "test_resnet", "size": 32}
OPEN_CLIP = {"kind": "open_clip", "name": "tiny.json"}


def build(base: Path = Path(), **values: Any) -> DualEncoder:
    spec = ModelSpec.model_validate_json(json.dumps({"dim": 8, "image": RESNET, "text": SMALL, **values}))
    return build_model(spec, base=base, captions=CAPTIONS).eval()


def outputs(model: DualEncoder, texts: list[str] = CAPTIONS) -> list[np.ndarray[Any, Any]]:
    found = []
    with torch.no_grad():
        if model.image is not None:
            size = model.image.preprocess.size
            pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
            found.append(model.encode_image(pixels).numpy())
        if model.text is not None:
            tokens = {name: torch.from_numpy(value) for name, value in model.text.tokenizer(texts).items()}
            found.append(model.encode_text(tokens).numpy())
    return found


KINDS: dict[str, dict[str, Any]] = {
    "resnet-words": {},
    "convnext": {"image": {**RESNET, "name": "test_convnext"}},
    "vit-position-table": {"image": {**RESNET, "name": "test_vit"}},
    "vit-own-size": {"image": {"kind": "timm", "name": "test_vit"}},
    "arguments": {"image": {**RESNET, "args": {"global_pool": "max"}, "mode": "squash", "interpolation": "bilinear"}},
    "fastvit": {"image": {**RESNET, "name": "fastvit_t8", "size": 64}},
    "residual-head": {"image": {**RESNET, "head": {"kind": "residual", "hidden": 6, "dropout": 0.2}}},
    "bn-mlp-head": {"image": {**RESNET, "head": {"kind": "bn_mlp", "hidden": 6}}},
    "bn-mlp-head-of-three": {"image": {**RESNET, "head": {"kind": "bn_mlp", "hidden": 6, "layers": 3}}},
    "clip-tokens": {"text": {**SMALL, "tokenizer": "clip", "context_length": 9}},
    "bert": {"text": {"kind": "hf", "path": "bert", "context_length": 9}},
    "bert-layers-cls": {"text": {"kind": "hf", "path": "bert", "layers": [1], "pool": "cls", "head": {"kind": "mlp"}}},
    "open-clip": {"dim": None, "image": OPEN_CLIP, "text": OPEN_CLIP},
    "open-clip-headed": {
        "image": {**OPEN_CLIP, "head": {"kind": "mlp"}},
        "text": {**OPEN_CLIP, "head": {"kind": "linear"}},
    },
    "siglip-logits": {"logits": "siglip"},
    "image-only": {"text": None},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    write_bert(folder / "bert")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (folder / "tiny.json").write_text(json.dumps({"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tower_comes_back_with_the_same_bits(base: Path, tmp_path: Path, kind: str) -> None:
    model = build(base, **KINDS[kind])
    space = save_model(model, tmp_path / "m", name="model", card={"teacher": "none"})
    saved = load_model(tmp_path / "m")
    assert (saved.name, saved.space, saved.card) == ("model", space, {"teacher": "none"})
    assert space == weights_digest(model) == weights_digest(saved.model)
    assert not saved.model.training
    for left, right in zip(outputs(model), outputs(saved.model), strict=True):
        np.testing.assert_array_equal(left, right)
    assert float(saved.model.scale.detach()) == float(model.scale.detach())
    assert float(saved.model.bias.detach()) == float(model.bias.detach())
    assert saved.model.image_tower().preprocess == model.image_tower().preprocess
    # Once more: a model that was read is written as the same bytes.
    save_model(saved.model, tmp_path / "again", name="model", card={"teacher": "none"})
    assert files(tmp_path / "m") == files(tmp_path / "again")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_model_is_found_without_what_it_was_made_of(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is all: neither the origin's files nor the working folder are needed."""
    origin = write_bert(tmp_path / "bert")
    model = build(tmp_path, text={"kind": "hf", "path": "bert"})
    save_model(model, tmp_path / "run" / "model", name="x")
    expected = outputs(model)
    for path in origin.iterdir():
        path.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # A run directory stands for the model inside it.
    for left, right in zip(expected, outputs(load_model(tmp_path / "run").model), strict=True):
        np.testing.assert_array_equal(left, right)


def test_stored_class_texts_are_a_text_side(tmp_path: Path) -> None:
    model = build(text=None)
    vectors = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    model.text = table_text_tower(("a dog", "ein Hünd", "猫"), vectors)
    save_model(model, tmp_path, name="x", space="the teacher's")
    saved = load_model(tmp_path)
    assert saved.space == "the teacher's"
    found = outputs(saved.model, ["猫", "a dog"])[1]
    np.testing.assert_allclose(found, vectors[[2, 0]].numpy(), atol=1e-6)
    with pytest.raises(UnsupportedError, match="only 3 stored texts; 'a cat' is not among them"):
        saved.model.text_tower().tokenizer(["a cat"])
    assert saved.model.text_tower().tokenizer([])["row"].shape == (0, 1)
    with pytest.raises(ModelError, match="names one string twice"):
        table_text_tower(("a", "a"), vectors[:2])


def test_equal_tensors_are_equal_bytes_whatever_their_memory() -> None:
    weight = torch.randn(4, 3, 2, 2)
    shared = {"a": weight, "b": weight}
    other = {"b": weight.clone().to(memory_format=torch.channels_last), "a": weight.clone()}
    assert state_bytes(shared) == state_bytes(other)


# ---------------------------------------------------------------- damaged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(), tmp_path / "m", name="x")
    return tmp_path / "m"


def describe(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "x/../../../secret"])
def test_an_asset_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    description = json.loads((folder / "model.json").read_text())
    describe(folder, text={**description["text"], "assets": [name]})
    with pytest.raises(ModelError, match="points outside the model's folder: refused"):
        load_model(folder)


def test_an_asset_that_is_a_link_to_elsewhere_is_refused(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_text())
    name = description["text"]["assets"][0]
    path = folder / "assets" / "text" / name
    target = folder.parent / "elsewhere.json"
    path.rename(target)
    path.symlink_to(target)
    with pytest.raises(ModelError, match="points outside the model's folder: refused"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this Clipette reads 1"),
        ({"format": None}, "has format None"),
        ({"image": {"kind": "quantum", "arguments": {}, "assets": []}}, "cannot build a 'quantum' tower"),
        ({"image": {"kind": "timm", "arguments": {"name": "test_resnet"}, "assets": []}}, "image tower .*'size'"),
        ({"image": {"kind": "timm"}}, "image tower is not described as Clipette writes it"),
        ({"image": "timm"}, "image tower is not described as Clipette writes it"),
        ({"logit_bias": True}, "does not fit model.json"),
    ],
)
def test_a_description_that_cannot_be_followed_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    describe(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_exchanged_towers_are_refused(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_text())
    (folder / "assets" / "text").rename(folder / "assets" / "image")
    describe(folder, image=description["text"], text=description["image"])
    with pytest.raises(ModelError, match="the image and text towers are exchanged"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_description_is_an_error_in_words(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json is damaged"):
        load_model(folder)


def test_damaged_weights_and_missing_files_are_errors_in_words(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"does not fit model\.json"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"does not fit model\.json"):
        load_model(folder)
    weights.write_bytes(whole)
    asset = next(path for path in (folder / "assets").rglob("*") if path.is_file())
    asset.unlink()
    with pytest.raises(ModelError, match=r"is missing: the model's folder is not whole"):
        load_model(folder)
    with pytest.raises(ModelError, match=r"holds no model: model\.json is missing"):
        load_model(folder.parent / "nothing")


def test_dying_while_writing_leaves_no_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.json comes last: a folder without it is not taken for a model."""
    from clipette.models import saved

    def fail(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        save_model(build(), tmp_path / "m", name="x")
    with pytest.raises(ClipetteError, match="holds no model"):
        load_model(tmp_path / "m")
