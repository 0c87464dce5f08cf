"""From a ``ModelSpec`` to a model: LiT pairs and students are the same thing."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import ConfigError, ModelError
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower, set_trainable
from clipette.models.heads import build_head
from clipette.models.open_clip_models import load_open_clip
from clipette.models.prompted import prompted_image
from clipette.models.prompts import DeepPrompts
from clipette.models.spec import (
    HeadSpec,
    HFText,
    ModelSpec,
    OpenClipPart,
    SavedPart,
    SmallText,
    TeacherText,
    TimmImage,
)
from clipette.models.text import HFTextTrunk, SmallTextTrunk, encoder_config_bytes, keep_layers
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.words import WordTokenizer
from clipette.types import Tokenizer

SIGLIP_SCALE, SIGLIP_BIAS = math.log(10.0), -10.0
CLIP_SCALE = math.log(1 / 0.07)
NO_TEACHER_TEXT = (
    "text: {kind: teacher} needs a teacher with a text tower; this one has none or is only stored. A student of images "
    "alone does without: --set student.text=null"
)


def build_model(
    spec: ModelSpec,
    *,
    base: Path = Path(),
    teacher: DualEncoder | None = None,
    captions: Sequence[str] = (),
    seed: int = 0,
) -> DualEncoder:
    """The model that ``spec`` describes, with frozen parts frozen.

    ``base``: the folder that relative paths start from. ``teacher``: needed by ``text: {kind: teacher}``.
    ``captions``: what a ``words`` tokenizer learns from. ``seed`` draws the untrained weights. The towers leave with
    ``requires_grad`` as ``train`` says.

    Raises ``ConfigError`` or ``ModelError`` where the parts cannot work together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = _space_width(spec, teacher)
        image = _image_tower(spec.image, dim, base)
        text = _text_tower(spec, dim, base, teacher, captions)
    scale, bias = (SIGLIP_SCALE, SIGLIP_BIAS) if spec.logits == "siglip" else (CLIP_SCALE, None)
    if spec.space == "teacher" and teacher is not None:
        scale = float(teacher.logit_scale.detach())
        bias = None if teacher.logit_bias is None else float(teacher.logit_bias.detach())
    if spec.logit_scale is not None:
        scale = math.log(spec.logit_scale)
    return DualEncoder(image, text, logit_scale=scale, logit_bias=bias)


def _space_width(spec: ModelSpec, teacher: DualEncoder | None) -> int | None:
    if isinstance(spec.text, TeacherText) and teacher is None:
        raise ConfigError(NO_TEACHER_TEXT)
    if spec.space == "teacher" and teacher is not None:
        if spec.dim is not None and spec.dim != teacher.dim:
            raise ConfigError(
                f"space: teacher means the teacher's width {teacher.dim}, but the student says dim: {spec.dim}; "
                "remove dim, or use space: own"
            )
        return teacher.dim
    if isinstance(spec.text, TeacherText) and teacher is not None and spec.dim is None:
        return teacher.dim
    return spec.dim


def _image_tower(spec: TimmImage | OpenClipPart | SavedPart, dim: int | None, base: Path) -> ImageTower:
    if isinstance(spec, SavedPart):
        saved: ImageTower = _with_head(_saved(spec, base).image_tower(), HeadSpec(kind="none"), dim, "image")
        _freeze(saved, spec.train)
        return saved
    if isinstance(spec, TimmImage) and spec.prompts is None:
        tower = timm_image_tower(spec, dim, base)
        _freeze(tower, spec.train)
        return tower
    if isinstance(spec, TimmImage):
        whole = timm_image_tower(spec.model_copy(update={"head": HeadSpec(kind="none")}), None, base)
    else:
        found = load_open_clip(local_reference(spec.name, base)).image
        if found is None:
            raise ModelError(f"open_clip model '{spec.name}' has no image tower")
        whole = found
    if spec.prompts is not None:
        whole = prompted_image(whole, spec.prompts, seed=torch.initial_seed())
    headed: ImageTower = _with_head(whole, spec.head, dim, "image")
    _freeze(headed, spec.train)
    return headed


