"""Blueprints of smaller towers: the same family with fewer layers, channels and hidden units.

What the smaller tower inherits of the larger one's weights is ``models/inherit.py``'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
from timm.layers.mlp import GluMlp, Mlp
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import Attention, VisionTransformer  # type: ignore[attr-defined]  # moves about

from clipette.errors import ConfigError
from clipette.models.core import Blueprint, ImageTower, TextTower
from clipette.models.open_clip_models import HF_TEXT_CONFIG
from clipette.models.rebuild import build_tower
from clipette.models.students import make_timm, probe_width

Arguments = Mapping[str, Any]
Assets = Mapping[str, bytes]
# Channels and hidden units come in multiples of this: what vector units like.
STEP = 8
# Shares by which a sister of the family is chosen.
SISTERS = ("depth", "width", "hidden")


@dataclass(frozen=True, slots=True)
class Shares:
    """What remains, from 0 (excluded) to 1. ``depth``: of the layers, at least one; ``width``: of the channels, heads
    and hidden units, in whole heads; ``hidden``: of each transformer layer's hidden units, beyond ``width``; ``macs``:
    of a convolutional image tower's multiply-adds, by fewer channels inside its blocks (``export/channels.py``).
    ``size``: the side of the images, in pixels, where it becomes another; multiply-adds that it saves count."""

    depth: float = 1.0
    width: float = 1.0
    hidden: float = 1.0
    macs: float = 1.0
    size: int | None = None

    def __post_init__(self) -> None:
        for name in (*SISTERS, "macs"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is no share: more than 0, at most 1")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size: {self.size} is no number of pixels")

    def __str__(self) -> str:
        named = {name: getattr(self, name) for name in (*SISTERS, "macs")}
        said = [f"{name} {value:.3g}" for name, value in named.items() if value < 1]
        if self.size is not None:
            said.append(f"{self.size} px")
        return ", ".join(said) or "nothing pruned"

    def milder(self) -> Shares:
        """Half of what goes stays; the images are as large."""
        return replace(self, **{name: (1 + getattr(self, name)) / 2 for name in (*SISTERS, "macs")})

    def resizes(self, tower: ImageTower | TextTower) -> bool:
        """Whether ``tower`` is to see images of another size."""
        return isinstance(tower, ImageTower) and self.size is not None and tower.preprocess.size != (self.size,) * 2

    def layers(self, count: int) -> int:
        """How many of ``count`` layers remain."""
        return max(1, round(self.depth * count))

    def heads(self, count: int) -> int:
        """How many of ``count`` heads remain."""
        return max(1, round(self.width * count))

    def units(self, count: int, *, width: float) -> int:
        """How many of ``count`` hidden units remain where the channels come down to the share ``width``."""
        return _stepped(count * width * self.hidden, count)

    def channels(self, count: int) -> int:
        """How many of ``count`` channels remain."""
        return _stepped(count * self.width, count)


def _stepped(wanted: float, most: int) -> int:
    return most if wanted >= most else min(most, max(STEP, STEP * round(wanted / STEP)))


def smaller_tower(tower: ImageTower | TextTower, shares: Shares) -> ImageTower | TextTower | None:
    """An untrained tower of the asked size, in the space of ``tower``; None where nothing would be smaller.

    Raises ``ConfigError`` in words for towers that cannot be pruned so.
    """
    old = tower.blueprint
    if all(getattr(shares, name) == 1 for name in SISTERS) and not shares.resizes(tower):
        return None
    if shares.resizes(tower) and old.kind not in RESIZED:
        raise ConfigError(
            f"size: a '{old.kind}' tower cannot be built for images of another size; timm's can: leave --size out"
        )
    if old.kind not in SHRINKERS:
        raise ConfigError(
            f"a '{old.kind}' tower cannot be pruned: prune the model that it was made of, or leave it out of --towers"
        )
    arguments, assets = SHRINKERS[old.kind](old.arguments, old.assets, tower, shares)
    if arguments == old.arguments and assets == old.assets:
        return None
    return build_tower(Blueprint(old.kind, arguments, assets))


def _check_end(fewer: bool, side: str) -> None:
    if fewer:
        raise ConfigError(
            f"the {side} tower ends in its own channels, without a head: fewer would be another space; prune its depth "
            "or its hidden units"
        )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a transformer. int(width · ratio) is the hidden units."""

    layers: int
    heads: int
    width: int
    hidden: int
    ratio: float


def _transformer(shares: Shares, *, layers: int, heads: int, head_width: int, hidden: int) -> _Sizes:
    fewer = shares.heads(heads)
    width = fewer * head_width
    units = shares.units(hidden, width=fewer / heads)
    # Exactly the old ratio where it stays: equal arguments build equal towers.
    ratio = hidden / (heads * head_width) if units * heads == hidden * fewer else (units + 0.5) / width
    return _Sizes(shares.layers(layers), fewer, width, units, ratio)


