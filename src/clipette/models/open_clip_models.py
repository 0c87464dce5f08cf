"""open_clip's architectures and checkpoints as towers: ViT, ResNet, timm (ConvNeXt, MobileCLIP, SigLIP, ...), CoCa.

One road for every reference: find the configuration, the preprocessing and the weights file; build open_clip's
``CustomTextCLIP``, whose image and text towers are modules of their own; load the weights; take the towers.
"""

from __future__ import annotations

import copy
import logging
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import ModelError
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower
from clipette.models.open_clip_sources import Source, beside, find_source
from clipette.models.text import encode_until_end, encoder_config_bytes
from clipette.models.tokenizers import OpenClipTokenizer, build_tokenizer

LOG = logging.getLogger(__name__)

# open_clip's names for "what to do with an image that is not square" and ours.
RESIZE_MODES = {"shortest": "crop", "squash": "squash", "longest": "pad"}
HF_TEXT_CONFIG = "text_encoder_config.json"


@dataclass(frozen=True)
class Loaded:
    """A model and what a user should know about it. ``pretrained`` is false for random weights."""

    model: DualEncoder
    pretrained: bool
    notes: tuple[str, ...] = ()


def load_open_clip(reference: str, *, device: str | torch.device = "cpu") -> DualEncoder:
    """``read_open_clip`` with its notes logged as warnings."""
    loaded = read_open_clip(reference, device=device)
    for note in loaded.notes:
        LOG.warning("%s: %s", reference, note)
    return loaded.model


def read_open_clip(reference: str, *, device: str | torch.device = "cpu") -> Loaded:
    """An open_clip model in eval mode, both towers with their own preprocessing and tokenizer.

    ``reference``: ``ViT-B-16/laion2b_s34b_b88k`` (architecture/pretrained tag), ``ViT-S-16`` (untrained),
    ``hf-hub:org/name``, ``local-dir:./folder``, ``ViT-B-32@./weights.safetensors`` (or ``.pt``, read without running
    pickled code), ``./my_config.json`` (untrained) and ``./my_config.json@./weights.safetensors``.

    Raises ``ModelError`` for unknown names, unreachable hubs, weights that do not fit, and tokenizers whose end-of-text
    token or vocabulary the text tower would misread.
    """
    source = find_source(reference)
    arguments = _tower_arguments(source)
    whole = _build_whole(source, arguments)
    if source.weights is not None:
        _load_weights(whole, source.weights, reference)
    else:
        source.notes.append("no weights: this model is untrained")
    tokenizer = _tokenizer(source)
    source.notes.extend(check_tokenizer(tokenizer, arguments["text_cfg"], whole.text, source.weights is not None))
    preprocess = _preprocess(source.preprocess, whole.visual)
    image = _image_tower(whole.visual, arguments, preprocess)
    text = _text_tower(whole.text, arguments, tokenizer)
    bias = None if whole.logit_bias is None else float(whole.logit_bias.detach())
    model = DualEncoder(image, text, logit_scale=float(whole.logit_scale.detach()), logit_bias=bias)
    return Loaded(model.to(device).eval(), source.weights is not None, tuple(source.notes))


def rebuild_open_clip_image(arguments: Mapping[str, Any], assets: Mapping[str, bytes]) -> ImageTower:
    """An untrained image tower from the arguments of its blueprint."""
    visual = _build_visual(arguments)
    return _image_tower(visual, arguments, Preprocess.from_dict(arguments["preprocess"]))


def rebuild_open_clip_text(arguments: Mapping[str, Any], assets: Mapping[str, bytes]) -> TextTower:
    """An untrained text tower, with its tokenizer, from the arguments and assets of its blueprint."""
    tokenizer = build_tokenizer(assets)
    if not isinstance(tokenizer, OpenClipTokenizer):
        raise ModelError("an open_clip text tower was saved with another kind of tokenizer: the folder is mixed up")
    text = _build_text(arguments, assets.get(HF_TEXT_CONFIG))
    return _text_tower(text, arguments, tokenizer)


class OpenClipText(nn.Module):
    """open_clip's text tower behind named tokens: reads ``input_ids`` [B, L] alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[B, width], not normalised."""
        if isinstance(self.model, TextTransformer):
            return encode_until_end(self.model, tokens["input_ids"])
        out: Tensor = self.model(tokens["input_ids"])
        return out


