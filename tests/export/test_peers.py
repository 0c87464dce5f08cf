"""Folders for open_clip and transformers: their own loaders give our vectors, and what is not theirs is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.export.kinds import from_open_clip, student
from tests.models import test_open_clip_models as open_clip_kinds
from tests.models import test_transformers_models as transformers_kinds

from clipette.errors import ConfigError, UnsupportedError
from clipette.export import peers
from clipette.export.parity import TEXTS as AWKWARD
from clipette.export.parity import pictures
from clipette.export.peers import export_folder, shown
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.open_clip_models import load_open_clip
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.models.transformers_models import load_transformers
from clipette.types import Floats

ATOL = 1e-5
THEIRS = ("vit", "vit-quickgelu", "resnet", "convnext", "mobileclip", "siglip")


def encoder_of(model: DualEncoder) -> TorchEncoder:
    return TorchEncoder(model, name="tried", device="cpu")


def by_open_clip(folder: Path, images: list[Image.Image], texts: list[str]) -> tuple[Floats, Floats, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        seen = F.normalize(model.encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
        read = F.normalize(model.encode_text(tokens), dim=-1)
    return seen.numpy(), read.numpy(), model


@pytest.mark.parametrize("name", THEIRS)
def test_open_clip_loads_its_own_families(name: str, tmp_path: Path) -> None:
    ours = encoder_of(from_open_clip(name, tmp_path / "m"))
    out = tmp_path / "out"
    found = export_folder(ours, out, "open_clip", card={"teacher": "t"})
    assert found.load == f'open_clip.create_model_and_transforms("local-dir:{out}")'
    images, texts = pictures(5, seed=3), list(AWKWARD)
    seen, read, theirs = by_open_clip(out, images, texts)
    np.testing.assert_allclose(ours.encode_images(images), seen, atol=ATOL, rtol=0)
    np.testing.assert_allclose(ours.encode_texts(texts), read, atol=ATOL, rtol=0)
    assert theirs.logit_scale.exp().item() == pytest.approx(ours.logit_scale)
    assert (theirs.logit_bias is None) == (name != "siglip")
    assert ours.logit_bias == pytest.approx(0.0 if theirs.logit_bias is None else theirs.logit_bias.item())
    assert '"teacher": "t"' in (out / "README.md").read_text()
    again = encoder_of(load_open_clip(f"local-dir:{out}"))
    np.testing.assert_array_equal(again.encode_texts(texts), ours.encode_texts(texts))


def clip_student(**changes: Any) -> DualEncoder:
    text = {"kind": "small", "width": 32, "layers": 1, "heads": 2, "tokenizer": "clip", "context_length": 12}
    image = changes.pop("image", {})
    if "kind" not in image:
        image = {"kind": "timm", "name": "test_resnet", "size": 64, "mode": "squash", **image}
    spec = {
        "dim": 16,
        "image": image,
        "text": {**text, **changes.pop("text", {})},
        **changes,
    }
    return build_model(ModelSpec.model_validate(spec), captions=["a red star"]).eval()


@pytest.mark.parametrize("logits", ["clip", "siglip"])
def test_open_clip_loads_a_student_of_timm_and_a_small_text_tower(logits: str, tmp_path: Path) -> None:
    ours = encoder_of(clip_student(logits=logits))
    export_folder(ours, tmp_path / "out", "open_clip")
    images, texts = pictures(4), list(AWKWARD)
    seen, read, theirs = by_open_clip(tmp_path / "out", images, texts)
    np.testing.assert_allclose(ours.encode_images(images), seen, atol=ATOL, rtol=0)
    np.testing.assert_allclose(ours.encode_texts(texts), read, atol=ATOL, rtol=0)
    assert (theirs.logit_bias is not None) == (logits == "siglip")


def test_what_is_not_open_clips_is_refused_in_words(tmp_path: Path) -> None:
    whole = clip_student()
    tried: dict[str, DualEncoder] = {
        "one side only": DualEncoder(whole.image, None),
        "by a linear layer, not by a head 'residual'": clip_student(image={"head": {"kind": "residual"}}),
        "in a linear layer, not in a head 'mlp'": clip_student(text={"head": {"kind": "mlp"}}),
        r"no tokenizer like the text tower's \(WordTokenizer\)": student_with_linear_head(),
        "without arguments, and this image tower has layers": clip_student(
            image={"name": "resnet18", "args": {"layers": [1, 1, 1, 1]}}
        ),
        "tower \\('headed_image'\\) is no architecture of open_clip": clip_student(
            image={"kind": "open_clip", "name": str(config_file(tmp_path)), "head": {"kind": "linear"}},
        ),
        "came from a folder": from_open_clip("hf-text", tmp_path / "hf"),
    }
    cut = clip_student()
    cut.image_tower().preprocess = replace(cut.image_tower().preprocess, mode="crop", shorter=80)
    tried["resizes to 80 and cuts"] = cut
    for words, model in tried.items():
        with pytest.raises(UnsupportedError, match=words):
            export_folder(encoder_of(model), tmp_path / "out", "open_clip")
    assert not (tmp_path / "out").exists()


def student_with_linear_head() -> DualEncoder:
    return clip_student(text={"tokenizer": "words", "vocabulary": 300})


def config_file(folder: Path) -> Path:
    path = folder / "vit.json"
    values = {"embed_dim": 24, "vision_cfg": open_clip_kinds.VIT, "text_cfg": open_clip_kinds.TEXT}
    path.write_text(json.dumps(values))
    return path


def by_transformers(folder: Path, images: list[Image.Image], texts: list[str], **call: Any) -> tuple[Floats, Floats]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **call)
    named = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    if model.config.model_type == "siglip":
        del named["attention_mask"]
    with torch.no_grad():
        seen = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        read = F.normalize(model.get_text_features(**named).pooler_output, dim=-1)
    return seen.numpy(), read.numpy()


@pytest.mark.parametrize("name", list(transformers_kinds.FAMILIES))
def test_transformers_loads_its_own_families(name: str, tmp_path: Path) -> None:
    build, call, length = transformers_kinds.FAMILIES[name]
    whole, processor = build()
    origin = transformers_kinds.write(tmp_path / "m", whole, processor, length)
    ours = encoder_of(load_transformers(str(origin)))
    out = tmp_path / "out"
    found = export_folder(ours, out, "hf")
    assert found.difference <= ATOL
    images, texts = shown(seed=3), list(transformers_kinds.TEXTS)
    seen, read = by_transformers(out, images, texts, **call)
    np.testing.assert_allclose(ours.encode_images(images), seen, atol=ATOL, rtol=0)
    np.testing.assert_allclose(ours.encode_texts(texts), read, atol=ATOL, rtol=0)
    again = encoder_of(load_transformers(str(out)))
    assert (again.logit_scale, again.logit_bias) == (pytest.approx(ours.logit_scale), pytest.approx(ours.logit_bias))
    np.testing.assert_allclose(again.encode_texts(texts), ours.encode_texts(texts), atol=ATOL)


@pytest.mark.parametrize("name", ["vit", "vit-quickgelu"])
def test_transformers_loads_open_clips_plain_clip(name: str, tmp_path: Path) -> None:
    ours = encoder_of(from_open_clip(name, tmp_path / "m"))
    out = tmp_path / "out"
    export_folder(ours, out, "hf")
    # Names that transformers 4 knows too.
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    texts = [
        "a photo of a DOG",
        "",
        "  two   cats,\nrunning?  it's 12 o'clock!",
        "naïve café 犬 🐕",
        "long walks " * 60,
    ]
    images = shown(seed=3)
    seen, read = by_transformers(out, images, texts, padding=True, truncation=True, max_length=16)
    np.testing.assert_allclose(ours.encode_images(images), seen, atol=ATOL, rtol=0)
    np.testing.assert_allclose(ours.encode_texts(texts), read, atol=ATOL, rtol=0)


def test_what_is_not_transformers_is_refused_in_words(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tried = {
        "are no architecture of transformers": student(),
        "not a ModifiedResNet": from_open_clip("resnet", tmp_path / "r"),
        "one side only": DualEncoder(None, student().text),
    }
    padded = from_open_clip("vit", tmp_path / "v")
    padded.image_tower().preprocess = replace(padded.image_tower().preprocess, mode="pad")
    tried["pads with black"] = padded
    for words, model in tried.items():
        with pytest.raises(UnsupportedError, match=words):
            export_folder(encoder_of(model), out, "hf")
    assert not out.exists()


def test_a_folder_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, out = encoder_of(clip_student()), tmp_path / "out"
    honest = peers.FORMATS["open_clip"]

    def shifted(folder: Path) -> peers.Encode:
        images, texts = honest.read(folder)
        return images, lambda given: texts(given) + np.float32(2e-5)

    monkeypatch.setitem(peers.FORMATS, "open_clip", replace(honest, read=shifted))
    with pytest.raises(UnsupportedError, match=r"other vectors from this model, by up to 2\.\de-05"):
        export_folder(ours, out, "open_clip")

    def breaks(folder: Path) -> peers.Encode:
        raise RuntimeError("no such operator\nat line 3")

    monkeypatch.setitem(peers.FORMATS, "open_clip", replace(honest, read=breaks))
    with pytest.raises(UnsupportedError, match=r"cannot load this model \(no such operator\)"):
        export_folder(ours, out, "open_clip")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(ConfigError, match="no model folder of open_clip"):
        export_folder(ours, out, "open_clip")
    out.rmdir()
    export_folder(ours, out, "open_clip")
    export_folder(ours, out, "open_clip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
