"""What corresponds to what in two networks of one family: layers, and the groups of channels by which they are cut.

A *group* is a set of channels that many tensors share: "stream" is the residual stream of a whole network,
"blocks.3:heads" the attention heads of one layer. All that writes to a channel and all that reads it name its group
here, so that they keep the same channels. An axis k times as long as its group holds k of it, one after the other (q,
k, v; the two halves of a gated MLP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from open_clip.transformer import VisionTransformer as ClipVisionTransformer
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.squeeze_excite import SEModule
from timm.models import _efficientnet_blocks as mobile
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import Attention, VisionTransformer  # type: ignore[attr-defined]  # moves about
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from clipette.errors import ModelError

Axes = tuple[str, ...]
Table = tuple[tuple[str, str], ...]

# Name of a tensor inside its model → the group of each axis. These are cut:
#   stream · heads, hidden (one group per layer)   by the leading ones or by norm
#   space · positions · channels · pooled          always by the leading ones
#   grid                                           image positions, interpolated
# Any other word says what the axis is, and has to be the same in both models.
NORM = r"\.(?:weight|bias)"
AT = r"(?P<at>blocks\.\d+|transformer\.resblocks\.\d+|encoder\.layer\.\d+|attn_pool)\."
LAYERS: Table = (
    (rf"{AT}((norm[12]?|ln_[12]|(attention\.)?output\.LayerNorm){NORM}|ls_?[12]\.gamma)", "stream"),
    (rf"{AT}(attn\.qkv|attn\.gate|attention\.self\.(query|key|value)|kv|q)\.weight", "heads stream"),
    (rf"{AT}(attn\.qkv|attn\.gate|attention\.self\.(query|key|value)|kv|q)\.bias", "heads"),
    (rf"{AT}attn\.in_proj_weight", "heads stream"),
    (rf"{AT}(attn\.in_proj_bias|attn\.norm{NORM})", "heads"),
    (rf"{AT}((attn\.)?proj|attn\.out_proj|attention\.output\.dense)\.weight", "stream heads"),
    (rf"{AT}((attn\.)?proj|attn\.out_proj|attention\.output\.dense)\.bias", "stream"),
    (rf"{AT}(mlp\.fc1(_g|_x)?|mlp\.c_fc|intermediate\.dense)\.weight", "hidden stream"),
    (rf"{AT}((mlp\.fc1(_g|_x)?|mlp\.c_fc|intermediate\.dense)\.bias|mlp\.norm{NORM})", "hidden"),
    (rf"{AT}(mlp\.fc2|mlp\.c_proj|output\.dense)\.weight", "stream hidden"),
    (rf"{AT}(mlp\.fc2|mlp\.c_proj|output\.dense)\.bias", "stream"),
)
TRANSFORMERS: dict[type[nn.Module], Table] = {
    VisionTransformer: (
        *LAYERS,
        (r"(cls|reg|dist)_token|attn_pool\.latent", "1 tokens stream"),
        (r"pos_embed", "1 grid stream"),
        (r"patch_embed\.proj\.weight", "stream image-channels patch patch"),
        (rf"patch_embed\.proj\.bias|(patch_embed\.norm|norm|norm_pre|fc_norm){NORM}", "stream"),
        (r"head\.weight", "classes stream"),
    ),
    ClipVisionTransformer: (
        *LAYERS,
        (r"positional_embedding", "grid stream"),
        (r"conv1\.weight", "stream image-channels patch patch"),
        (rf"class_embedding|ln_(pre|post){NORM}", "stream"),
        (r"proj", "stream space"),
    ),
    TextTransformer: (
        *LAYERS,
        (r"token_embedding\.weight", "vocabulary stream"),
        (r"positional_embedding", "positions stream"),
        (rf"cls_emb|ln_final{NORM}", "stream"),
        (r"text_projection", "stream space"),
        (r"text_projection\.weight", "space stream"),
        (r"text_projection\.bias", "space"),
    ),
    PreTrainedModel: (
        *LAYERS,
        (r"embeddings\.word_embeddings\.weight", "vocabulary stream"),
        (r"embeddings\.position_embeddings\.weight", "positions stream"),
        (r"embeddings\.token_type_embeddings\.weight", "token-types stream"),
        (rf"embeddings\.LayerNorm{NORM}", "stream"),
        (r"pooler\.dense\.weight", "pooled stream"),
        (r"pooler\.dense\.bias", "pooled"),
    ),
}
# What follows the trunk; "out" is the group of its output. Clipette's heads, open_clip's maps over others' trunks.
HEADS: Table = (
    (r"(.*\.)?head\.(linear\.)?weight|(.*\.)?proj\.weight", "space out"),
    (r"(.*\.)?head\.((linear|second|3|4)\.)?bias|(.*\.)?proj\.bias", "space"),
    (r"(?P<at>.*\bhead)\.(first|0)\.weight", "hidden out"),
    (r"(?P<at>.*\bhead)\.((first|0)\.bias|1\.(weight|bias|running_mean|running_var))", "hidden"),
    (r"(?P<at>.*\bhead)\.(second|3)\.weight", "space hidden"),
    # A projector of three layers: the second's hidden units are others than the first's.
    (r"(?P<at>.*\bhead)\.3\.0\.weight", "3:hidden hidden"),
    (r"(?P<at>.*\bhead)\.3\.(0\.bias|1\.(weight|bias|running_mean|running_var))", "3:hidden"),
    (r"(?P<at>.*\bhead)\.4\.weight", "space 3:hidden"),
)
CONVOLUTIONAL: tuple[type[nn.Module], ...] = (ResNet, EfficientNet, MobileNetV3)
FAMILIES: tuple[type[nn.Module], ...] = (*TRANSFORMERS, *CONVOLUTIONAL)
SKIPPING = (
    *(mobile.InvertedResidual, mobile.DepthwiseSeparableConv, mobile.EdgeResidual),
    *(mobile.ConvBnAct, mobile.UniversalInvertedResidual),
)
# Modules that keep channels in their order: no splitting, joining or shuffling, behind which the leading channels would
# be others than before.
ORDERED = (
    *(*CONVOLUTIONAL, *SKIPPING, BasicBlock, Bottleneck, SEModule, mobile.SqueezeExcite, ConvNormAct),
    *(nn.Sequential, SelectAdaptivePool2d),
)
UNKNOWN = "layout"


def axes_of(core: nn.Module, name: str, tensor: Tensor) -> Axes:
    """The group of each axis of the backbone's tensor ``name``; ``layout`` where no rule is known."""
    if not isinstance(core, CONVOLUTIONAL):
        table = next((rules for kind, rules in TRANSFORMERS.items() if isinstance(core, kind)), ())
        axes = _look_up(table, name, tensor)
        # open_clip's class embedding stands behind the words: the last position is its own.
        behind = isinstance(core, TextTransformer) and core.cls_emb is not None
        return tuple("tokens" if behind and axis == "positions" else axis for axis in axes)
    owner = core.get_submodule(name.rpartition(".")[0])
    axes = (UNKNOWN,) * tensor.ndim
    if isinstance(owner, nn.Conv2d):
        first = next(module for module in core.modules() if isinstance(module, nn.Conv2d))
        axes = ("channels", "image-channels" if owner is first else "channels", "kernel", "kernel")
    elif isinstance(owner, _BatchNorm):
        axes = ("channels",)
    elif isinstance(owner, nn.Linear):
        axes = ("classes", "channels")
    return axes[: tensor.ndim]