def _tower_arguments(source: Source) -> dict[str, Any]:
    """What both towers are built from, JSON-able; a local text encoder's folder becomes an absolute path."""
    model = copy.deepcopy(source.model)
    text = model["text_cfg"]
    # Token outputs are CoCa's caption decoder's business: without them the vectors are the same.
    text["output_tokens"] = model["vision_cfg"]["output_tokens"] = False
    model["vision_cfg"].pop("timm_model_pretrained", None)
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = beside(source.folder, text["hf_model_name"])
    return {
        "embed_dim": int(model["embed_dim"]),
        "quick_gelu": bool(model.get("quick_gelu", False)),
        "vision_cfg": model["vision_cfg"],
        "text_cfg": text,
        "init_logit_scale": model.get("init_logit_scale"),
        "init_logit_bias": model.get("init_logit_bias"),
    }


def _build_whole(source: Source, arguments: Mapping[str, Any]) -> Any:
    import open_clip

    extra = {name: arguments[name] for name in ("init_logit_scale", "init_logit_bias") if arguments[name] is not None}
    try:
        whole = open_clip.CustomTextCLIP(
            embed_dim=arguments["embed_dim"],
            vision_cfg=arguments["vision_cfg"],
            text_cfg=arguments["text_cfg"],
            quick_gelu=arguments["quick_gelu"],
            **extra,
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ModelError(f"open_clip cannot build this configuration: {error}") from error
    _fit_image_size(whole.visual, arguments["vision_cfg"])
    return whole


def _build_visual(arguments: Mapping[str, Any]) -> Any:
    from open_clip.model import _build_vision_tower

    visual = _build_vision_tower(arguments["embed_dim"], dict(arguments["vision_cfg"]), arguments["quick_gelu"])
    _fit_image_size(visual, arguments["vision_cfg"])
    return visual


def _build_text(arguments: Mapping[str, Any], encoder_config: bytes | None) -> Any:
    from open_clip.model import _build_text_tower

    text = dict(arguments["text_cfg"])
    if encoder_config is None:
        return _build_text_tower(arguments["embed_dim"], text, arguments["quick_gelu"])
    with tempfile.TemporaryDirectory(prefix="clipette-text-") as folder:
        (Path(folder) / "config.json").write_bytes(encoder_config)
        return _build_text_tower(arguments["embed_dim"], {**text, "hf_model_name": folder}, arguments["quick_gelu"])


def _fit_image_size(visual: Any, vision: Mapping[str, Any]) -> None:
    """timm's ViTs hold a position table for one size: give it the configuration's. Convolutions take any size."""
    from timm.models.vision_transformer import VisionTransformer

    if not vision.get("timm_model_name") or not isinstance(visual.trunk, VisionTransformer):
        return
    if tuple(visual.trunk.patch_embed.img_size) != tuple(visual.image_size):
        visual.set_input_size(visual.image_size)


def _load_weights(whole: Any, path: Path, reference: str) -> None:
    """Load a checkpoint strictly; CoCa's caption decoder is the one part we leave out."""
    import open_clip

    try:
        result = open_clip.load_checkpoint(whole, str(path), strict=False, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, and loading it would run its code: convert it to safetensors first"
        ) from error
    except Exception as error:  # torch, safetensors and zip readers raise many kinds
        raise ModelError(f"weights {path} do not fit '{reference}': {_first_lines(error)}") from error
    missing = list(getattr(result, "missing_keys", ()))
    unexpected = [name for name in getattr(result, "unexpected_keys", ()) if not name.startswith("text_decoder.")]
    if missing or unexpected:
        raise ModelError(f"weights {path} do not fit '{reference}': missing {missing[:3]}, unexpected {unexpected[:3]}")


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:3]) or type(error).__name__


def _tokenizer(source: Source) -> OpenClipTokenizer:
    """As ``open_clip.get_tokenizer`` chooses: the Hugging Face tokenizer that is named, else CLIP's own."""
    text = source.model["text_cfg"]
    length = int(text.get("context_length", 77))
    options = dict(text.get("tokenizer_kwargs") or {})
    if options.pop("reduction_mask", ""):
        source.notes.append("reduction_mask is ignored: long texts are cut, so that one text has one vector")
    name = text.get("hf_tokenizer_name")
    if not name:
        return OpenClipTokenizer.clip(context_length=length, **options)
    if text.get("tokenizer_mode"):
        options["tokenizer_mode"] = text["tokenizer_mode"]
    return OpenClipTokenizer.from_hf(_tokenizer_source(source.folder, name), context_length=length, **options)


