from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AlignConfig,
    AlignModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    EfficientNetImageProcessorPil,
    PreTrainedTokenizerFast,
    Siglip2Config,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from clipette.errors import ModelError
from clipette.models.core import DualEncoder
from clipette.models.saved import load_model, save_model
from clipette.models.transformers_models import PooledImage, load_transformers, read_transformers
from clipette.models.transformers_pixels import pixels_of

TEXTS = ["a photo of a dog", "two cats running", "", "a photo of a dog running " * 30]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["<pad>", "<s>", "a", "<unk>", "</s>", "photo", "of", "dog", "two", "cats", "running"]


def save_tokenizer(folder: Path, length: int) -> None:
    """A tokenizer of eleven words; its end token (4) is not its largest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 4)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **special).save_pretrained(folder)


def clip(eos: int = 4) -> tuple[Any, Any]:
    text = {**SMALL, "vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": eos, "bos_token_id": 1}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), processor


def siglip(vocabulary: int = 99) -> tuple[Any, Any]:
    text = {**SMALL, "vocab_size": vocabulary, "max_position_embeddings": 12, "projection_size": 32}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), processor


def align() -> tuple[Any, Any]:
    text = {**SMALL, "vocab_size": 99, "max_position_embeddings": 80}
    vision = {
        "image_size": 48,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "kernel_sizes": [3, 5],
        "in_channels": [32, 16],
        "out_channels": [16, 96],  # times the width coefficient: 24
        "depthwise_padding": [],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "hidden_dim": 24,
    }
    # As ALIGN's published processor: squash, cut the centre, byte / 127.5 - 1.
    processor = EfficientNetImageProcessorPil(
        size={"height": 58, "width": 58},
        crop_size={"height": 48, "width": 48},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=2,
    )
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=24, temperature_init_value=0.5)
    return AlignModel(config), processor


FAMILIES: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any], int]] = {
    # builder, what the library's own tokenizer call needs, context length
    "clip": (clip, {"padding": True, "truncation": True, "max_length": 20}, 20),
    "siglip": (siglip, {"padding": "max_length", "truncation": True, "max_length": 12}, 12),
    "align": (align, {"padding": "max_length", "truncation": True, "max_length": 64}, 64),
}


def write(folder: Path, model: Any, processor: Any, length: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("logit_scale", "logit_bias", "temperature"):
                parameter.normal_(std=0.2)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    save_tokenizer(folder, length)
    return folder


def picture(width: int = 90, height: int = 70) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def our_vectors(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    tower, text = model.image_tower(), model.text_tower()
    pixels = torch.from_numpy(tower.preprocess(picture()))[None]
    tokens = {name: torch.from_numpy(array) for name, array in text.tokenizer(TEXTS).items()}
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(tokens)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_towers_equal_transformers_own_pipeline(name: str, tmp_path: Path) -> None:
    build, call, length = FAMILIES[name]
    theirs, processor = build()
    folder = write(tmp_path / name, theirs, processor, length)
    theirs.eval()
    loaded = read_transformers(str(folder))
    assert loaded.notes == ()
    model = loaded.model
    assert not model.training
    assert model.text_tower().tokenizer.context_length == length

    image, text = our_vectors(model)
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", **call)
    if name == "siglip":
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        their_image = theirs.get_image_features(pixel_values=pixels).pooler_output
        their_text = theirs.get_text_features(**tokens).pooler_output
        whole = theirs(pixel_values=pixels, **tokens)
    torch.testing.assert_close(image, F.normalize(their_image, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(text, F.normalize(their_text, dim=-1), atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = model.scale * image @ text.T + model.bias
    torch.testing.assert_close(logits, whole.logits_per_image, atol=1e-4, rtol=1e-5)
    assert (model.logit_bias is not None) == (name == "siglip")

    # and again from a saved folder, after the origin is gone
    for file in folder.iterdir():
        file.unlink()
    save_model(model, tmp_path / "saved", name=name)
    again = load_model(tmp_path / "saved").model
    second = our_vectors(again)
    assert torch.equal(second[0], image)
    assert torch.equal(second[1], text)


def test_align_trains_no_idle_parameters(tmp_path: Path) -> None:
    """Its pooler is never used; idle parameters stop distributed training."""
    folder = write(tmp_path / "align", *align(), length=64)
    tower = load_transformers(str(folder)).text_tower()
    tokens = {name: torch.from_numpy(array) for name, array in tower.tokenizer(TEXTS).items()}
    tower(tokens).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


class Recorder(torch.nn.Module):
    """A vision model whose pooled output is what it was given."""

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=pixel_values)


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=2),
        SiglipImageProcessorPil(
            size={"height": 32, "width": 24}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
        ),
        EfficientNetImageProcessorPil(size={"height": 40, "width": 40}, include_top=True),
        EfficientNetImageProcessorPil(
            size={"height": 58, "width": 58},
            crop_size={"height": 48, "width": 48},
            do_center_crop=True,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
        ),
        SiglipImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
    ],
    ids=["clip-256-224", "bilinear", "squash", "include-top", "align", "no-normalisation"],
)
# Even margins: at odd ones transformers' PIL backend cuts one pixel beside its default backend, which we follow.
@pytest.mark.parametrize("size", [(91, 70), (48, 80)])
def test_preprocessing_equals_transformers(processor: Any, size: tuple[int, int]) -> None:
    pixels = pixels_of(processor, "x")
    tower = PooledImage(Recorder(), pixels.cut)
    ours = tower(torch.from_numpy(pixels.preprocess(picture(*size)))[None])[0].numpy()
    theirs = processor(picture(*size), return_tensors="np")["pixel_values"][0]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_processors_that_we_cannot_copy_are_refused() -> None:
    with pytest.raises(ModelError, match="does not resize"):
        pixels_of(SiglipImageProcessorPil(do_resize=False), "x")
    with pytest.raises(ModelError, match="PIL filter 0"):
        pixels_of(SiglipImageProcessorPil(resample=0), "x")
    with pytest.raises(ModelError, match="cuts nothing"):
        pixels_of(CLIPImageProcessorPil(do_center_crop=False), "x")


def test_a_model_without_processor_gets_its_familys_defaults(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", clip()[0], None, 20)
    loaded = read_transformers(str(folder))
    assert "no image processor" in loaded.notes[0]
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = theirs(picture(), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(loaded.model.image_tower().preprocess(picture()), expected, atol=1e-5)


def test_siglip_2_lowers_its_texts(tmp_path: Path) -> None:
    """Its Gemma tokenizer keeps capitals, which training never saw."""
    from transformers import GemmaTokenizer

    folder = write(tmp_path / "siglip2", *siglip(vocabulary=300), length=12)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "A", "▁"]
    vocabulary = {word: i for i, word in enumerate(words)}
    GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=12, padding_side="right").save_pretrained(folder)
    loaded = read_transformers(str(folder))
    assert "lower-case" in loaded.notes[0]
    ids = loaded.model.text_tower().tokenizer(["A", "a"])["input_ids"]
    np.testing.assert_array_equal(ids[0], ids[1])
    save_model(loaded.model, tmp_path / "saved", name="x")
    again = load_model(tmp_path / "saved").model.text_tower().tokenizer(["A", "a"])["input_ids"]
    np.testing.assert_array_equal(again, ids)


def test_naflex_and_strangers_are_refused_in_words(tmp_path: Path) -> None:
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    with pytest.raises(ModelError, match=r"NaFlex.*fixed-resolution"):
        load_transformers(str(tmp_path / "naflex"))
    BertModel(BertConfig(**SMALL, vocab_size=20)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"is a 'bert' model; .*lit"):
        load_transformers(str(tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"configuration of .*save_pretrained"):
        load_transformers(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="in its cache"):
        load_transformers("nobody/nothing")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", *clip(), length=20)
    state = CLIPModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_transformers(str(folder))


def test_weights_that_leave_a_part_random_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path / "clip", *clip(), length=20)
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection.weight.* would stay random"):
        load_transformers(str(folder))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", *clip(), length=20)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ModelError):
        load_transformers(str(folder))
    assert not (tmp_path / "owned").exists()


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "eos", *clip(eos=7), length=20)
    with pytest.raises(ModelError, match="looks for token 7, its tokenizer ends with 4"):
        load_transformers(str(folder))
    folder = write(tmp_path / "short", *siglip(), length=8)
    with pytest.raises(ModelError, match="ends at 8 tokens but SigLIP reads position 12"):
        load_transformers(str(folder))
    folder = write(tmp_path / "vocabulary", *siglip(vocabulary=5), length=12)
    with pytest.raises(ModelError, match="has 11 tokens, its text tower 5"):
        load_transformers(str(folder))
    model, _ = clip()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    folder = write(tmp_path / "size", model, processor, length=20)
    with pytest.raises(ModelError, match=r"makes \(64, 64\) pixels, its tower takes \(32, 32\)"):
        load_transformers(str(folder))