def head_axes(core: nn.Module, name: str, tensor: Tensor) -> Axes:
    """The same for a tensor outside the backbone: a tower's head."""
    return tuple(output_of(core) if axis == "out" else axis for axis in _look_up(HEADS, name, tensor))


def _look_up(table: Table, name: str, tensor: Tensor) -> Axes:
    for pattern, words in table:
        found = re.fullmatch(pattern, name)
        if found and len(words.split()) == tensor.ndim:
            at = found.groupdict().get("at")
            own = ("heads", "hidden")
            return tuple(f"{at}:{word}" if word.rpartition(":")[2] in own else word for word in words.split())
    return (UNKNOWN,) * tensor.ndim


def output_of(core: nn.Module) -> str:
    """The group of the backbone's output."""
    if isinstance(core, CONVOLUTIONAL):
        return "channels"
    if projection_of(core) is not None:
        return "space"
    return "stream" if isinstance(core, FAMILIES) else UNKNOWN


def projection_of(core: nn.Module) -> Any:
    """What open_clip's own transformers end with, a parameter [width, space] or a linear layer; else ``None``."""
    if isinstance(core, ClipVisionTransformer):
        return core.proj
    return core.text_projection if isinstance(core, TextTransformer) else None


def head_width(core: nn.Module, at: str) -> int | None:
    """Channels of each attention head in the layer ``at``; ``None`` for attention of an unknown kind."""
    if isinstance(core, PreTrainedModel):
        return int(core.config.hidden_size) // int(core.config.num_attention_heads)
    for module in core.get_submodule(at).modules():
        # Without a projection of its own the query of a pool is no stream, and the rules do not hold.
        bare = isinstance(module, AttentionPoolLatent) and isinstance(module.q, nn.Identity)
        if isinstance(module, nn.MultiheadAttention | Attention | AttentionPoolLatent) and not bare:
            return int(module.head_dim)
    return None


def grid_of(core: nn.Module) -> tuple[int, int]:
    """Patches (down, across) of an image transformer."""
    visual: Any = core
    down, across = visual.patch_embed.grid_size if isinstance(core, VisionTransformer) else visual.grid_size
    return int(down), int(across)