def _tokenizer_source(folder: Path | None, name: str) -> str | Path:
    """The model's own folder where it holds a tokenizer (open_clip's rule), a folder beside it, else the hub."""
    if folder is None:
        return name
    near = beside(folder, name)
    own = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    return folder if own and near == name else near


PROBES = ("a", "a photo of a dog, running through the park!", "word " * 400)


def check_tokenizer(tokenizer: OpenClipTokenizer, text: Mapping[str, Any], tower: Any, trained: bool) -> list[str]:
    """Will this tower find the end of this tokenizer's texts, and a row for every token?

    open_clip's default takes the *largest id* for the end of the text, which is right only where the end token is the
    last of the vocabulary. Returns notes for trained checkpoints (we follow what they were trained with); raises
    ``ModelError`` for untrained ones, where it would be a silent fault.
    """
    ids = torch.from_numpy(tokenizer(PROBES)["input_ids"])
    problems = []
    if int(tokenizer.vocabulary_size) > int(tower.vocab_size):
        problems.append(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens but text_cfg.vocab_size is {tower.vocab_size}"
        )
    if text.get("hf_model_name"):
        pad = tower.config.pad_token_id
        if tokenizer.pad_id != pad:
            problems.append(f"the tokenizer pads with {tokenizer.pad_id} but the text encoder masks {pad}")
    elif text.get("pool_type", "argmax") == "argmax":
        end = tokenizer.eos_id
        found = ids.gather(1, ids.argmax(dim=1, keepdim=True)).flatten()
        if end is None or bool((found != end).any()):
            problems.append(
                f"the text tower takes the largest id for the end of a text, but this tokenizer ends with {end}: "
                f'set "pool_type": "eos" and "eos_id": {end} in text_cfg'
            )
    elif text["pool_type"] == "eos":
        end = int(text.get("eos_id", 2))
        if bool((ids != end).all(dim=1).any()):
            problems.append(
                f"text_cfg.eos_id is {end}, which this tokenizer never writes: it ends with {tokenizer.eos_id}"
            )
    if problems and not trained:
        raise ModelError("tokenizer and text tower do not fit: " + "; ".join(problems))
    return problems


def _preprocess(values: Mapping[str, Any], visual: Any) -> Preprocess:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), dict(values))
    merged["size"] = visual.image_size
    config = asdict(PreprocessCfg(**merged))
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if config["resize_mode"] == "longest" and config["fill_color"] != 0:
        raise ModelError(f"preprocessing pads with {config['fill_color']}, which is not supported: only black (0) is")
    return Preprocess(
        size=(int(height), int(width)),
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        # open_clip reads "random" as bicubic at inference, and ignores the choice for crops that are not square.
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mode=RESIZE_MODES[config["resize_mode"]],  # type: ignore[arg-type]  # the table's values are the literals
    )


def _triple(values: Any) -> tuple[float, float, float]:
    """open_clip allows one number for all three channels."""
    red, green, blue = [values] * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)


def _image_tower(visual: nn.Module, arguments: Mapping[str, Any], preprocess: Preprocess) -> ImageTower:
    own = {name: arguments[name] for name in ("embed_dim", "quick_gelu", "vision_cfg")}
    blueprint = Blueprint("open_clip_image", {**own, "preprocess": preprocess.to_dict()})
    return ImageTower(visual, nn.Identity(), preprocess=preprocess, width=arguments["embed_dim"], blueprint=blueprint)


def _text_tower(text: Any, arguments: Mapping[str, Any], tokenizer: OpenClipTokenizer) -> TextTower:
    own = {name: arguments[name] for name in ("embed_dim", "quick_gelu", "text_cfg")}
    assets = tokenizer.assets()
    if arguments["text_cfg"].get("hf_model_name"):
        assets[HF_TEXT_CONFIG] = encoder_config_bytes(text)
    blueprint = Blueprint("open_clip_text", own, assets)
    width = int(arguments["embed_dim"])
    return TextTower(OpenClipText(text), nn.Identity(), tokenizer=tokenizer, width=width, blueprint=blueprint)
