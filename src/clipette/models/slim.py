"""Convolutional towers whose blocks keep fewer of their inner channels, each as many as it is told.

The residual stream stays as wide as it was: what goes lives between two maps of one block (the expansion of an
inverted residual, the middle of a ResNet's bottleneck), between the stem and the first block, or between the last
convolution and the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from open_clip.modified_resnet import Bottleneck as ClipBottleneck
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.squeeze_excite import SEModule
from timm.models import _efficientnet_blocks as mobile
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipette.errors import ConfigError, ModelError
from clipette.models.core import Blueprint, ImageTower
from clipette.models.heads import ResidualHead

KIND = "slim_image"
KNOWN = "MobileNet, EfficientNet and ResNet, timm's or CLIP's"
Map: TypeAlias = nn.Conv2d | nn.Linear
# Writer, what handles each channel by itself, readers.
Parts: TypeAlias = tuple[Any, tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class Inner:
    """Channels of one block alone. ``writer`` makes them, ``between`` handles each by itself (in order: norms,
    depthwise convolutions, squeeze-and-excitation), and only ``readers`` use them. ``name``: the writer's path."""

    name: str
    writer: nn.Conv2d
    between: tuple[nn.Module, ...]
    readers: tuple[Map, ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.writer.out_channels

    @property
    def norm(self) -> _BatchNorm:
        """The last batch norm that they pass."""
        return next(part for part in reversed(self.between) if isinstance(part, _BatchNorm))


def open_inner(tower: ImageTower) -> tuple[Inner, ...]:
    """The inner channels of a convolutional tower, first to last; blocks of other kinds are left out.

    Raises ``ConfigError``, in words, where there are none.
    """
    found = []
    paths = {id(module): path for path, module in tower.named_modules()}
    for writer, between, readers in _found(tower):
        if _fits(writer, between, readers):
            kept = tuple(part for part in between if part is not None and not isinstance(part, nn.Identity))
            found.append(Inner(paths[id(writer)], writer, kept, tuple(readers)))
    if not found:
        raise ConfigError(
            f"a {type(tower.trunk).__name__} has no blocks with channels of their own that we know how to prune "
            f"({KNOWN}): leave image out of --towers, or prune its depth, width or hidden units"
        )
    return tuple(found)


def _found(tower: ImageTower) -> Iterator[Parts]:
    for module in tower.modules():
        if type(module) in (EfficientNet, MobileNetV3):
            yield from _stem(module)
        if type(module) in BLOCKS:
            yield from BLOCKS[type(module)](module)
    if type(tower.trunk) is EfficientNet:
        yield from _end(tower.trunk, tower.head)


def _stem(core: Any) -> Iterator[Parts]:
    """Without a skip the first block alone reads what the stem writes."""
    first = core.blocks[0][0]
    alone = type(first) is mobile.DepthwiseSeparableConv and not first.has_skip and first.conv_s2d is None
    if alone and isinstance(first.aa, nn.Identity):
        yield core.conv_stem, (core.bn1, first.conv_dw, first.bn1, first.se), (first.conv_pw,)


def _end(core: Any, head: nn.Module) -> Iterator[Parts]:
    """The last convolution's channels are averaged, and read by the head."""
    readers: tuple[nn.Module, ...] = ()
    if isinstance(head, nn.Linear):
        readers = (head,)
    elif isinstance(head, ResidualHead):
        readers = (head.linear, head.first)
    elif isinstance(head, nn.Sequential) and isinstance(head[0], nn.Linear):
        readers = (head[0],)
    pool = core.global_pool
    whole = isinstance(pool, SelectAdaptivePool2d) and pool.feat_mult() == 1
    if readers and whole and isinstance(core.classifier, nn.Identity):
        yield core.conv_head, (core.bn2,), readers


def _inverted(block: Any) -> Iterator[Parts]:
    yield block.conv_pw, (block.bn1, block.conv_dw, block.bn2, block.aa, block.se), (block.conv_pwl,)


def _edge(block: Any) -> Iterator[Parts]:
    yield block.conv_exp, (block.bn1, block.aa, block.se), (block.conv_pwl,)


def _universal(block: Any) -> Iterator[Parts]:
    first, middle = block.pw_exp, block.dw_mid
    inside = () if isinstance(middle, nn.Identity) else (middle.conv, middle.bn, middle.aa)
    yield first.conv, (first.bn, first.aa, *inside, block.se), (block.pw_proj.conv,)


def _basic(block: Any) -> Iterator[Parts]:
    yield block.conv1, (block.bn1, block.drop_block, block.aa), (block.conv2,)


def _bottleneck(block: Any) -> Iterator[Parts]:
    yield block.conv1, (block.bn1,), (block.conv2,)
    yield block.conv2, (block.bn2, block.drop_block, block.aa), (block.conv3,)


def _clip_bottleneck(block: Any) -> Iterator[Parts]:
    yield block.conv1, (block.bn1,), (block.conv2,)
    yield block.conv2, (block.bn2,), (block.conv3,)


# By exact type: a block that inherits from one of these may do more.
BLOCKS: dict[type[nn.Module], Callable[[Any], Iterator[Parts]]] = {
    mobile.InvertedResidual: _inverted,
    mobile.EdgeResidual: _edge,
    mobile.UniversalInvertedResidual: _universal,
    BasicBlock: _basic,
    Bottleneck: _bottleneck,
    ClipBottleneck: _clip_bottleneck,
}


def _fits(writer: Any, between: tuple[Any, ...], readers: tuple[Any, ...]) -> bool:
    """Whether every part is of a kind that loses a channel without changing the others."""
    if not isinstance(writer, nn.Conv2d) or writer.groups != 1:
        return False
    channels = writer.out_channels
    normed = any(isinstance(part, _BatchNorm) for part in between)
    return normed and all(_alone(part, channels) for part in between) and all(map(_plain, readers))


def _plain(reader: Any) -> bool:
    return isinstance(reader, nn.Linear) or (isinstance(reader, nn.Conv2d) and reader.groups == 1)


def _alone(part: Any, channels: int) -> bool:
    if isinstance(part, nn.Conv2d):
        return part.groups == part.in_channels == part.out_channels == channels
    if isinstance(part, SEModule):
        return isinstance(part.bn, nn.Identity)
    return part is None or isinstance(part, nn.Identity | mobile.SqueezeExcite | _BatchNorm)


def slim(tower: ImageTower, kept: Mapping[str, Tensor]) -> None:
    """Make ``tower`` smaller, in place: of the inner channels ``name`` those at the places ``kept[name]`` stay.

    Where the readers have no weights for what goes, the tower computes what it did (squeeze-and-excitation aside: it
    also looks at them). The blueprint builds the smaller tower.

    Raises ``ConfigError`` as ``open_inner``, and ``ModelError`` for a name that it does not have or no channel left.
    """
    groups = {inner.name: inner for inner in open_inner(tower)}
    for name, places in kept.items():
        if name not in groups:
            raise ModelError(f"the tower has no inner channels '{name}': it has {', '.join(groups)}")
        if not len(places):
            raise ModelError(f"'{name}' would be left without a channel")
    for name, places in kept.items():
        _cut(groups[name], places)
    old = tower.blueprint
    nested = old.kind == KIND
    inner = old.arguments["inner"] if nested else {"kind": old.kind, "arguments": dict(old.arguments)}
    channels = dict(old.arguments["channels"]) if nested else {}
    channels.update({name: groups[name].channels for name in kept})
    tower.blueprint = Blueprint(KIND, {"inner": inner, "channels": channels}, old.assets)


def shape_channels(tower: ImageTower, channels: Mapping[str, int]) -> None:
    """Give ``tower`` the sizes of a slim one; which weights it then holds means nothing.

    Raises ``ModelError`` where it has not as many channels, or not these.
    """
    sizes = {inner.name: inner for inner in open_inner(tower)}
    kept = {}
    for name, count in channels.items():
        if name in sizes and not 1 <= count <= sizes[name].channels:
            raise ModelError(f"'{name}' has {sizes[name].channels} channels and cannot keep {count}")
        kept[name] = torch.arange(count)
    slim(tower, kept)


def _cut(inner: Inner, places: Tensor) -> None:
    _rows(inner.writer, places)
    for part in inner.between:
        if isinstance(part, _BatchNorm):
            _norm(part, places)
        elif isinstance(part, nn.Conv2d):
            _rows(part, places)
            part.in_channels = part.groups = len(places)
        elif isinstance(part, SEModule):
            _columns(part.fc1, places)
            _rows(part.fc2, places)
        elif isinstance(part, mobile.SqueezeExcite):
            _columns(part.conv_reduce, places)
            _rows(part.conv_expand, places)
    for reader in inner.readers:
        _columns(reader, places)


def _rows(layer: Map, places: Tensor) -> None:
    layer.weight = _some(layer.weight, places)
    if layer.bias is not None:
        layer.bias = _some(layer.bias, places)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(places)
    else:
        layer.out_features = len(places)


def _columns(layer: Map, places: Tensor) -> None:
    layer.weight = _some(layer.weight, places, axis=1)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = len(places)
    else:
        layer.in_features = len(places)


def _norm(norm: _BatchNorm, places: Tensor) -> None:
    if norm.affine:
        norm.weight, norm.bias = _some(norm.weight, places), _some(norm.bias, places)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean = norm.running_mean[places.to(norm.running_mean.device)].clone()
        norm.running_var = norm.running_var[places.to(norm.running_var.device)].clone()
    norm.num_features = len(places)


def _some(parameter: Tensor, places: Tensor, axis: int = 0) -> nn.Parameter:
    value = parameter.detach().index_select(axis, places.to(parameter.device))
    return nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)