def _saved(spec: SavedPart, base: Path) -> DualEncoder:
    # Lazily: it builds towers from blueprints, with the functions of this file.
    from clipette.models.saved import load_model

    return load_model(_path(spec.path, base)).model


def _with_head(tower: Any, head: HeadSpec, dim: int | None, side: str) -> Any:
    """Put a head of our own over a tower that already ends in a space."""
    if head.kind == "none":
        if dim is not None and dim != tower.width:
            raise ConfigError(
                f"the {side} tower is {tower.width} wide but the space is {dim}: give it head: {{kind: linear}}"
            )
        return tower
    if dim is None:
        raise ConfigError(f"the {side} head needs the width of the space: set dim")
    inner = tower.blueprint
    whole = {"kind": inner.kind, "arguments": dict(inner.arguments)}
    arguments = {"inner": whole, "head": head.model_dump(), "dim": dim}
    blueprint = Blueprint(f"headed_{side}", {**arguments, "width": tower.width}, inner.assets)
    built = build_head(head.kind, tower.width, dim, head.hidden, head.dropout, layers=head.layers)
    if side == "image":
        return ImageTower(tower, built, preprocess=tower.preprocess, width=dim, blueprint=blueprint)
    return TextTower(tower, built, tokenizer=tower.tokenizer, width=dim, blueprint=blueprint)


def timm_image_tower(spec: TimmImage, dim: int | None, base: Path) -> ImageTower:
    """A timm backbone as an image tower. Raises ``ModelError`` on an unknown name or unfitting weights."""
    if dim is None and spec.head.kind != "none":
        raise ConfigError(f"dim is missing: how wide is the space that '{spec.name}' maps to?")
    trunk = _timm_trunk(spec, base)
    preprocess = _timm_preprocess(spec, trunk)
    width = probe_width(trunk, preprocess)
    dim = width if dim is None else dim
    head = build_head(spec.head.kind, width, dim, spec.head.hidden, spec.head.dropout, layers=spec.head.layers)
    arguments = {
        "name": spec.name,
        "args": dict(spec.args),
        "size": list(preprocess.size),
        "width": width,
        "dim": dim,
        "head": spec.head.model_dump(),
        "preprocess": preprocess.to_dict(),
    }
    return ImageTower(trunk, head, preprocess=preprocess, width=dim, blueprint=Blueprint("timm", arguments))


def probe_width(trunk: nn.Module, preprocess: Preprocess) -> int:
    """The width of a timm trunk's output. Some end wider than ``num_features`` says (MobileNetV3, FastViT): one blank
    image is asked."""
    training = trunk.training
    trunk.eval()
    with torch.no_grad():
        out: Tensor = trunk(torch.zeros(1, 3, *preprocess.size))
    trunk.train(training)
    return int(out.shape[-1])


def make_timm(name: str, args: dict[str, Any], size: tuple[int, int] | None, *, pretrained: bool = False) -> Any:
    """``timm.create_model`` without a classifier; towers with position tables are told their image size."""
    arguments = {"num_classes": 0, **args}
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        raise ModelError(f"timm knows no model '{name}'" + (f"; near: {', '.join(near)}" if near else ""))
    try:
        if size is not None and "img_size" not in arguments:
            try:
                return timm.create_model(name, pretrained=pretrained, img_size=size, **arguments)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ConfigError(f"timm model '{name}' refuses its args {args}: {error}") from error
    except Exception as error:  # hubs and their HTTP clients raise types of their own
        if not pretrained:
            raise
        raise ModelError(
            f"the pretrained weights of timm model '{name}' cannot be fetched ({type(error).__name__}: {error}): "
            "give image.weights a safetensors file, or remove it to start from nothing"
        ) from error


