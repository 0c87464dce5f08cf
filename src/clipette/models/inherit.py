"""Weight inheritance: a small model starts from the weights of a larger, trained one of its family.

TinyCLIP (Wu et al., ICCV 2023), manual mode: of every layer some channels, heads and hidden units are kept, of every
stack some layers, evenly spread. What belongs together is said in ``inherit_rules.py``.

The paper's automatic mode, which learns what to keep, is ``tasks/masks.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from clipette.errors import ConfigError, ModelError
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.inherit_rules import (
    CONVOLUTIONAL,
    FAMILIES,
    UNKNOWN,
    Match,
    axes_of,
    check_order,
    compare,
    grid_of,
    head_axes,
    head_width,
    join,
    match_layers,
    output_of,
    plain_shortcut,
    projection_of,
)
from clipette.runtime.words import WordTokenizer
from clipette.types import Tokenizer

By = Literal["leading", "norm"]

# Ends of a trunk that another trunk of its family may lack: nothing behind them depends on them.
ENDS = ("proj", "text_projection", "pooler", "head", "fc", "classifier")
SAME_FAMILY = "the two must be of one family, with the same parts in every layer"
# Groups cut by one choice for all who share them, and axes of which the leading entries are kept.
CHOSEN, LEADING = ("stream", "heads", "hidden"), ("space", "positions", "channels", "pooled")
LINEAR = r"(.*\.)?(head\.(linear\.)?|proj\.)weight"
PROBES = ("dog", "a red car", "two cats!")


@dataclass(frozen=True)
class InheritReport:
    """Tensors (parameters and running statistics) by what became of them, and which layers of each stack were kept.

    ``whole``: equal to the teacher's. ``cut``: some of the teacher's rows and columns, an interpolated position table,
    or the identity for a ResNet's shortcut that only the student maps. ``initialised``: without a counterpart, left as
    they were. ``layers``: stack → the teacher's layer for each of the student's. ``notes``: where the two compute
    differently although their weights fit.
    """

    whole: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = f": {', '.join(self.initialised)}" if self.initialised else ""
        counts = f"{len(self.whole)} tensors inherited whole, {len(self.cut)} cut"
        return f"{counts}, {len(self.initialised)} left as initialised{left}"


@dataclass(frozen=True)
class _Pair:
    """A tensor of the student's, its counterpart (of a kept layer), and the group of each axis."""

    name: str
    mine: Tensor
    theirs: Tensor
    axes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    values: tuple[tuple[_Pair, Tensor], ...]
    initialised: tuple[str, ...]
    layers: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def write(self, prefix: str = "") -> InheritReport:
        with torch.no_grad():
            for pair, value in self.values:
                pair.mine.copy_(value)
        return InheritReport(
            whole=tuple(prefix + pair.name for pair, value in self.values if value is pair.theirs),
            cut=tuple(prefix + pair.name for pair, value in self.values if value is not pair.theirs),
            initialised=tuple(prefix + name for name in self.initialised),
            layers={prefix + stack: kept for stack, kept in self.layers.items()},
            notes=tuple(prefix + note for note in self.notes),
        )


def inherit_model(
    student: DualEncoder, teacher: DualEncoder, *, by: By = "leading", towers: Collection[str] = ("image", "text")
) -> InheritReport:
    """``inherit`` for each of ``towers`` that both models have; the logit scale (and bias) is copied.

    A tower that inherits nothing is reported as initialised. Raises as ``inherit``, and ``ModelError`` where the text
    towers number their tokens differently or no tower is shared.
    """
    sides: dict[str, tuple[Any, Any]] = {
        "image": (student.image, teacher.image),
        "text": (student.text, teacher.text),
    }
    if unknown := sorted(set(towers) - set(sides)):
        raise ConfigError(f"towers: '{unknown[0]}' is neither image nor text")
    shared = {side: pair for side, pair in sides.items() if side in towers and None not in pair}
    if not shared:
        raise ModelError(f"student and teacher share no {' or '.join(towers)} tower: there is nothing to inherit")
    if "text" in shared:
        _check_tokens(student.text_tower().tokenizer, teacher.text_tower().tokenizer)
    # All are planned before one is written to: a refusal leaves the student as it was.
    plans = {side: _plan(mine, theirs, by) for side, (mine, theirs) in shared.items()}
    alone = [(side, mine) for side, (mine, _) in sides.items() if mine is not None and side not in plans]
    rest = [f"{side}.{name}" for side, mine in alone for name in mine.state_dict()]
    reports = [plan.write(f"{side}.") for side, plan in plans.items()]
    logits = ["logit_scale"]
    with torch.no_grad():
        student.logit_scale.copy_(teacher.logit_scale)
        if student.logit_bias is not None:
            if teacher.logit_bias is not None:
                student.logit_bias.copy_(teacher.logit_bias)
            (rest if teacher.logit_bias is None else logits).append("logit_bias")
    return InheritReport(
        whole=(*(name for report in reports for name in report.whole), *logits),
        cut=tuple(name for report in reports for name in report.cut),
        initialised=(*(name for report in reports for name in report.initialised), *rest),
        layers={stack: kept for report in reports for stack, kept in report.layers.items()},
        notes=tuple(note for report in reports for note in report.notes),
    )


