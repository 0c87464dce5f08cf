"""transformers' CLIP, SigLIP, SigLIP 2 (fixed resolution) and ALIGN as towers, from a folder or a hub id."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import ModelError
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower
from clipette.models.open_clip_models import Loaded
from clipette.models.tokenizers import HFTokenizer, build_tokenizer
from clipette.models.transformers_pixels import Pixels, pixels_of

LOG = logging.getLogger(__name__)


class PooledImage(nn.Module):
    """A transformers vision model behind plain pixels: [B, 3, H, W] → its pooled output [B, hidden].

    ``cut``: (height, width) of the centre that the model sees, where its processor squashes to a larger size first
    (ALIGN: 346, cut 289). It is done here because ``Preprocess`` cuts only what kept its aspect ratio.
    """

    def __init__(self, model: nn.Module, cut: tuple[int, int] | None) -> None:
        super().__init__()
        self.model = model
        self.cut = cut

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, hidden]."""
        if self.cut is not None:
            height, width = self.cut
            # round() is half-to-even, as in torchvision's center_crop.
            top, left = round((pixels.shape[2] - height) / 2), round((pixels.shape[3] - width) / 2)
            pixels = pixels[:, :, top : top + height, left : left + width]
        out: Tensor = self.model(pixel_values=pixels).pooler_output
        return out