def _square(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _timm_trunk(spec: TimmImage, base: Path) -> Any:
    trunk = make_timm(spec.name, spec.args, _square(spec.size), pretrained=spec.weights == "pretrained")
    if spec.weights is None or spec.weights == "pretrained":
        return trunk
    path = _path(spec.weights, base)
    if not path.is_file():
        raise ModelError(f"image weights not found: {path} (named by image.weights)")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    try:
        missing, unexpected = trunk.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit timm model '{spec.name}' with args {spec.args}: {error}") from error
    unexpected = [name for name in unexpected if not name.startswith(("classifier.", "head.", "fc."))]
    if missing or unexpected:
        raise ModelError(
            f"{path} does not fit timm model '{spec.name}' with args {spec.args}: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}"
        )
    return trunk


def _timm_preprocess(spec: TimmImage, trunk: Any) -> Preprocess:
    config = resolve_model_data_config(trunk)
    size = _square(spec.size) or tuple(config["input_size"][1:])
    return Preprocess(
        size=size,
        mean=spec.mean or tuple(config["mean"]),
        std=spec.std or tuple(config["std"]),
        interpolation=spec.interpolation or config["interpolation"],
        mode=spec.mode,
    )


def _text_tower(
    spec: ModelSpec, dim: int | None, base: Path, teacher: DualEncoder | None, captions: Sequence[str]
) -> TextTower | None:
    text = spec.text
    if text is None:
        return None
    if isinstance(text, HFText):
        tower = _hf_text_tower(text, dim, base)
    elif isinstance(text, SmallText):
        tower = _small_text_tower(text, dim, captions)
    elif isinstance(text, OpenClipPart):
        whole = load_open_clip(local_reference(text.name, base)).text
        if whole is None:
            raise ModelError(f"open_clip model '{text.name}' has no text tower")
        if text.prompts is not None:
            raise ConfigError("text.prompts: visual tokens belong to the image tower: put prompts under image")
        tower = _with_head(whole, text.head, dim, "text")
    elif isinstance(text, SavedPart):
        tower = _with_head(_saved(text, base).text_tower(), HeadSpec(kind="none"), dim, "text")
    else:
        tower = _teacher_text_tower(text, teacher, dim)
    _freeze(tower, text.train)
    return tower


def _hf_text_tower(spec: HFText, dim: int | None, base: Path) -> TextTower:
    from transformers import AutoConfig, AutoModel

    if dim is None:
        raise ConfigError("dim is missing: how wide is the space that the text tower maps to?")
    path = local_reference(spec.path, base)
    try:
        if spec.weights:
            encoder = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
        else:
            encoder = AutoModel.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
        tokenizer = HFTokenizer.from_pretrained(path, context_length=spec.context_length)
    except (OSError, ValueError) as error:
        raise ModelError(f"text encoder '{spec.path}' cannot be loaded: {error}") from error
    keep_layers(encoder, spec.layers)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return hf_tower(encoder.float(), tokenizer, spec.pool, spec.head, dim)


def hf_tower(encoder: Any, tokenizer: HFTokenizer, pool: str, head: HeadSpec, dim: int) -> TextTower:
    """A text tower over a Hugging Face encoder, with the blueprint that builds it again."""
    width = int(encoder.config.hidden_size)
    arguments = {"pool": pool, "head": head.model_dump(), "width": width, "dim": dim}
    arguments["context_length"] = tokenizer.context_length
    assets = {"config.json": encoder_config_bytes(encoder), **tokenizer.assets()}
    trunk = HFTextTrunk(encoder, pool)
    built = build_head(head.kind, width, dim, head.hidden, head.dropout, layers=head.layers)
    return TextTower(trunk, built, tokenizer=tokenizer, width=dim, blueprint=Blueprint("hf_text", arguments, assets))


def _small_text_tower(spec: SmallText, dim: int | None, captions: Sequence[str]) -> TextTower:
    if dim is None:
        raise ConfigError("dim is missing: how wide is the space that the text tower maps to?")
    tokenizer: Tokenizer
    if spec.tokenizer == "words":
        if not captions:
            raise ConfigError("tokenizer: words learns its words from the training captions, but the data has none")
        words = WordTokenizer.train(captions, size=spec.vocabulary, context_length=spec.context_length)
        tokenizer, assets = words, words.assets()
        vocabulary, eos, pad = words.vocabulary_size, words.eos_id, words.pad_id
    else:
        bpe = OpenClipTokenizer.clip(context_length=spec.context_length)
        tokenizer, assets = bpe, bpe.assets()
        vocabulary, eos, pad = 49408, 49407, 0
    arguments = {
        "tokenizer": spec.tokenizer,
        "vocabulary": vocabulary,
        "context_length": spec.context_length,
        "width": spec.width,
        "layers": spec.layers,
        "heads": spec.heads,
        "eos_id": eos,
        "pad_id": pad,
        "head": spec.head.model_dump(),
        "dim": dim,
    }
    trunk = small_trunk(arguments)
    head = build_head(spec.head.kind, spec.width, dim, spec.head.hidden, spec.head.dropout, layers=spec.head.layers)
    blueprint = Blueprint("small_text", arguments, assets)
    return TextTower(trunk, head, tokenizer=tokenizer, width=dim, blueprint=blueprint)


def small_trunk(arguments: Any) -> SmallTextTrunk:
    """The small transformer of a blueprint's arguments."""
    names = ("vocabulary", "context_length", "width", "layers", "heads", "eos_id", "pad_id")
    return SmallTextTrunk(**{name: arguments[name] for name in names})


def _teacher_text_tower(spec: TeacherText, teacher: DualEncoder | None, dim: int | None) -> TextTower:
    """A copy of the teacher's text tower, or of some of its layers (weight inheritance for Hugging Face encoders)."""
    if teacher is None or teacher.text is None:
        raise ConfigError(NO_TEACHER_TEXT)
    tower = copy.deepcopy(teacher.text)
    if spec.layers is not None:
        if not isinstance(tower.trunk, HFTextTrunk):
            raise ConfigError("text.layers works for Hugging Face text encoders only, and this teacher has another")
        keep_layers(tower.trunk.encoder, spec.layers)
        assets = {**tower.blueprint.assets, "config.json": encoder_config_bytes(tower.trunk.encoder)}
        tower.blueprint = Blueprint(tower.blueprint.kind, tower.blueprint.arguments, assets)
    if dim is not None and dim != tower.width:
        raise ConfigError(f"the teacher's text tower is {tower.width} wide but the space is {dim}: remove dim")
    return tower


def _freeze(tower: ImageTower | TextTower, train: str) -> None:
    set_trainable(tower, train == "all")
    if train == "head":
        prompts = [module for module in tower.modules() if isinstance(module, DeepPrompts)]
        for each in prompts:
            set_trainable(each, True)
        if not prompts and not any(True for _ in tower.head.parameters()):
            raise ConfigError("train: head, but this tower has no head of its own: use train: all or give it a head")
        set_trainable(tower.head, True)


def local_reference(reference: str, base: Path) -> str:
    """``package:NAME/sub`` is a folder of an installed package; an existing path wins over a hub id."""
    if reference.startswith("package:"):
        name, _, inside = reference.removeprefix("package:").partition("/")
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None or found.origin is None:
            raise ModelError(f"package '{name}' is not installed (named by '{reference}'): pip install it")
        return str(Path(found.origin).parent / inside)
    candidate = _path(reference, base)
    return str(candidate) if candidate.exists() else reference


def _path(name: str, base: Path) -> Path:
    path = Path(name).expanduser()
    return path if path.is_absolute() else base / path


def load_pair(path: Path, *, seed: int = 0) -> DualEncoder:
    """``lit:pair.yaml``: an image backbone and a text encoder, paired by heads. Paths are relative to the file."""
    from clipette.config import load_yaml

    spec = load_yaml(ModelSpec, path)
    return build_model(spec, base=path.parent, seed=seed)


def describe(spec: ModelSpec) -> str:
    """The spec as one line of JSON, for logs and cards."""
    return json.dumps(spec.model_dump(exclude_defaults=True), sort_keys=True)