def inherit(student: nn.Module, teacher: nn.Module, *, by: By = "leading") -> InheritReport:
    """Copy a larger model's weights into a smaller one of its family, in place (TinyCLIP, manual mode).

    ``student``, ``teacher``: two towers, trunks or bare backbones. Backbones that can be cut: timm's VisionTransformer,
    ResNet, MobileNet and EfficientNet, open_clip's own image and text transformers, BERT-like encoders; any other
    inherits whole layers. A stack of fewer layers takes the teacher's evenly spread, first and last among them. ``by``:
    ``leading`` channels, heads and hidden units, or (transformers) those of largest ``norm``: the residual stream once
    for the whole network by the summed L2 norms of the weights that write to it, heads and hidden units in their layer.

    Image position tables of another grid are interpolated as timm does. A head of another kind than the teacher's stays
    as initialised, except that its linear part takes the teacher's linear projection. Activations and whatever else has
    no weights are the student's own. Two equal architectures become equal models.

    Raises ``ModelError`` where the two are of different families, the student is larger in some axis, or an axis
    (heads' width, patches, vocabulary) cannot be cut; ``ConfigError`` for ``by: norm`` on convolutions. Either way the
    student is left as it was.
    """
    if isinstance(student, DualEncoder) and isinstance(teacher, DualEncoder):
        return inherit_model(student, teacher, by=by)
    return _plan(student, teacher, by).write()


def _plan(student: nn.Module, teacher: nn.Module, by: str) -> _Plan:
    if by not in ("leading", "norm"):
        raise ConfigError(f"by: '{by}' is unknown: choose leading or norm")
    (here, mine), (there, theirs) = _core(student), _core(teacher)
    family = type(mine).__name__
    if type(mine) is not type(theirs):
        raise ModelError(
            f"the student is a {family}, its teacher a {type(theirs).__name__}: weights are inherited within a family"
        )
    if by == "norm" and isinstance(mine, CONVOLUTIONAL):
        raise ConfigError(f"by: norm ranks the channels of transformers only, and this is a {family}: use by: leading")
    match = match_layers(mine, theirs)
    inside = _core_pairs(mine, theirs, match, here)
    notes = compare(mine, theirs, match)
    outside = _head_pairs(_outside(student, here), _outside(teacher, there), mine, theirs)
    pairs = [*inside, *outside]
    for pair in pairs:
        _check_sizes(pair, mine)
    if isinstance(mine, CONVOLUTIONAL) and any(pair.mine.shape != pair.theirs.shape for pair in pairs):
        for core in (mine, theirs):
            check_order(core)
    kept = _kept(pairs, by, mine, theirs, match)
    named = {pair.name for pair in pairs}
    return _Plan(
        values=tuple((pair, _cut(pair, kept, mine, theirs)) for pair in pairs),
        initialised=tuple(name for name in student.state_dict() if name not in named),
        layers={join(here, stack): places for stack, places in match.layers.items()},
        notes=tuple(join(here, note) for note in notes),
    )


def _core(module: nn.Module) -> tuple[str, nn.Module]:
    """The backbone inside a tower or trunk, and its path there; the trunk itself where the family is unknown."""
    path, part = "", module
    while isinstance(part, ImageTower | TextTower):
        path, part = join(path, "trunk"), part.trunk
    for inner, found in part.named_modules():
        if isinstance(found, FAMILIES):
            return join(path, inner), found
    return path, part


