"""CoOp: the words around the class names become learned vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.context import ClassContext, start_of
from clipette.adapt.learner import Frozen, Reads, cross_entropy


class LearnedContext(nn.Module):
    """One parameter ``context``: [M, W], or [C, M, W] with one for each class."""

    def __init__(self, start: Tensor, classes: int | None = None) -> None:
        super().__init__()
        self.context = nn.Parameter(start if classes is None else start.expand(classes, -1, -1).clone())


class CoOp:
    """CE(scale · cos(f, g([v_1 … v_M, class])), label), over the context v alone.

    The image side is the base's own, so that its vectors are computed once; the class vectors are new at each step.

    Raises:
        ConfigError: a text tower without word embeddings, a start of another number of tokens, a name that is too long.

    Paper: Zhou et al., Learning to prompt for vision-language models, IJCV 2022, eqs. 2-3; M = 16, N(0, 0.02²).
    Deviation: a fixed number of stored views stands for fresh crops each epoch (``views.count``).
    """

    reads: ClassVar[Reads] = "vectors"
    compares: ClassVar[bool] = False

    def __init__(
        self, how: settings.CoOp, frozen: Frozen, classes: tuple[str, ...], *, templates: str = "single", seed: int = 0
    ) -> None:
        text = frozen.model.text_tower()
        start = start_of(text, how.tokens, how.start, seed=seed)
        self.frozen = frozen
        self.classes = classes
        self.templates = templates
        self.prompts = ClassContext.of(frozen, classes, how.tokens, position=how.position, rest=start.rest)
        self.module = LearnedContext(start.value, len(classes) if how.per_class else None)

    def vectors(self) -> Tensor:
        """[C, D] the classes under the present context."""
        return self.prompts.vectors(self.module.context)

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """The base's own unit vectors [B, D]."""
        return {"image": given}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``."""
        return {"cross_entropy": cross_entropy(self.frozen.logits(features["image"], self.vectors()), targets)}

    @torch.no_grad()
    def adapters(self) -> tuple[Adapter, ...]:
        """A context for any class; where each class has its own, those classes' vectors."""
        if self.module.context.ndim == 3:
            return (Adapter("class-vectors", self.classes, self.templates, {}, {"vectors": self.vectors()}),)
        tensors = {"context": self.module.context.detach()}
        return (Adapter("prompts", self.classes, "single", self.prompts.facts(), tensors),)
