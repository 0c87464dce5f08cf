from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from clipette.errors import ModelError
from clipette.models.core import DualEncoder
from clipette.models.open_clip_models import load_open_clip, read_open_clip
from clipette.models.saved import load_model, save_model

TEXTS = ["a photo of a DOG", "two cats, running?", "", "long " * 100]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}


def timm_vision(name: str, **more: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear", **more}


FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "resnet": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "convnext": {"vision_cfg": timm_vision("convnext_atto", image_size=64), "text_cfg": TEXT},
    "mobileclip": {
        "vision_cfg": timm_vision("fastvit_t8", image_size=64, timm_proj=None, timm_drop_path=0.0),
        "text_cfg": {**TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "siglip": {
        "init_logit_bias": -10,
        "vision_cfg": timm_vision("test_vit", image_size=160, timm_pool="map", timm_proj="none"),
        "text_cfg": {
            **TEXT,
            "hf_tokenizer_name": "absent/siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "vocab_size": 200,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
        "custom_text": True,
    },
    "hf-text": {
        "vision_cfg": VIT,
        "text_cfg": {
            "context_length": 16,
            "hf_model_name": "encoder",
            "hf_tokenizer_name": "absent/bert",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
        },
    },
}
PREPROCESS = {"vit": "shortest", "siglip": "squash", "convnext": "longest"}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    inner = BertWordPieceTokenizer(lowercase=True)
    inner.train_from_iterator(["a photo of a dog running", "two cats"] * 3, vocab_size=120, show_progress=False)
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=64).save_pretrained(folder)
    return folder


def write_folder(folder: Path, model: dict[str, Any], preprocess: dict[str, Any], tokenizer: Path) -> Path:
    """An open_clip model folder without weights."""
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    if "hf_tokenizer_name" in model["text_cfg"]:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    if "hf_model_name" in model["text_cfg"]:
        encoder = folder / "encoder"
        config = BertConfig(
            vocab_size=200, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        config.save_pretrained(encoder)
        model = {**model, "text_cfg": {**model["text_cfg"], "hf_model_name": str(encoder)}}
    # json copies, because open_clip writes into the dictionaries it is given
    values = json.loads(json.dumps({"model_cfg": {"embed_dim": 24, **model}, "preprocess_cfg": preprocess}))
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return folder


def peer(folder: Path) -> tuple[Any, Callable[[Image.Image], torch.Tensor]]:
    """open_clip's own model (random weights, saved into the folder) and its own preprocessing."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", pretrained_text=False)
    for module in model.modules():
        # Statistics that differ from their start, so that a lost buffer is seen.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    model.eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model, preprocess


def picture(width: int = 90, height: int = 70) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def our_vectors(model: DualEncoder, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    tower, text = model.image_tower(), model.text_tower()
    pixels = torch.from_numpy(tower.preprocess(image))[None]
    tokens = {name: torch.from_numpy(array) for name, array in text.tokenizer(TEXTS).items()}
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(tokens)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_towers_equal_open_clips_own_pipeline(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "resize_mode": PREPROCESS.get(name, "shortest")}
    folder = write_folder(tmp_path / name, FAMILIES[name], preprocess, tokenizer_folder)
    theirs, transform = peer(folder)
    loaded = read_open_clip(f"local-dir:{folder}")
    assert loaded.pretrained
    assert loaded.notes == ()
    model = loaded.model
    assert not model.training
    assert model.dim == 24

    image, text = our_vectors(model, picture())
    with torch.no_grad():
        their_image = F.normalize(theirs.encode_image(transform(picture())[None]), dim=-1)
        their_text = F.normalize(theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)), dim=-1)
    torch.testing.assert_close(image, their_image, atol=1e-5, rtol=0)
    torch.testing.assert_close(text, their_text, atol=1e-5, rtol=0)
    assert model.scale.item() == pytest.approx(theirs.logit_scale.exp().item())
    assert (model.logit_bias is None) == (theirs.logit_bias is None)
    assert model.bias.item() == pytest.approx(-10.0 if name == "siglip" else 0.0)

    # and again from a saved folder, after the origin is gone
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()
    save_model(model, tmp_path / "saved", name=name)
    again = load_model(tmp_path / "saved").model
    second = our_vectors(again, picture())
    assert torch.equal(second[0], image)
    assert torch.equal(second[1], text)


def test_coca_gives_its_contrastive_vectors(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = {
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    folder = write_folder(tmp_path / "coca", config, {}, tokenizer_folder)
    theirs, transform = peer(folder)
    image, text = our_vectors(load_open_clip(f"local-dir:{folder}"), picture())
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(image, theirs.encode_image(transform(picture())[None]), atol=1e-5, rtol=0)
        torch.testing.assert_close(text, theirs.encode_text(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(90, 70), (41, 133)])
def test_preprocessing_equals_open_clips(
    mode: str, interpolation: str, size: tuple[int, int], tmp_path: Path, tokenizer_folder: Path
) -> None:
    preprocess = {"resize_mode": mode, "interpolation": interpolation}
    folder = write_folder(tmp_path / "m", FAMILIES["vit"], preprocess, tokenizer_folder)
    _, transform = peer(folder)
    ours = load_open_clip(f"local-dir:{folder}").image_tower().preprocess(picture(*size))
    np.testing.assert_allclose(ours, transform(picture(*size)).numpy(), atol=1e-5)


def test_every_kind_of_reference_gives_the_same_model(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m", FAMILIES["vit"], {}, tokenizer_folder)
    theirs, _ = peer(folder)
    weights = folder / "open_clip_model.safetensors"
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    config = tmp_path / "tiny-vit.json"
    config.write_text(json.dumps({"embed_dim": 24, **FAMILIES["vit"]}))
    monkeypatch.chdir(tmp_path)
    # A name of open_clip's registry, as add_model_config gives it.
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(config)
    expected = our_vectors(load_open_clip(f"local-dir:{folder}"), picture())
    for reference in (
        f"./tiny-vit.json@{weights}",
        "tiny-vit.json@./epoch_3.pt",
        f"tiny-vit@{weights}",
        f"{folder}/open_clip_config.json@epoch_3.pt",
    ):
        image, text = our_vectors(load_open_clip(reference), picture())
        assert torch.equal(image, expected[0]), reference
        assert torch.equal(text, expected[1]), reference


def test_an_untrained_model_is_said_to_be_untrained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({"embed_dim": 24, **FAMILIES["vit"]}))
    with caplog.at_level(logging.WARNING):
        load_open_clip(str(config))
    assert "untrained" in caplog.text
    assert not read_open_clip(str(config)).pretrained


def test_timm_vits_take_the_configured_size(tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    vision = timm_vision("test_vit", image_size=64)
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}))
    model = load_open_clip(str(config))
    assert model.image_tower().preprocess.size == (64, 64)
    assert our_vectors(model, picture())[0].shape == (1, 24)
    save_model(model, tmp_path / "saved", name="x")
    assert load_model(tmp_path / "saved").model.image_tower().preprocess.size == (64, 64)


def test_weights_trained_with_quickgelu_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "tiny-tagged.json"
    config.write_text(json.dumps({"embed_dim": 24, **FAMILIES["vit"]}))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(config)
    save_model_file = tmp_path / "w.safetensors"
    whole = open_clip.create_model("tiny-tagged", force_quick_gelu=True).eval()
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, save_model_file)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True, "mean": [0.1, 0.2, 0.3]})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: str(save_model_file))
    loaded = read_open_clip("tiny-tagged/sometag")
    assert "quick_gelu" in loaded.notes[0]
    assert loaded.model.image_tower().preprocess.mean == (0.1, 0.2, 0.3)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.encode_image(pixels), whole.encode_image(pixels, normalize=True), atol=1e-5, rtol=0
        )


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("owned",))


def test_bad_references_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({"embed_dim": 24, **FAMILIES["vit"]}))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "half.json").write_text('{"embed_dim": 24}')
    (tmp_path / "broken.json").write_text("{")
    cases = {
        "ViT-B-17": "near: ViT-B-16",
        "ViT-B-16/none": "it has: .*laion2b",
        "ViT-B-32@": "incomplete",
        f"ViT-B-32@{tmp_path}/none.pt": "not found",
        f"{config}@{tmp_path}/evil.pt": "convert it to safetensors",
        f"{config}@{tmp_path}/other.safetensors": "do not fit",
        f"{tmp_path}/half.json": "lacks vision_cfg, text_cfg",
        f"{tmp_path}/broken.json": "cannot be read",
        f"{tmp_path}/none.json": "not found",
        f"local-dir:{tmp_path}": "no open_clip_config",
        "hf-hub:nobody/nothing": "not in the local cache",
    }
    for reference, message in cases.items():
        with pytest.raises(ModelError, match=message):
            load_open_clip(reference)
    assert "owned" not in capsys.readouterr().out


def test_a_text_tower_that_misreads_its_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Trap 5: the largest id is the end of a text in CLIP's own vocabulary only."""
    text = {**TEXT, "vocab_size": 200, "hf_tokenizer_name": "x/y"}
    folder = write_folder(tmp_path / "m", {"vision_cfg": VIT, "text_cfg": text}, {}, tokenizer_folder)
    with pytest.raises(ModelError, match=r'set "pool_type": "eos" and "eos_id": \d+'):
        load_open_clip(f"local-dir:{folder}")
    peer(folder)  # writes weights: trained so, hence followed, and said
    loaded = read_open_clip(f"local-dir:{folder}")
    assert "largest id" in loaded.notes[0]

    text = {**text, "vocab_size": 20, "pool_type": "eos", "eos_id": 199}
    folder = write_folder(tmp_path / "n", {"vision_cfg": VIT, "text_cfg": text}, {}, tokenizer_folder)
    with pytest.raises(ModelError, match=r"tokens but text_cfg.vocab_size is 20; .*eos_id is 199"):
        load_open_clip(f"local-dir:{folder}")
