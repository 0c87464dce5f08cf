"""Methods by name: what the loop trains for a recipe's settings."""

from __future__ import annotations

from typing import Any, Protocol

from clipette.adapt import settings
from clipette.adapt.cocoop import CoCoOp
from clipette.adapt.context import require_own_words
from clipette.adapt.coop import CoOp
from clipette.adapt.fine_tune import FineTune
from clipette.adapt.kgcoop import KgCoOp
from clipette.adapt.learner import Frozen, Learner, Reads
from clipette.adapt.maple import MaPLe
from clipette.adapt.promptsrc import PromptSRC
from clipette.adapt.vpt import VPT


class Builds(Protocol):
    """A learner's class: (settings, frozen base, class names, templates=…, seed=…), and what it reads.

    ``templates``: of the class texts of methods that do not learn the text side.
    """

    @property
    def reads(self) -> Reads: ...

    @property
    def compares(self) -> bool: ...

    def __call__(
        self, how: Any, frozen: Frozen, classes: tuple[str, ...], *, templates: str = ..., seed: int = ...
    ) -> Learner: ...


LEARNERS: dict[str, Builds] = {
    "coop": CoOp,
    "kgcoop": KgCoOp,
    "cocoop": CoCoOp,
    "vpt": VPT,
    "maple": MaPLe,
    "promptsrc": PromptSRC,
    "wise-ft": FineTune,
}


def build_learner(
    how: settings.Loop, frozen: Frozen, classes: tuple[str, ...], *, templates: str, seed: int
) -> Learner:
    """The learner of ``how`` for these classes. Raises ``ConfigError`` where the base cannot take it, in words."""
    if isinstance(how, settings.CoOp | settings.ContextSettings):
        require_own_words(frozen.model.text_tower())
    return LEARNERS[how.kind](how, frozen, classes, templates=templates, seed=seed)
