"""A model as a folder of transformers: its own CLIP, SigLIP and ALIGN, and open_clip's plain CLIP as ``CLIPModel``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from clipette.data.preprocess import RESAMPLING, Preprocess
from clipette.errors import UnsupportedError
from clipette.export.hf_clip import clip_model, clip_tokenizer
from clipette.io import write_atomic
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.models.transformers_models import FAMILIES
from clipette.runtime.token_files import DESCRIPTION
from clipette.types import Floats


def write_hf(model: DualEncoder, folder: Path) -> None:
    """What ``save_pretrained`` writes of model, tokenizer and image processor.

    Raises ``UnsupportedError`` in words where a tower, a head or the preprocessing is not one of transformers'.
    """
    if model.image is None or model.text is None:
        raise UnsupportedError("a model of transformers has an image and a text tower: this model has one side only")
    kinds = (model.image.blueprint.kind, model.text.blueprint.kind)
    if kinds == ("transformers_image", "transformers_text"):
        whole, cut = _own(model, model.image, model.text)
    elif kinds == ("open_clip_image", "open_clip_text"):
        whole, cut = clip_model(model, model.image, model.text), None
    else:
        raise UnsupportedError(
            f"the towers ('{kinds[0]}', '{kinds[1]}') are no architecture of transformers: it cannot be written for "
            "transformers; a bundle (--format bundle) takes any"
        )
    processor = _processor(model.image.preprocess, cut)
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
    _save_tokenizer(model.text, folder)


def _own(model: DualEncoder, image: ImageTower, text: TextTower) -> tuple[Any, tuple[int, int] | None]:
    """transformers' whole model with the towers' weights, and the centre that its processor cuts."""
    from transformers import AutoConfig, AutoModel

    values, texts = dict(image.blueprint.arguments["config"]), text.blueprint.arguments["config"]
    kind = str(values.pop("model_type"))
    if texts["model_type"] != kind:
        raise UnsupportedError(f"an image tower of '{kind}' and a text tower of '{texts['model_type']}' are no model")
    values["text_config"] = texts["text_config"]
    auto: Any = AutoModel
    whole = auto.from_config(AutoConfig.for_model(kind, **values))
    family = FAMILIES[kind]
    sides: tuple[tuple[Any, ImageTower | TextTower, str | None], ...] = (
        (whole.vision_model, image, family.image_head),
        (whole.text_model, text, family.text_head),
    )
    for inner, tower, head in sides:
        state = tower.trunk.get_submodule("model").state_dict()
        # A pooler that the tower left out (ALIGN's text) gives no vector, and stays as it is.
        lacking = [name for name in inner.state_dict() if name not in state and ".pooler." not in f".{name}"]
        if lacking:
            raise UnsupportedError(f"the towers lack '{lacking[0]}' of transformers' '{kind}'")
        inner.load_state_dict(state, strict=False)
        if head is not None:
            whole.get_submodule(head).load_state_dict(tower.head.state_dict())
    _set_logits(whole, model, kind)
    cut = image.blueprint.arguments["cut"]
    return whole, None if cut is None else (int(cut[0]), int(cut[1]))


def _set_logits(whole: Any, model: DualEncoder, kind: str) -> None:
    scale, bias = float(model.logit_scale.detach()), model.logit_bias
    if bias is not None and kind != "siglip":
        raise UnsupportedError(f"the logits have a bias, which transformers' '{kind}' has not")
    with torch.no_grad():
        if kind == "align":
            whole.temperature.fill_(math.exp(-scale))
            return
        whole.logit_scale.fill_(scale)
        if kind == "siglip":
            whole.logit_bias.fill_(0.0 if bias is None else float(bias.detach()))


def _processor(preprocess: Preprocess, cut: tuple[int, int] | None) -> Any:
    from transformers import CLIPImageProcessorPil

    if preprocess.mode == "pad":
        raise UnsupportedError("the preprocessing pads with black, which transformers' processor of CLIP does not")
    height, width = preprocess.size
    shorter = preprocess.shorter
    crop: tuple[int, int] | None
    size: dict[str, int]
    if preprocess.mode == "squash":
        size = {"height": shorter or height, "width": shorter or width}
        crop = cut or (preprocess.size if shorter else None)
    else:
        if cut is not None or (shorter is None and height != width):
            raise UnsupportedError(
                f"transformers' processor cannot cut {height} x {width} of what it resized by a side"
            )
        size, crop = {"shortest_edge": shorter or height}, preprocess.size
    return CLIPImageProcessorPil(
        size=size,
        do_center_crop=crop is not None,
        crop_size=None if crop is None else {"height": crop[0], "width": crop[1]},
        resample=int(RESAMPLING[preprocess.interpolation]),
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
        do_convert_rgb=True,
    )


def _save_tokenizer(text: TextTower, folder: Path) -> None:
    tokenizer = text.tokenizer
    if isinstance(tokenizer, HFTokenizer):
        if tokenizer.lower:
            raise UnsupportedError("texts are lower-cased before this tokenizer, which transformers would not do")
        for name, data in tokenizer.assets().items():
            if name != DESCRIPTION:
                write_atomic(folder / name, data)
    elif isinstance(tokenizer, OpenClipTokenizer) and tokenizer.family == "clip":
        clip_tokenizer(tokenizer).save_pretrained(folder)
        _name_for_older_versions(folder / "tokenizer_config.json")
    else:
        raise UnsupportedError(f"transformers has no tokenizer like the text tower's ({type(tokenizer).__name__})")


def _name_for_older_versions(path: Path) -> None:
    """transformers 5 writes a class that 4 does not know; the older name is known to both."""
    told = json.loads(path.read_text())
    if told.get("tokenizer_class") == "TokenizersBackend":
        write_atomic(path, json.dumps({**told, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2).encode())


def load_hf(folder: Path) -> tuple[Callable[[Sequence[Image]], Floats], Callable[[Sequence[str]], Floats]]:
    """transformers' own model, processor and tokenizer of a folder, as functions to unit vectors."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    processors: Any = AutoImageProcessor
    processor = processors.from_pretrained(folder, local_files_only=True, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    family = FAMILIES[model.config.model_type]
    call: Mapping[str, Any] = {
        "padding": "max_length" if family.padding == "max_length" else True,
        "truncation": True,
        "max_length": family.context_length(model.config),
        "return_tensors": "pt",
    }

    def encode_images(images: Sequence[Image]) -> Floats:
        with torch.no_grad():
            pixels = processor(list(images), return_tensors="pt")["pixel_values"]
            return _unit(model.get_image_features(pixel_values=pixels).pooler_output)

    def encode_texts(texts: Sequence[str]) -> Floats:
        tokens = tokenizer(list(texts), **call)
        named = {"input_ids": tokens["input_ids"]}
        if family.mask:
            named["attention_mask"] = tokens["attention_mask"]
        with torch.no_grad():
            return _unit(model.get_text_features(**named).pooler_output)

    return encode_images, encode_texts


def _unit(vectors: Tensor) -> Floats:
    return np.asarray(F.normalize(vectors.float(), dim=-1).numpy())
