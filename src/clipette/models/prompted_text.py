"""Text towers that learned: a context in place of a template's words, or vectors of their own for some classes.

Both read any text. What they did not learn is encoded as before, by the tower inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.anatomy import token_width
from clipette.models.core import Blueprint, TextTower
from clipette.models.text_prompts import PromptShape, PromptTokenizer, PromptTokens, encode_prompts
from clipette.types import Ints, Tokenizer

# The wording that a learned context stands for, whatever phrase it began at.
WORDING = "a photo of a {}."


def named(text: str, wording: str) -> str | None:
    """The class name in a text of this wording; None for any other text."""
    before, _, after = wording.partition("{}")
    inner = len(text) - len(before) - len(after)
    fits = inner > 0 and text.startswith(before) and text.endswith(after)
    return text[len(before) : len(before) + inner] if fits else None


class ContextTokenizer:
    """Texts of ``wording`` with places for the learned context; every other text as the tower inside reads it.

    Arrays of the inner tokenizer, and ``learned`` [N, 1] (1 where there is a context), ``places`` [N, M] and ``ends``
    [N, 1].
    """

    def __init__(self, inner: Tokenizer, shape: PromptShape, wording: str = WORDING) -> None:
        self.inner = inner
        self.shape = shape
        self.wording = wording
        self._prompts = PromptTokenizer(inner, shape)

    @property
    def context_length(self) -> int:
        """As the inner tokenizer's."""
        return self.inner.context_length

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """Raises ``ConfigError`` for a class name that does not fit beside the context."""
        names = [named(text, self.wording) for text in texts]
        rows = [row for row, name in enumerate(names) if name is not None]
        shape, filler = self.shape, self._prompts.filler
        said = [text if name is None else shape.text(filler, name) for text, name in zip(texts, names, strict=True)]
        arrays = dict(self.inner(said))
        learned, ends = np.zeros((len(texts), 1), np.int64), np.zeros((len(texts), 1), np.int64)
        places = np.zeros((len(texts), shape.count), np.int64)
        if rows:
            _, places[rows], ends[rows, 0] = self._prompts([names[row] or "" for row in rows])
            learned[rows] = 1
        return {**arrays, "learned": learned, "places": places, "ends": ends}


class ContextTrunk(nn.Module):
    """``tower`` with learned vectors in the places that ``ContextTokenizer`` left for them."""

    context: Tensor
    deeper: Tensor

    def __init__(self, tower: TextTower, context: Tensor, deeper: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("context", context.detach().clone())
        self.register_buffer("deeper", deeper.detach().clone())

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[N, width] of tokens [N, L]."""
        learned = tokens["learned"][:, 0].bool()
        inner = {name: value for name, value in tokens.items() if name not in ("learned", "places", "ends")}
        if not learned.any():
            return cast(Tensor, self.tower(inner))
        prompted = PromptTokens(
            {name: value[learned] for name, value in inner.items()},
            tokens["places"][learned],
            int(tokens["ends"][learned].max()) + 1,
        )
        deeper = self.deeper if len(self.deeper) else None
        found = encode_prompts(self.tower, prompted, self.context, deeper=deeper)
        if learned.all():
            return found
        out = found.new_zeros(len(learned), found.shape[1])
        out[learned] = found
        out[~learned] = self.tower({name: value[~learned] for name, value in inner.items()}).to(out.dtype)
        return out


def context_text(
    tower: TextTower, context: Tensor, shape: PromptShape, *, deeper: Tensor | None = None, wording: str = WORDING
) -> TextTower:
    """``tower`` that reads texts of ``wording`` under a learned context [M, W], ``deeper`` [K, M, W] in its layers.

    Raises ``ConfigError`` for a context of another width or number of tokens.
    """
    if context.shape != (shape.count, token_width(tower)):
        raise ConfigError(
            f"the context is {list(context.shape)}, this text tower takes [{shape.count}, {token_width(tower)}]"
        )
    layers = context.new_zeros(0, *context.shape) if deeper is None else deeper
    inner = {"kind": tower.blueprint.kind, "arguments": dict(tower.blueprint.arguments)}
    arguments = {"inner": inner, "shape": asdict(shape), "wording": wording}
    sizes = {"width": context.shape[-1], "layers": len(layers)}
    return TextTower(
        ContextTrunk(tower, context, layers),
        nn.Identity(),
        tokenizer=ContextTokenizer(tower.tokenizer, shape, wording),
        width=tower.width,
        blueprint=Blueprint("context_text", {**arguments, **sizes}, tower.blueprint.assets),
    )


def rebuilt_context(tower: TextTower, arguments: Mapping[str, Any]) -> TextTower:
    """``context_text`` of a blueprint's arguments, its values still to be loaded."""
    shape = PromptShape(**arguments["shape"])
    context = torch.zeros(shape.count, arguments["width"])
    deeper = torch.zeros(arguments["layers"], *context.shape)
    return context_text(tower, context, shape, deeper=deeper, wording=arguments["wording"])


class KnownTokenizer:
    """The inner tokenizer's arrays, and ``row`` [N, 1]: whose of the ``count`` vectors the text is, or -1.

    ``texts``: as many for each vector, one vector's after another's. ``wording``: the templates that they are of.
    """

    def __init__(self, inner: Tokenizer, texts: Sequence[str], wording: str, *, count: int) -> None:
        self.inner = inner
        self.texts = tuple(texts)
        self.wording = wording
        each = len(self.texts) // count
        self._row = {text: place // each for place, text in enumerate(self.texts)}

    @property
    def context_length(self) -> int:
        """As the inner tokenizer's."""
        return self.inner.context_length

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        rows = np.array([self._row.get(text, -1) for text in texts], dtype=np.int64)
        return {**self.inner(texts), "row": rows[:, None]}


class KnownTrunk(nn.Module):
    """Stored vectors [n, width] for the texts that are known, the tower's own for all others."""

    vectors: Tensor

    def __init__(self, tower: TextTower, vectors: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("vectors", vectors.detach().float().clone())

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[N, width] of tokens [N, L]."""
        rows = tokens["row"][:, 0]
        known = rows >= 0
        inner = {name: value[~known] for name, value in tokens.items() if name != "row"}
        out = self.vectors[rows.clamp_min(0)]
        if not known.all():
            out[~known] = self.tower(inner).to(out.dtype)
        return out


def known_text(tower: TextTower, texts: Sequence[str], vectors: Tensor, *, wording: str) -> TextTower:
    """``tower`` with learned ``vectors`` [n, width] for these ``texts``, for k templates of ``wording`` k · n."""
    inner = {"kind": tower.blueprint.kind, "arguments": dict(tower.blueprint.arguments)}
    return TextTower(
        KnownTrunk(tower, vectors),
        nn.Identity(),
        tokenizer=KnownTokenizer(tower.tokenizer, texts, wording, count=len(vectors)),
        width=tower.width,
        blueprint=Blueprint(
            "known_text",
            {"inner": inner, "texts": list(texts), "wording": wording, "count": len(vectors)},
            tower.blueprint.assets,
        ),
    )


def rebuilt_known(tower: TextTower, arguments: Mapping[str, Any]) -> TextTower:
    """``known_text`` of a blueprint's arguments, its vectors still to be loaded."""
    texts = arguments["texts"]
    # Models of before there were several templates had one text a vector.
    count = arguments.get("count", len(texts))
    return known_text(tower, texts, torch.zeros(count, tower.width), wording=arguments["wording"])