class PooledText(nn.Module):
    """A transformers text model behind named tokens → [B, hidden]: its pooled output, or its first token's state."""

    def __init__(self, model: nn.Module, *, first_token: bool) -> None:
        super().__init__()
        self.model = model
        self.first_token = first_token

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[B, hidden]."""
        out = self.model(**tokens)
        pooled: Tensor = out.last_hidden_state[:, 0] if self.first_token else out.pooler_output
        return pooled


@dataclass(frozen=True)
class Family:
    """How one model type is taken apart: towers from a configuration, and what its texts look like."""

    image: Callable[[Any], tuple[nn.Module, nn.Module, int]]
    text: Callable[[Any], tuple[nn.Module, nn.Module, int]]
    # The names of the two projections in the whole model, where it has them.
    image_head: str | None
    text_head: str | None
    padding: str
    mask: bool
    context_length: Callable[[Any], int]


def load_transformers(
    reference: str, *, device: str | torch.device = "cpu", local_files_only: bool = False
) -> DualEncoder:
    """``read_transformers`` with its notes logged as warnings."""
    loaded = read_transformers(reference, device=device, local_files_only=local_files_only)
    for note in loaded.notes:
        LOG.warning("%s: %s", reference, note)
    return loaded.model


def read_transformers(reference: str, *, device: str | torch.device = "cpu", local_files_only: bool = False) -> Loaded:
    """A CLIP, SigLIP, SigLIP 2 or ALIGN model in eval mode, float32.

    ``reference``: a folder written by ``save_pretrained``, or a hub id. Only safetensors are read and no code that
    comes with a model is run. ``local_files_only``: do not ask the hub (nor does a folder or ``HF_HUB_OFFLINE=1``).

    Raises ``ModelError`` for other model types (SigLIP 2's NaFlex among them), missing files, and weights that do not
    cover the whole model.
    """
    folder = Path(reference).expanduser()
    local = local_files_only or folder.is_dir()
    name = str(folder) if folder.is_dir() else reference
    config = _config(name, local)
    family = _family(config, reference)
    whole = _whole(name, config, local)
    notes: list[str] = []
    image = _new_image_tower(config, _pixels(name, config, local, notes))
    text = _new_text_tower(config, _tokenizer(name, config, family, local, notes))
    _take_weights(whole, family, image, text)
    scale, bias = _scale_and_bias(whole, str(config.model_type))
    model = DualEncoder(image, text, logit_scale=scale, logit_bias=bias)
    return Loaded(model.to(device).eval(), True, tuple(notes))


def rebuild_transformers_image(arguments: Mapping[str, Any], assets: Mapping[str, bytes]) -> ImageTower:
    """An untrained image tower from the arguments of its blueprint."""
    cut = arguments["cut"]
    pixels = Pixels(Preprocess.from_dict(arguments["preprocess"]), None if cut is None else (int(cut[0]), int(cut[1])))
    return _new_image_tower(_config_of(arguments), pixels)


def rebuild_transformers_text(arguments: Mapping[str, Any], assets: Mapping[str, bytes]) -> TextTower:
    """An untrained text tower, with its tokenizer, from the arguments and assets of its blueprint."""
    tokenizer = build_tokenizer(assets)
    if not isinstance(tokenizer, HFTokenizer):
        raise ModelError("a transformers text tower was saved with another kind of tokenizer: the folder is mixed up")
    return _new_text_tower(_config_of(arguments), tokenizer)


def _new_image_tower(config: Any, pixels: Pixels) -> ImageTower:
    model, head, width = _family(config, config.model_type).image(config)
    arguments = {
        "config": _plain(config),
        "preprocess": pixels.preprocess.to_dict(),
        "cut": None if pixels.cut is None else list(pixels.cut),
    }
    trunk = PooledImage(model, pixels.cut)
    blueprint = Blueprint("transformers_image", arguments)
    return ImageTower(trunk, head, preprocess=pixels.preprocess, width=width, blueprint=blueprint)


def _new_text_tower(config: Any, tokenizer: HFTokenizer) -> TextTower:
    model, head, width = _family(config, config.model_type).text(config)
    # ALIGN projects the first token's last state, and leaves its pooler unused.
    trunk = PooledText(model, first_token=config.model_type == "align")
    blueprint = Blueprint("transformers_text", {"config": _plain(config)}, tokenizer.assets())
    return TextTower(trunk, head, tokenizer=tokenizer, width=width, blueprint=blueprint)


def _clip_image(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import CLIPVisionModel

    head = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
    return CLIPVisionModel(config.vision_config), head, int(config.projection_dim)


def _clip_text(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import CLIPTextModel

    head = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
    return CLIPTextModel(config.text_config), head, int(config.projection_dim)


def _siglip_image(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import SiglipVisionModel

    if not getattr(config.vision_config, "vision_use_head", True):
        raise ModelError("this SigLIP has no pooling head (vision_use_head: false): it gives no image vector")
    return SiglipVisionModel(config.vision_config), nn.Identity(), int(config.vision_config.hidden_size)


def _siglip_text(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import SiglipTextModel

    width = int(config.text_config.projection_size or config.text_config.hidden_size)
    return SiglipTextModel(config.text_config), nn.Identity(), width


def _align_image(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import AlignVisionModel

    return AlignVisionModel(config.vision_config), nn.Identity(), int(config.projection_dim)


def _align_text(config: Any) -> tuple[nn.Module, nn.Module, int]:
    from transformers import AlignTextModel

    head = nn.Linear(config.text_config.hidden_size, config.projection_dim)
    return AlignTextModel(config.text_config, add_pooling_layer=False), head, int(config.projection_dim)


FAMILIES: dict[str, Family] = {
    "clip": Family(
        _clip_image,
        _clip_text,
        image_head="visual_projection",
        text_head="text_projection",
        padding="longest",
        mask=True,
        context_length=lambda config: int(config.text_config.max_position_embeddings),
    ),
    # Trained on texts padded to the full length without a mask, and pooled at the last position.
    "siglip": Family(
        _siglip_image,
        _siglip_text,
        image_head=None,
        text_head=None,
        padding="max_length",
        mask=False,
        context_length=lambda config: int(config.text_config.max_position_embeddings),
    ),
    # AlignProcessor's own length; the encoder could read 512 tokens.
    "align": Family(
        _align_image,
        _align_text,
        image_head=None,
        text_head="text_projection",
        padding="max_length",
        mask=True,
        context_length=lambda config: min(64, int(config.text_config.max_position_embeddings)),
    ),
}


def _family(config: Any, reference: str) -> Family:
    kind = str(config.model_type)
    if kind == "siglip2":
        raise ModelError(
            f"'{reference}' is SigLIP 2 NaFlex, whose image size changes with every image: not supported; "
            "use a fixed-resolution SigLIP 2 (its names end in a size, as in siglip2-base-patch16-224)"
        )
    if kind not in FAMILIES:
        raise ModelError(
            f"'{reference}' is a '{kind}' model; as image-text models these are supported: {', '.join(FAMILIES)}, "
            "SigLIP 2 (fixed resolution). A text encoder alone can be half of a lit: pair"
        )
    return FAMILIES[kind]


def _config(name: str, local: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except Exception as error:  # hub clients and parsers raise many kinds
        raise ModelError(_unreadable(name, "configuration", error)) from error


def _config_of(arguments: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = dict(arguments["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    # Where it came from and what wrote it change no output.
    return {name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")}


def _whole(name: str, config: Any, local: bool) -> Any:
    from transformers import AutoModel

    try:
        whole, report = AutoModel.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            output_loading_info=True,
        )
    except Exception as error:  # hub clients, safetensors and torch raise many kinds
        raise ModelError(_unreadable(name, "weights (safetensors only)", error)) from error
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise ModelError(f"the weights of '{name}' do not cover the model: {missing[:3]} would stay random")
    return whole


def _take_weights(whole: Any, family: Family, image: ImageTower, text: TextTower) -> None:
    """Copy the parts of the whole model into the towers, whose keys are those of a rebuilt one."""
    parts: list[tuple[Any, nn.Module, str | None]] = [
        (whole.vision_model, image, family.image_head),
        (whole.text_model, text, family.text_head),
    ]
    for model, tower, head in parts:
        state = {f"trunk.model.{name}": value for name, value in model.state_dict().items()}
        if head is not None:
            state |= {f"head.{name}": value for name, value in whole.get_submodule(head).state_dict().items()}
        unused = [name for name in state if ".pooler." in name and name not in tower.state_dict()]
        tower.load_state_dict({name: value for name, value in state.items() if name not in unused})


def _scale_and_bias(whole: Any, kind: str) -> tuple[float, float | None]:
    """(ln scale, bias). ALIGN divides by a temperature: scale = 1 / temperature."""
    if kind == "align":
        return -math.log(float(whole.temperature.detach())), None
    bias = float(whole.logit_bias.detach()) if kind == "siglip" else None
    return float(whole.logit_scale.detach()), bias


def _tokenizer(name: str, config: Any, family: Family, local: bool, notes: list[str]) -> HFTokenizer:
    length = family.context_length(config)
    tokenizer = HFTokenizer.from_pretrained(
        name,
        context_length=length,
        padding="max_length" if family.padding == "max_length" else "longest",
        mask=family.mask,
        local_files_only=local,
    )
    if config.model_type == "siglip" and tokenizer.context_length != length:
        raise ModelError(
            f"the tokenizer of '{name}' ends at {tokenizer.context_length} tokens but SigLIP reads position {length}"
        )
    if config.model_type == "siglip" and "Gemma" in type(tokenizer.inner).__name__:
        notes.append("SigLIP 2 was trained on lower-case text and its tokenizer keeps capitals: texts are lower-cased")
        tokenizer = tokenizer.lowered()
    table = int(config.text_config.vocab_size)
    if tokenizer.vocabulary_size > table:
        raise ModelError(f"the tokenizer of '{name}' has {tokenizer.vocabulary_size} tokens, its text tower {table}")
    end = config.text_config.eos_token_id
    # transformers' legacy rule: eos_token_id 2 means "the largest id", CLIP's own end token.
    if config.model_type == "clip" and end not in (2, tokenizer.eos_id):
        raise ModelError(
            f"the text tower of '{name}' looks for token {end}, its tokenizer ends with {tokenizer.eos_id}"
        )
    return tokenizer


def _pixels(name: str, config: Any, local: bool, notes: list[str]) -> Pixels:
    """From the image processor's settings, or, where the model has none, from its family's defaults."""
    from transformers import AutoImageProcessor

    side = config.vision_config.image_size
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    processors = ("preprocessor_config.json", "processor_config.json")
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in processors):
        if config.model_type == "align":
            raise ModelError(f"'{name}' has no preprocessor_config.json: save its image processor beside the model")
        notes.append(f"no image processor found: the defaults of '{config.model_type}' at {size} pixels are used")
        return Pixels(_default_preprocess(str(config.model_type), size))
    try:
        processor = AutoImageProcessor.from_pretrained(
            name, local_files_only=local, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # hub clients and parsers raise many kinds
        raise ModelError(_unreadable(name, "image processor", error)) from error
    pixels = pixels_of(processor, name)
    if config.model_type != "align" and pixels.size != size:
        raise ModelError(f"the image processor of '{name}' makes {pixels.size} pixels, its tower takes {size}")
    return pixels


def _default_preprocess(kind: str, size: tuple[int, int]) -> Preprocess:
    if kind == "clip":
        return Preprocess(size, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), mode="squash")


def _unreadable(name: str, what: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"the {what} of '{name}' cannot be loaded ({type(error).__name__}: {first}): give a folder written by "
        "save_pretrained, or a hub id that this machine can reach or has in its cache"
    )