def check_order(core: nn.Module) -> None:
    """Raises ``ModelError`` where a convolutional backbone holds a part behind which channels may be reordered."""
    for path, module in core.named_modules():
        leaf = not any(True for _ in module.children()) or isinstance(module, _BatchNorm)
        pooled = isinstance(module, SelectAdaptivePool2d) and module.feat_mult() != 1
        if pooled or not (leaf or type(module) in ORDERED):
            raise ModelError(
                f"'{path}', a {type(module).__name__}, may join or reorder channels, so that a {type(core).__name__} "
                "with it cannot be cut: give the student its teacher's channels, and fewer layers"
            )


@dataclass(frozen=True)
class Match:
    """Module paths, student's → teacher's; kept layers by stack; prefixes of the teacher's dropped layers."""

    paths: dict[str, str] = field(default_factory=dict)
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def spread(kept: int, layers: int) -> tuple[int, ...]:
    """``kept`` of ``layers`` places, evenly spread, first and last among them; one alone is the first."""
    if kept == 1:
        return (0,)
    return tuple((2 * i * (layers - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept))


def join(*parts: str) -> str:
    """A dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


def _is_stack(module: nn.Module) -> bool:
    """A list of layers, each a module of several parts; not a chain of operations, nor of stages."""
    inner = list(module.children())
    whole = all(any(True for _ in layer.children()) and not isinstance(layer, nn.Sequential) for layer in inner)
    return isinstance(module, nn.Sequential | nn.ModuleList) and bool(inner) and whole


def match_layers(student: nn.Module, teacher: nn.Module) -> Match:
    """The student's modules with their counterparts, by name, and by place in stacks of layers (``spread``).

    Raises ``ModelError`` where a stack has more layers than the teacher's.
    """
    match = Match()
    open_ends = [("", "", student, teacher)]
    while open_ends:
        mine, theirs, small, large = open_ends.pop()
        match.paths[mine] = theirs
        inner, outer = dict(small.named_children()), dict(large.named_children())
        names = {name: name for name in inner if name in outer}
        if _is_stack(small) and _is_stack(large):
            if len(inner) > len(outer):
                raise ModelError(
                    f"'{mine}' has {len(inner)} layers in the student and {len(outer)} in its teacher: a student "
                    "inherits from a model of at least as many layers"
                )
            match.layers[mine] = spread(len(inner), len(outer))
            names = dict(zip(inner, (list(outer)[i] for i in match.layers[mine]), strict=True))
            match.dropped.extend(f"{join(theirs, name)}." for name in outer if name not in names.values())
        for name, other in reversed(names.items()):
            open_ends.append((join(mine, name), join(theirs, other), inner[name], outer[other]))
    return match


def compare(mine: nn.Module, theirs: nn.Module, match: Match) -> list[str]:
    """What shapes do not show: skip connections of one side alone, as notes.

    Raises ``ModelError`` where convolutions differ in their stride or the size of their groups.
    """
    notes = []
    for path, other in match.paths.items():
        small, large = mine.get_submodule(path), theirs.get_submodule(other)
        if isinstance(small, nn.Conv2d) and isinstance(large, nn.Conv2d):
            sizes = [(conv.weight.shape[1], conv.out_channels // conv.groups) for conv in (small, large)]
            # Leading groups are leading channels only where the groups are of one size.
            grouped = [("channels per group (in, out)", *sizes)] if small.groups > 1 or large.groups > 1 else []
            for what, mine_is, theirs_is in [("stride", small.stride, large.stride), *grouped]:
                if mine_is != theirs_is:
                    raise ModelError(
                        f"the convolution '{path}' has {what} {mine_is} in the student and {theirs_is} in its teacher: "
                        "give the student its teacher's"
                    )
        if isinstance(small, SKIPPING) and isinstance(large, SKIPPING) and small.has_skip != large.has_skip:
            notes.append(f"{path}: the {'student' if small.has_skip else 'teacher'} alone adds the block's input here")
    return notes


def plain_shortcut(mine: nn.Module, theirs: nn.Module, match: Match, name: str) -> Tensor | None:
    """``name``'s counterpart where the student's residual block maps its shortcut and the teacher's adds its input.

    timm's stem keeps its 64 channels when the layers become narrower: ResNet-18 has no map there, a narrow one has.
    The map that changes nothing stands for the missing one, and is cut as the teacher's channels are.
    """
    path, inside, _ = name.partition(".downsample.")
    owner, _, leaf = name.rpartition(".")
    large = theirs.get_submodule(match.paths[path]) if inside and path in match.paths else None
    if not isinstance(large, BasicBlock | Bottleneck) or large.downsample is not None:
        return None
    channels, part = large.conv1.in_channels, mine.get_submodule(owner)
    if not isinstance(part, _BatchNorm):
        return torch.eye(channels)[:, :, None, None]
    ones = torch.ones(channels, dtype=torch.float64)
    identity = {"weight": ones, "bias": 0 * ones, "running_mean": 0 * ones, "running_var": (1 - part.eps) * ones}
    return identity.get(leaf, torch.tensor(0))