def _core_pairs(mine: nn.Module, theirs: nn.Module, match: Match, here: str) -> list[_Pair]:
    """Every tensor of the backbone with its counterpart. Raises where one side has no place in the other."""
    small, large = mine.state_dict(), theirs.state_dict()
    pairs, used = [], set()
    for name, tensor in small.items():
        owner, _, leaf = name.rpartition(".")
        origin = join(match.paths.get(owner, "?"), leaf)
        value = large[origin] if origin in large else plain_shortcut(mine, theirs, match, name)
        if value is None:
            raise ModelError(f"the student's '{join(here, name)}' has no counterpart in its teacher: {SAME_FAMILY}")
        used.add(origin)
        pairs.append(_Pair(join(here, name), tensor, value, axes_of(mine, name, tensor)))
    for name in large:
        if name not in used and not name.startswith(tuple(match.dropped)) and name.split(".")[0] not in ENDS:
            raise ModelError(f"the teacher's '{name}' has no place in the student: {SAME_FAMILY}")
    return pairs


def _outside(module: nn.Module, here: str) -> dict[str, Tensor]:
    """What a tower holds besides its backbone."""
    return {name: value for name, value in module.state_dict().items() if here and not name.startswith(f"{here}.")}


def _head_pairs(
    small: Mapping[str, Tensor], large: Mapping[str, Tensor], mine: nn.Module, theirs: nn.Module
) -> list[_Pair]:
    """The head's tensors with their counterparts; of another kind of head only the linear part, else none."""
    same_input = output_of(mine) == output_of(theirs)
    if same_input and small.keys() == large.keys():
        found = dict(large)
    else:
        found = _linear_part(small, _linear_of(large, theirs, same_input, output_of(mine)))
    return [_Pair(name, small[name], value, head_axes(mine, name, small[name])) for name, value in found.items()]


def _linear_of(
    large: Mapping[str, Tensor], theirs: nn.Module, same_input: bool, wanted: str
) -> tuple[Tensor, Tensor | None] | None:
    """Weight [space, in] and bias of the teacher's head where it is one linear map of what the student's head reads."""
    weights = [name for name in large if re.fullmatch(LINEAR, name)]
    if same_input and len(weights) == 1:
        bias = weights[0].removesuffix("weight") + "bias"
        return (large[weights[0]], large.get(bias)) if set(large) <= {weights[0], bias} else None
    projection = projection_of(theirs)
    if wanted == "stream" and not large and isinstance(projection, nn.Parameter):
        return projection.detach().T, None
    return None


def _linear_part(small: Mapping[str, Tensor], linear: tuple[Tensor, Tensor | None] | None) -> dict[str, Tensor]:
    names = [name for name in small if re.fullmatch(LINEAR, name)]
    if linear is None or len(names) != 1:
        return {}
    weight, bias = linear
    bias_name = names[0].removesuffix("weight") + "bias"
    if bias_name not in small:
        return {} if bias is not None else {names[0]: weight}
    return {names[0]: weight, bias_name: weight.new_zeros(len(weight)) if bias is None else bias}


def _word(group: str) -> str:
    return group.rpartition(":")[2]


def _check_sizes(pair: _Pair, core: nn.Module) -> None:
    """Raises ``ModelError`` where the student's tensor is no part of its teacher's."""
    small, large = tuple(pair.mine.shape), tuple(pair.theirs.shape)
    shapes = f"'{pair.name}' has shape {small} in the student and {large} in its teacher"
    if len(small) != len(large):
        raise ModelError(f"{shapes}: {SAME_FAMILY}")
    for word, mine, theirs in zip(map(_word, pair.axes), small, large, strict=True):
        if word == "grid" or mine == theirs:
            continue
        if word == UNKNOWN:
            raise ModelError(
                f"{shapes}, and no rule says how to cut this part of a {type(core).__name__}: give the student its "
                "teacher's width here, and fewer layers"
            )
        if word not in (*CHOSEN, *LEADING):
            raise ModelError(f"{shapes}: the {word} of the two must be the same, {theirs}, not {mine}")
        if mine > theirs:
            raise ModelError(f"{shapes}: a student inherits from a model at least as large in every axis ({word})")


def _kept(
    pairs: Iterable[_Pair], by: str, mine: nn.Module, theirs: nn.Module, match: Match
) -> dict[str, tuple[Tensor, int]]:
    """Group → the teacher's channels that are kept, ascending, and how many it has."""
    sizes: dict[str, tuple[int, int]] = {}
    for pair in pairs:
        for group, small, large in zip(pair.axes, pair.mine.shape, pair.theirs.shape, strict=True):
            if _word(group) in CHOSEN:
                known = sizes.get(group, (small, large))
                sizes[group] = (min(small, known[0]), min(large, known[1]))
    kept = {}
    for group, (small, large) in sizes.items():
        width = _common_head_width(group, mine, theirs, match, small != large) if _word(group) == "heads" else 1
        leading = by == "leading" or small == large
        chosen = torch.arange(small) if leading else _largest(pairs, group, small, large, width)
        kept[group] = (chosen, large)
    return kept


