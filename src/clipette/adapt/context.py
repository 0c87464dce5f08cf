"""A learned context for one set of classes: where it starts, and the class vectors that it gives."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clipette.adapt.learner import Frozen, names_of
from clipette.adapt.settings import PHRASE
from clipette.errors import ConfigError
from clipette.losses.numerics import unit
from clipette.models.anatomy import token_width
from clipette.models.core import TextTower
from clipette.models.prompted_text import ContextTrunk, KnownTrunk
from clipette.models.text_prompts import (
    Position,
    PromptShape,
    PromptTokens,
    encode_prompts,
    phrase_embeddings,
    text_prompt_tokens,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a context begins: its first value [M, W], and the words of the phrase that stay words."""

    value: Tensor
    rest: str = ""


def start_of(text: TextTower, tokens: int, phrase: str | None, *, seed: int) -> Start:
    """The first ``tokens`` tokens of ``phrase``, the rest of it staying as words; without a phrase N(0, 0.02²).

    MaPLe and PromptSRC begin so: of "a photo of a", two tokens learn and "of a" remains. That phrase is the recipes'
    own: a base that has no tokens for its words begins at random, with a warning.

    Raises:
        ConfigError: the phrase has fewer tokens, or more but words of several tokens, which cannot be divided; a tower
            whose texts are learned already.
    """
    require_own_words(text)
    if phrase is None:
        draws = torch.Generator().manual_seed(seed)
        return Start(torch.empty(tokens, token_width(text)).normal_(0.0, 0.02, generator=draws))
    value, words = phrase_embeddings(text, phrase).float().cpu(), phrase.split()
    if len(value) == tokens:
        return Start(value)
    if phrase == PHRASE and len(words) != len(value):
        log.warning("method.start '%s' has words that this base does not know: the context begins at random", phrase)
        return start_of(text, tokens, None, seed=seed)
    if len(value) < tokens or len(words) != len(value):
        raise ConfigError(
            f"method.start '{phrase}' is {len(value)} tokens of this text tower, and method.tokens is {tokens}: make "
            "them equal, or remove start to begin at random"
        )
    return Start(value[:tokens], " ".join(words[tokens:]))


def require_own_words(text: TextTower) -> None:
    """Raises ``ConfigError`` where a text tower's class texts are learned already."""
    if isinstance(text.trunk, ContextTrunk | KnownTrunk):
        raise ConfigError(
            "this base is an adaptation itself: its class texts are learned already, and no prompts stand before "
            "prompts. Adapt the model that it stands on, or adapt this one's images (vpt, clip-adapter, tip-adapter)"
        )


@dataclass(frozen=True)
class ClassContext:
    """The prompts of some classes, waiting for a context."""

    frozen: Frozen
    shape: PromptShape
    tokens: PromptTokens

    @classmethod
    def of(
        cls, frozen: Frozen, classes: tuple[str, ...], tokens: int, *, position: Position = "end", rest: str = ""
    ) -> ClassContext:
        """Raises ``ConfigError`` where the base's text tower cannot take a context, or a name does not fit."""
        shape = PromptShape(tokens, position, rest)
        found = text_prompt_tokens(frozen.model.text_tower(), names_of(classes), tokens, position=position, rest=rest)
        return cls(frozen, shape, found)

    def vectors(self, context: Tensor, deeper: Tensor | None = None) -> Tensor:
        """Unit vectors [C, D] under a context [M, W] or [C, M, W]; [B, C, D] under one for each image [B, 1, M, W]."""
        text = self.frozen.model.text_tower()
        return unit(encode_prompts(text, self.tokens, context, deeper=deeper))

    def facts(self) -> dict[str, Any]:
        """What inference needs beside the context itself."""
        return {"shape": asdict(self.shape)}