def _only(shares: Shares, what: str, *allowed: str) -> None:
    for name in SISTERS:
        if getattr(shares, name) < 1 and name not in allowed:
            raise ConfigError(f"{name}: of {what} only the {' and the '.join(allowed)} can be pruned: leave it out")


def _changes(sizes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """What is new, of {name: (old, new)}: what stays is not even written down."""
    return {name: new for name, (old, new) in sizes.items() if new != old}


def _timm(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    trunk, name = tower.trunk, arguments["name"]
    changes: dict[str, Any] = {}
    arguments = _resized(arguments, shares)
    if isinstance(trunk, VisionTransformer):
        changes = _timm_vit(trunk, shares)
    elif isinstance(trunk, ResNet):
        _only(shares, "a ResNet", "depth", "width")
        changes = _resnet(trunk, shares)
    elif isinstance(trunk, EfficientNet | MobileNetV3):
        _only(shares, f"a {type(trunk).__name__}", "width")
        name = _narrower(name, shares)
    elif any(getattr(shares, each) < 1 for each in SISTERS):
        raise ConfigError(
            f"a {type(trunk).__name__} has no size that we know to reduce: prune timm's VisionTransformer, ResNet, "
            "MobileNet and EfficientNet, or leave image out of --towers"
        )
    if name == arguments["name"] and not changes:
        return arguments, assets
    args = {**arguments["args"], **changes}
    width = probe_width(make_timm(name, dict(args), tuple(arguments["size"])), tower.preprocess)
    _check_end(width != arguments["width"] and arguments["head"]["kind"] == "none", "image")
    return {**arguments, "name": name, "args": args, "width": width}, assets


def _resized(arguments: Arguments, shares: Shares) -> Arguments:
    size, cut = shares.size, arguments["preprocess"]
    if size is None or list(cut["size"]) == [size, size]:
        return arguments
    shorter = cut.get("shorter")
    if shorter is not None:
        shorter = max(size, round(shorter * size / max(cut["size"])))
    return {**arguments, "size": [size, size], "preprocess": {**cut, "size": [size, size], "shorter": shorter}}


def _slim(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    if any(getattr(shares, name) < 1 for name in SISTERS) or arguments["inner"]["kind"] != "timm":
        raise ConfigError(
            "a tower with fewer channels in its blocks has no smaller sisters: prune the model that it was made of, "
            "or lower --macs"
        )
    inner = {**arguments["inner"], "arguments": _resized(arguments["inner"]["arguments"], shares)}
    return {**arguments, "inner": inner}, assets


def _timm_vit(trunk: Any, shares: Shares) -> dict[str, Any]:
    block: Any = trunk.blocks[0]
    if type(block.attn) is not Attention or not isinstance(block.mlp, Mlp | GluMlp):
        inside = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
        raise ConfigError(
            f"a VisionTransformer of {inside} has no size that we know to reduce: leave image out of --towers"
        )
    up: Any = block.mlp.fc1
    layers, heads, hidden = len(trunk.blocks), int(block.attn.num_heads), int(up.out_features)
    made = _transformer(shares, layers=layers, heads=heads, head_width=int(block.attn.head_dim), hidden=hidden)
    return _changes(
        {
            "depth": (layers, made.layers),
            "num_heads": (heads, made.heads),
            "embed_dim": (int(trunk.embed_dim), made.width),
            "mlp_ratio": (hidden / trunk.embed_dim, made.ratio),
        }
    )


def _resnet(trunk: Any, shares: Shares) -> dict[str, Any]:
    stages = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
    last = [stage[0].conv3 if isinstance(stage[0], Bottleneck) else stage[0].conv2 for stage in stages]
    planes = [conv.out_channels // stage[0].expansion for conv, stage in zip(last, stages, strict=True)]
    blocks = [len(stage) for stage in stages]
    return _changes(
        {
            "layers": (blocks, [shares.layers(count) for count in blocks]),
            "channels": (planes, [shares.channels(count) for count in planes]),
        }
    )


def _narrower(name: str, shares: Shares) -> str:
    """timm writes the width into these names: ``mobilenetv2_100``. The widest of at most the asked share."""
    if shares.width == 1:
        return name
    found = re.fullmatch(r"(.*_)(\d{3})", name)
    if found is None:
        raise ConfigError(f"width: timm's '{name}' has no narrower sisters (names that end in _050, _075, ...)")
    stem, percent = found[1], int(found[2])
    sisters = [other for other in timm.list_models(f"{stem}*") if re.fullmatch(rf"{re.escape(stem)}\d{{3}}", other)]
    fitting = [other for other in sisters if int(other[-3:]) <= percent * shares.width + 0.5]
    if not fitting:
        raise ConfigError(f"width: the narrowest of '{name}' that timm has is {min(sisters)}: name a larger share")
    return max(fitting)


def _open_clip_image(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    vision = dict(arguments["vision_cfg"])
    layers = vision.get("layers", 12)
    if vision.get("timm_model_name"):
        _only(shares, "open_clip's timm towers", "width")
        changes: dict[str, Any] = {"timm_model_name": _narrower(vision["timm_model_name"], shares)}
    elif isinstance(layers, list | tuple):
        _only(shares, "CLIP's ResNet", "depth")
        changes = {"layers": [shares.layers(count) for count in layers]}
    else:
        width, head_width = int(vision.get("width", 768)), int(vision.get("head_width", 64))
        ratio = float(vision.get("mlp_ratio", 4.0))
        hidden = int(width * ratio)
        made = _transformer(shares, layers=layers, heads=width // head_width, head_width=head_width, hidden=hidden)
        changes = _changes(
            {"layers": (layers, made.layers), "width": (width, made.width), "mlp_ratio": (ratio, made.ratio)}
        )
    return {**arguments, "vision_cfg": {**vision, **changes}}, assets


def _open_clip_text(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    text = dict(arguments["text_cfg"])
    if text.get("hf_model_name"):
        return arguments, {**assets, HF_TEXT_CONFIG: _bert(assets[HF_TEXT_CONFIG], shares)[0]}
    width, heads, layers = int(text.get("width", 512)), int(text.get("heads", 8)), int(text.get("layers", 12))
    ratio = float(text.get("mlp_ratio", 4.0))
    made = _transformer(shares, layers=layers, heads=heads, head_width=width // heads, hidden=int(width * ratio))
    _check_end(made.width != width and text.get("proj_type") == "none", "text")
    changes = _changes(
        {
            "layers": (layers, made.layers),
            "heads": (heads, made.heads),
            "width": (width, made.width),
            "mlp_ratio": (ratio, made.ratio),
        }
    )
    return {**arguments, "text_cfg": {**text, **changes}}, assets


def _small_text(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    _only(shares, "small text towers", "depth", "width")
    heads = shares.heads(arguments["heads"])
    width = heads * (arguments["width"] // arguments["heads"])
    _check_end(width != arguments["width"] and arguments["head"]["kind"] == "none", "text")
    return {**arguments, "layers": shares.layers(arguments["layers"]), "heads": heads, "width": width}, assets


def _hf_text(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    config, width = _bert(assets["config.json"], shares)
    _check_end(width != arguments["width"] and arguments["head"]["kind"] == "none", "text")
    return {**arguments, "width": width}, {**assets, "config.json": config}


def _bert(config: bytes, shares: Shares) -> tuple[bytes, int]:
    """(a smaller configuration, its width)."""
    values = json.loads(config)
    changes = _config_changes(values, shares)
    smaller = {**values, **changes}
    return json.dumps(smaller, sort_keys=True).encode() if changes else config, int(smaller["hidden_size"])


def _config_changes(values: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    if any(not isinstance(values.get(name), int) for name in names):
        kind = values.get("model_type", "this")
        raise ConfigError(f"a '{kind}' tower does not state its layers, heads and widths as BERT does: not supported")
    layers, heads, width, hidden = (values[name] for name in names)
    made = _transformer(shares, layers=layers, heads=heads, head_width=width // heads, hidden=hidden)
    new = (made.layers, made.heads, made.width, made.hidden)
    return _changes(dict(zip(names, zip((layers, heads, width, hidden), new, strict=True), strict=True)))


def _transformers(part: str) -> Callable[[Arguments, Assets, Any, Shares], tuple[Arguments, Assets]]:
    def shrink(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
        _only(shares, "transformers' own towers", "depth")
        config = dict(arguments["config"])
        inner = config[part]
        return {**arguments, "config": {**config, part: {**inner, **_config_changes(inner, shares)}}}, assets

    return shrink


def _headed(arguments: Arguments, assets: Assets, tower: Any, shares: Shares) -> tuple[Arguments, Assets]:
    made = smaller_tower(tower.trunk, shares)
    if made is None:
        return arguments, assets
    inner = {"kind": made.blueprint.kind, "arguments": dict(made.blueprint.arguments)}
    return {**arguments, "inner": inner}, {**assets, **made.blueprint.assets}


# Towers that can be built for images of another size.
RESIZED = ("timm", "headed_image", "slim_image")
SHRINKERS: dict[str, Callable[[Arguments, Assets, Any, Shares], tuple[Arguments, Assets]]] = {
    "timm": _timm,
    "hf_text": _hf_text,
    "small_text": _small_text,
    "slim_image": _slim,
    "headed_image": _headed,
    "headed_text": _headed,
    "open_clip_image": _open_clip_image,
    "open_clip_text": _open_clip_text,
    "transformers_image": _transformers("vision_config"),
    "transformers_text": _transformers("text_config"),
}