def _common_head_width(group: str, mine: nn.Module, theirs: nn.Module, match: Match, cut: bool) -> int:
    at = group.removesuffix(":heads")
    small, large = head_width(mine, at), head_width(theirs, match.paths[at])
    if small != large:
        raise ModelError(
            f"the attention heads of '{at}' are {small} channels wide in the student and {large} in its teacher: "
            f"choose the student's number of heads as its width / {large}"
        )
    if small is None and cut:
        raise ModelError(
            f"'{at}' has attention of an unknown kind, whose heads cannot be cut: keep its teacher's width"
        )
    return small or 1


def _largest(pairs: Iterable[_Pair], group: str, small: int, large: int, width: int) -> Tensor:
    """The channels of largest norm, whole heads of ``width``: summed L2 norms of the weights that write to them."""
    score = torch.zeros(large, dtype=torch.float64)
    for pair in pairs:
        axis = _written(pair.axes)
        if axis is not None and pair.axes[axis] == group:
            rows = pair.theirs.detach().double().movedim(axis, 0).flatten(1)
            score += rows.norm(dim=1).cpu().view(-1, large).sum(dim=0)
    units = score.view(-1, width).sum(dim=1)
    best = units.argsort(descending=True, stable=True)[: small // width].sort().values
    return (best[:, None] * width + torch.arange(width)).flatten()


def _written(axes: tuple[str, ...]) -> int | None:
    """The axis along which a weight's rows write to their group: the first of a map, the last of a table of vectors."""
    if len(axes) < 2 or {"space", "classes", "pooled"} & set(axes[:1] + axes[-1:]):
        return None
    ends = [axis for axis in (0, len(axes) - 1) if _word(axes[axis]) in CHOSEN]
    return ends[0] if ends else None


def _cut(pair: _Pair, kept: Mapping[str, tuple[Tensor, int]], mine: nn.Module, theirs: nn.Module) -> Tensor:
    """The teacher's tensor in the student's shape; the very same tensor where nothing is cut."""
    value = pair.theirs
    for axis, group in enumerate(pair.axes):
        length = pair.mine.shape[axis]
        if group == "grid" or length == value.shape[axis]:
            continue
        index = torch.arange(length)
        if _word(group) in CHOSEN:
            chosen, size = kept[group]
            parts = length // len(chosen)
            if (length, value.shape[axis]) != (parts * len(chosen), parts * size):
                raise ModelError(f"'{pair.name}' does not hold its {_word(group)} as its teacher does: {SAME_FAMILY}")
            index = torch.cat([chosen + part * size for part in range(parts)])
        value = value.index_select(axis, index.to(value.device))
    return _resampled(value, pair, grid_of(mine), grid_of(theirs)) if "grid" in pair.axes else value


def _resampled(value: Tensor, pair: _Pair, small: tuple[int, int], large: tuple[int, int]) -> Tensor:
    """A position table [..., tokens, width] of a grid of patches on another, bicubic; prefix tokens as they are."""
    prefix = value.shape[-2] - large[0] * large[1]
    if prefix != pair.mine.shape[-2] - small[0] * small[1]:
        raise ModelError(
            f"'{pair.name}' has {pair.mine.shape[-2]} positions for {small[0]} x {small[1]} patches in the student and "
            f"{value.shape[-2]} for {large[0]} x {large[1]} in its teacher: class and register tokens must be the same"
        )
    if small == large:
        return value
    table = value.reshape(1, *value.shape[-2:])
    out: Tensor = resample_abs_pos_embed(table, list(small), list(large), num_prefix_tokens=prefix)
    return out.reshape(pair.mine.shape)


def _check_tokens(mine: Tokenizer, theirs: Tokenizer) -> None:
    """Raises ``ModelError`` where one id means two words: rows of the embedding would be mistaken for others."""
    if isinstance(mine, WordTokenizer) and isinstance(theirs, WordTokenizer):
        same = mine.words == theirs.words
    else:
        small, large = mine(PROBES)["input_ids"], theirs(PROBES)["input_ids"]
        # The last column holds the end of a text that was cut.
        width = min(small.shape[1], large.shape[1]) - 1
        same = bool((small[:, :width] == large[:, :width]).all())
    if not same:
        raise ModelError(
            "the student's tokenizer numbers words otherwise than its teacher's, so that a row of the embedding "
            "is another word: give the student its teacher's tokenizer, or leave text out of towers"
        )
