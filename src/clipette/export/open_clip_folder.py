"""A model as open_clip's ``local-dir:``: its configuration, weights and tokenizer, where its towers are open_clip's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import UnsupportedError
from clipette.io import write_atomic, write_json
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.open_clip_models import RESIZE_MODES
from clipette.models.saved import state_bytes
from clipette.models.tokenizers import OpenClipTokenizer
from clipette.runtime.token_files import DESCRIPTION
from clipette.types import Floats

# What changes no vector once a model is trained.
TRAINING_ARGUMENTS = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate")
State = dict[str, Tensor]


def write_open_clip(model: DualEncoder, folder: Path) -> None:
    """Write ``open_clip_config.json``, ``open_clip_model.safetensors`` and the tokenizer's files.

    Raises ``UnsupportedError`` in words where a tower, a head, a tokenizer or the preprocessing is not open_clip's.
    """
    if model.image is None or model.text is None:
        raise UnsupportedError("an open_clip model has an image tower and a text tower: this model has one side only")
    vision, image_state, image_gelu = _image(model.image)
    text, text_state, text_gelu, files = _text(model.text)
    quick = {flag for flag in (image_gelu, text_gelu) if flag is not None}
    if len(quick) > 1:
        raise UnsupportedError("one tower computes with QuickGELU and the other with GELU: open_clip has one for both")
    values: dict[str, Any] = {
        "embed_dim": model.dim,
        "quick_gelu": quick.pop() if quick else False,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }
    state = {**image_state, **text_state, "logit_scale": model.logit_scale}
    if model.logit_bias is not None:
        values["init_logit_bias"] = float(model.logit_bias.detach())
        state["logit_bias"] = model.logit_bias
    preprocess = _preprocess(model.image.preprocess)
    write_json(folder / "open_clip_config.json", {"model_cfg": values, "preprocess_cfg": preprocess})
    write_atomic(folder / "open_clip_model.safetensors", state_bytes(state))
    for name, data in files.items():
        write_atomic(folder / name, data)


def _image(tower: ImageTower) -> tuple[dict[str, Any], State, bool | None]:
    """(vision_cfg, state, whether QuickGELU; None where that says nothing)."""
    arguments = tower.blueprint.arguments
    if tower.blueprint.kind == "open_clip_image":
        vision = dict(arguments["vision_cfg"])
        gelu = None if vision.get("timm_model_name") else bool(arguments["quick_gelu"])
        return vision, _renamed(tower.trunk, "visual."), gelu
    if tower.blueprint.kind == "timm":
        return _timm(tower)
    raise _not_theirs("image", tower)


def _timm(tower: ImageTower) -> tuple[dict[str, Any], State, bool | None]:
    arguments = tower.blueprint.arguments
    given = [name for name in arguments["args"] if name not in TRAINING_ARGUMENTS]
    if given:
        raise UnsupportedError(
            f"open_clip builds timm's '{arguments['name']}' without arguments, and this image tower has "
            f"{', '.join(given)}: it cannot be written for open_clip"
        )
    head = arguments["head"]["kind"]
    trunk: Any = tower.trunk
    vision: dict[str, Any] = {
        "timm_model_name": arguments["name"],
        "timm_model_pretrained": False,
        "image_size": list(arguments["size"]),
    }
    state = _renamed(trunk, "visual.trunk.")
    if head == "linear" and isinstance(tower.head, nn.Linear):
        if trunk.num_features != tower.head.in_features:
            raise UnsupportedError(
                f"open_clip projects the {trunk.num_features} features of timm's '{arguments['name']}', which end "
                f"{tower.head.in_features} wide here: it cannot be written for open_clip"
            )
        # An empty pool is the trunk's own.
        vision |= {"timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True}
        return vision, state | _renamed(tower.head, "visual.head.proj."), None
    raise UnsupportedError(
        f"open_clip maps a timm trunk to the space by a linear layer, not by a head '{head}': it cannot be written"
    )


def _text(tower: TextTower) -> tuple[dict[str, Any], State, bool | None, dict[str, bytes]]:
    """(text_cfg, state, whether QuickGELU, the tokenizer's files)."""
    tokenizer = tower.tokenizer
    arguments = tower.blueprint.arguments
    if tower.blueprint.kind not in ("open_clip_text", "small_text"):
        raise _not_theirs("text", tower)
    if not isinstance(tokenizer, OpenClipTokenizer):
        raise UnsupportedError(
            f"open_clip has no tokenizer like the text tower's ({type(tokenizer).__name__}): it cannot be written"
        )
    inner: Any = tower.trunk
    if tower.blueprint.kind == "small_text":
        text = {name: arguments[name] for name in ("context_length", "width", "heads", "layers", "eos_id", "pad_id")}
        text |= {"vocab_size": arguments["vocabulary"], "pool_type": "eos", "proj_type": "none"}
        state = _renamed(inner.transformer, "text.")
        if arguments["head"]["kind"] == "linear":
            text |= {"proj_type": "linear", "proj_bias": True}
            state |= _renamed(tower.head, "text.text_projection.")
        elif arguments["head"]["kind"] != "none":
            raise UnsupportedError(
                f"open_clip ends a text tower in a linear layer, not in a head '{arguments['head']['kind']}'"
            )
        return text, state, False, {}
    text = dict(arguments["text_cfg"])
    name = text.get("hf_model_name")
    if name and Path(name).is_dir():
        raise UnsupportedError(
            "open_clip finds a Hugging Face text encoder by its name on the hub, and this one came from a folder: it "
            "cannot be written so that it loads elsewhere"
        )
    files = {}
    if tokenizer.family == "hf":
        files = {file: data for file, data in tokenizer.assets().items() if file != DESCRIPTION}
    return text, _renamed(inner.model, "text."), None if name else bool(arguments["quick_gelu"]), files


def _renamed(module: nn.Module, prefix: str) -> State:
    return {prefix + name: value for name, value in module.state_dict().items()}


def _not_theirs(side: str, tower: ImageTower | TextTower) -> UnsupportedError:
    kind = tower.blueprint.kind
    return UnsupportedError(
        f"the {side} tower ('{kind}') is no architecture of open_clip: it cannot be written for open_clip; a bundle "
        "(--format bundle) takes any"
    )


def _preprocess(preprocess: Preprocess) -> dict[str, Any]:
    if preprocess.shorter is not None:
        raise UnsupportedError(
            f"open_clip cuts what it resized to the size itself, and this preprocessing resizes to {preprocess.shorter}"
            f" and cuts {preprocess.size}: it cannot be written for open_clip"
        )
    modes = {ours: theirs for theirs, ours in RESIZE_MODES.items()}
    return {
        "size": list(preprocess.size),
        "mode": "RGB",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": modes[preprocess.mode],
        "fill_color": 0,
    }


def load_open_clip_folder(
    folder: Path,
) -> tuple[Callable[[Sequence[Image]], Floats], Callable[[Sequence[str]], Floats]]:
    """open_clip's own model, preprocessing and tokenizer of a folder, as functions to unit vectors."""
    import open_clip

    reference = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(reference)
    tokenizer = open_clip.get_tokenizer(reference)
    model.eval()

    def encode_images(images: Sequence[Image]) -> Floats:
        with torch.no_grad():
            return _unit(model.encode_image(torch.stack([preprocess(image) for image in images])))

    def encode_texts(texts: Sequence[str]) -> Floats:
        with torch.no_grad():
            return _unit(model.encode_text(tokenizer(list(texts))))

    return encode_images, encode_texts


def _unit(vectors: Tensor) -> Floats:
    return np.asarray(F.normalize(vectors.float(), dim=-1).numpy())
