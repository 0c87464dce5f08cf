"""Text prompts: learned context vectors beside the class names, for all classes, for each, or for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.anatomy import TextPlaces, text_places
from clipette.models.core import TextTower
from clipette.models.inject import RECOMPUTED, PreHook
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.runtime.words import WordTokenizer
from clipette.types import Ints, Tokenizer

# Words that may hold the context's places: the first that is one token of the tower's tokenizer. CoOp's own is X.
FILLERS = ("X", "a", "the", "and", ".", ",")


Position: TypeAlias = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class PromptShape:
    """Where ``count`` learned tokens X stand beside a class name.

    ``end``: "X … X rest name.", the class at the end (``rest``: words between, often none). ``middle``: "X … name X …",
    half of them, rounded down, before. ``front``: "name X … X.", the class in front. ``ending`` ends every text.

    Raises:
        ConfigError: words between where the class does not stand at the end.

    Paper: Zhou et al. (CoOp), IJCV 2022, section 3.2 and its release (``CLASS_TOKEN_POSITION``).
    """

    count: int
    position: Position = "end"
    rest: str = ""
    ending: str = "."

    def __post_init__(self) -> None:
        if self.rest and self.position != "end":
            raise ConfigError(f"position '{self.position}' leaves no place for the words '{self.rest}': use end")

    @property
    def before(self) -> int:
        """How many of the learned tokens stand before the name."""
        return {"end": self.count, "middle": self.count // 2, "front": 0}[self.position]

    def text(self, filler: Sequence[str], name: str) -> str:
        """The text, the learned tokens' places held by the words ``filler`` [count]."""
        words = [*filler[: self.before], self.rest, name, *filler[self.before :]]
        return " ".join(word for word in words if word) + self.ending


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of C classes' prompts: arrays [C, L]; the learned ones stand at ``places`` [C, M] of each row.

    ``longest``: the most tokens that a text has, its end included.
    """

    arrays: Mapping[str, Tensor]
    places: Tensor
    longest: int

    @property
    def count(self) -> int:
        """M."""
        return int(self.places.shape[1])


class PromptTokenizer:
    """Class names to the tokens of their prompts: arrays [N, L], ``places`` [N, M] and ``ends`` [N].

    Raises:
        ConfigError: a tokenizer without an end token, or no room for a name.
    """

    def __init__(self, tokenizer: Tokenizer, shape: PromptShape) -> None:
        self.shape = shape
        self.marks = _Marks.of(tokenizer)
        if shape.count < 0 or self.marks.start + shape.count + 2 > self.marks.length:
            raise ConfigError(
                f"{shape.count} context tokens leave no room for a class name: the text tower reads "
                f"{self.marks.length} tokens"
            )
        self.filler, self._held = _filler(self.marks, shape.count)

    def __call__(self, names: Sequence[str]) -> tuple[dict[str, Ints], Ints, Ints]:
        """Raises ``ConfigError`` for a name that does not fit, or a tokenizer that pads on the left."""
        shape, marks = self.shape, self.marks
        arrays = marks.tokenizer([shape.text(self.filler, name) for name in names])
        ids = arrays["input_ids"]
        places = self._places(names)
        # Checked before anything is read at them: a name that is cut leaves its context outside.
        inside = places < ids.shape[1]
        found = np.where(inside, np.take_along_axis(ids, np.minimum(places, ids.shape[1] - 1), axis=1), -1)
        before = slice(None) if shape.position == "end" else slice(0, shape.before)
        if (found[:, before] != self._held[before]).any():
            raise ConfigError("the tokenizer does not begin every text at the same place: it must pad on the right")
        ends = marks.ends(ids)
        for row, name in enumerate(names):
            full = ends[row] == marks.length - 1 and self._length(name) > ends[row] - marks.start
            if full or (found[row] != self._held).any():
                raise ConfigError(
                    f"class '{name}' does not fit beside {shape.count} context tokens: the text tower reads "
                    f"{marks.length} tokens"
                )
        return arrays, places, ends

    def _length(self, name: str) -> int:
        words = f"{self.shape.rest} {name}{self.shape.ending}".strip()
        return self.shape.count + len(self.marks.content(words))

    def _places(self, names: Sequence[str]) -> Ints:
        own = np.arange(self.shape.count, dtype=np.int64) + self.marks.start
        places = np.repeat(own[None], len(names), axis=0)
        if self.shape.position != "end":
            lengths = np.array([len(self.marks.content(name)) for name in names], dtype=np.int64)
            places[:, self.shape.before :] += lengths[:, None]
        return places


def text_prompt_tokens(
    tower: TextTower,
    class_names: Sequence[str],
    count: int,
    *,
    position: Position = "end",
    rest: str = "",
    ending: str = ".",
) -> PromptTokens:
    """The tokens of ``count`` places beside each class name (``PromptShape``), for ``encode_prompts``.

    The places come behind what the tokenizer sets before every text (a start token, or nothing). The end of a text is
    its tokenizer's end token.

    Raises:
        ConfigError: no names, a name that does not fit beside ``count`` tokens, a tokenizer without an end token, one
            that pads on the left, or one whose end token is not where the tower looks for it.

    Paper: Zhou et al. (CoOp), IJCV 2022, section 3.2.
    """
    places = text_places(tower)
    if not class_names:
        raise ConfigError("text prompts need at least one class name")
    tokenizer = PromptTokenizer(tower.tokenizer, PromptShape(count, position, rest, ending))
    arrays, where, ends = tokenizer(class_names)
    device = places.table.device
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    if places.pooled_at is not None and (places.pooled_at(tensors["input_ids"]).cpu().numpy() != ends).any():
        raise ConfigError(
            f"the text tower does not read these texts at their end (token {tokenizer.marks.eos}): its tokenizer is "
            "not the one it was built for"
        )
    return PromptTokens(tensors, torch.from_numpy(where).to(device), int(ends.max()) + 1)


def phrase_embeddings(tower: TextTower, phrase: str) -> Tensor:
    """The token embeddings [M, W] of a phrase ("a photo of a"), without positions, as an initial context: a copy.

    Raises:
        ConfigError: the phrase has no token, or the tower is none that we can prompt.
    """
    places = text_places(tower)
    ids = _Marks.of(tower.tokenizer).content(phrase)
    if len(ids) == 0:
        raise ConfigError(f"the phrase '{phrase}' has no tokens to start a context from")
    with torch.no_grad():
        out: Tensor = places.embedding(torch.from_numpy(ids).to(places.table.device))
    return out.clone()


def encode_prompts(tower: TextTower, tokens: PromptTokens, context: Tensor, *, deeper: Tensor | None = None) -> Tensor:
    """The class texts' vectors, not normalised, with learned vectors in the places of ``tokens``.

    t_c = g([start, v_1, …, v_M, name_c, ending, end])

    Shapes: context [M, W], one for all: result [C, D]. [C, M, W], one for each class: [C, D]. [B, 1, M, W], one for
    each image (``shifted[:, None]``), or [B, C, M, W]: [B, C, D]. W = ``token_width(tower)``, M = ``tokens.count``; any
    floating type. The context takes position embeddings as words do.
    ``deeper`` [K, M, W] replaces at layers 2 to K + 1 what the layer before made of the context, without positions.
    Gradients reach both, whoever is frozen. The tower is left as it was, also by an exception.

    Raises:
        ConfigError: other shapes; ``deeper`` for BERT-like encoders, which take learned tokens at their input only, or
            under gradient checkpointing.

    Paper: Zhou et al. (CoOp), IJCV 2022, eqs. 2-3; CoCoOp, CVPR 2022, eq. 3; MaPLe, CVPR 2023, eqs. 3-4.
    """
    places = text_places(tower)
    classes = len(tokens.arrays["input_ids"])
    _check(places, tokens, context, deeper)
    rows = _rows(context, classes)
    each = context.expand(*rows, *context.shape[-2:]).flatten(0, -3)
    # Image by image, all classes of each: the order of ``each``.
    batch = {
        name: array.to(places.table.device).expand(*rows, array.shape[-1]).flatten(0, -2)
        for name, array in tokens.arrays.items()
    }
    where = tokens.places.to(places.table.device).expand(*rows, tokens.count).flatten(0, -2)
    with ExitStack() as hooks:
        hook = places.embedding.register_forward_hook(lambda module, args, output: placed(output, where, each))
        hooks.callback(hook.remove)
        for layer, value in zip(places.layers[1:], () if deeper is None else deeper, strict=False):
            hooks.callback(layer.register_forward_pre_hook(_renewing(where, value)).remove)
        out = places.run(batch, tokens.longest)
    return out.reshape(*rows, out.shape[-1])


def placed(hidden: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """``hidden`` [R, N, W] with ``tokens`` [M, W] or [R, M, W] at the places ``where`` [R, M] of each row."""
    values = tokens.to(hidden.dtype).expand(*where.shape, hidden.shape[-1])
    return hidden.scatter(1, where[..., None].expand(values.shape), values)


def _renewing(where: Tensor, tokens: Tensor) -> PreHook:
    """A layer's pre-hook that puts ``tokens`` at their places of its input."""

    def renew(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (placed(args[0], where, tokens), *args[1:])

    return renew


def _check(places: TextPlaces, tokens: PromptTokens, context: Tensor, deeper: Tensor | None) -> None:
    inner = [tokens.count, places.width]
    if context.ndim not in (2, 3, 4) or list(context.shape[-2:]) != inner:
        raise ConfigError(f"the context is [..., {inner[0]}, {inner[1]}] for these tokens, got {list(context.shape)}")
    if deeper is None:
        return
    if not places.layers:
        raise ConfigError("this text encoder takes learned tokens at its input only: leave the deeper prompts out")
    if deeper.ndim != 3 or list(deeper.shape[1:]) != inner:
        raise ConfigError(f"deeper prompts are [layers, {inner[0]}, {inner[1]}], got {list(deeper.shape)}")
    if len(deeper) >= len(places.layers):
        raise ConfigError(
            f"deeper prompts for {len(deeper)} layers behind the first, but the text tower has {len(places.layers)} "
            "layers in all"
        )
    if places.recomputed:
        raise ConfigError(RECOMPUTED.format(side="text"))


def _rows(context: Tensor, classes: int) -> tuple[int, ...]:
    """(C,) or (B, C)."""
    leading = tuple(context.shape[:-2])
    if leading and leading[-1] not in (1, classes):
        raise ConfigError(
            f"contexts {list(context.shape)} for {classes} classes: one for each class is [{classes}, M, W], one for "
            "each image [B, 1, M, W]"
        )
    return (*leading[:-1], classes)


@dataclass(frozen=True)
class _Marks:
    """Where a tokenizer's texts begin and end: ``start`` special tokens before, the token ``eos`` behind."""

    tokenizer: Tokenizer
    start: int
    eos: int
    length: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Marks:
        eos = tokenizer.eos_id if isinstance(tokenizer, OpenClipTokenizer | HFTokenizer | WordTokenizer) else None
        if eos is None:
            raise ConfigError("this text tower's tokenizer has no end-of-text token: learned context needs one")
        nothing, something = (tokenizer([text])["input_ids"][0].tolist() for text in ("", "a"))
        pairs = enumerate(zip(nothing, something, strict=False))
        start = next((place for place, (one, other) in pairs if one != other), len(nothing))
        return cls(tokenizer, start, int(eos), int(tokenizer.context_length))

    def ends(self, ids: Ints) -> Ints:
        """The place [N] of each text's end in ids [N, L]."""
        found = ids[:, self.start :] == self.eos
        if not found.any(axis=1).all():
            raise ConfigError(f"the tokenizer does not end every text with its end token {self.eos}")
        ends: Ints = self.start + found.argmax(axis=1)
        return ends

    def content(self, text: str) -> Ints:
        """The ids [n] between start and end."""
        ids = self.tokenizer([text])["input_ids"]
        out: Ints = ids[0, self.start : int(self.ends(ids)[0])]
        return out


def _filler(marks: _Marks, count: int) -> tuple[list[str], Ints]:
    """``count`` words of one token each, and their ids [count]."""
    learned = marks.tokenizer.words[:1] if isinstance(marks.tokenizer, WordTokenizer) else ()
    for word in (*FILLERS, *learned):
        ids = marks.content(" ".join([word] * count))
        if len(ids) == count:
            return [word] * count, ids
    raise ConfigError(f"the tokenizer has no word of one token among {', '.join(FILLERS)}: none can hold a place")
