"""PromptSRC: tokens in both towers, held near the frozen model by three terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.context import ClassContext, start_of
from clipette.adapt.learner import Frozen, Reads, cross_entropy
from clipette.adapt.maple import shared_depth
from clipette.losses.numerics import kl_rows, unit
from clipette.models.anatomy import token_width
from clipette.models.inject import visual_prompts
from clipette.models.prompts import DeepPrompts


class Independent(nn.Module):
    """Text tokens ``context`` [M, W_t], ``deeper`` [K − 1, M, W_t], and ``visual`` [K, N, W_v], each by itself."""

    def __init__(self, start: Tensor, depth: int, visual: DeepPrompts, *, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.context = nn.Parameter(start)
        self.deeper = nn.Parameter(torch.empty(depth - 1, *start.shape).normal_(0.0, 0.02, generator=draws))
        self.visual = visual


def l1_rows(learned: Tensor, frozen: Tensor) -> Tensor:
    """mean over rows of Σ_d |a_d − b_d|: [N, D] twice to a scalar.

    Paper: Khattak et al. (PromptSRC), ICCV 2023, eq. 3. Deviation: summed over D, where the release takes the mean.
    """
    return (learned - frozen).abs().sum(dim=-1).mean()


class PromptSRC:
    """CE + λ₁ ‖g − ḡ‖₁ + λ₂ ‖f − f^frozen‖₁ + λ₃ KL(frozen ‖ learned) over the tokens of both towers.

    ḡ: the frozen class vectors averaged over many templates (textual diversity). f^frozen: the base's own vector of the
    same view, computed once. The third part, the Gaussian-weighted average over epochs, is ``train.gaussian``.

    Raises ``ConfigError`` as MaPLe. Paper: Khattak et al., Self-regulating prompts, ICCV 2023, eqs. 3-7; published
    weights 25, 10 and 1 of element means are 25 / D, 10 / D and 1 / C here.
    """

    reads: ClassVar[Reads] = "pixels"
    compares: ClassVar[bool] = True

    def __init__(
        self,
        how: settings.PromptSRC,
        frozen: Frozen,
        classes: tuple[str, ...],
        *,
        templates: str = "single",
        seed: int = 0,
    ) -> None:
        depth = shared_depth(frozen, how.depth)
        start = start_of(frozen.model.text_tower(), how.tokens, how.start, seed=seed)
        tokens = DeepPrompts(depth, how.visual, token_width(frozen.model.image_tower()), seed=seed + 1)
        dim = frozen.model.dim
        self.frozen = frozen
        self.classes = classes
        self.prompts = ClassContext.of(frozen, classes, how.tokens, rest=start.rest)
        self.module = Independent(start.value, depth, tokens, seed=seed)
        self.diverse = frozen.class_vectors(classes, how.templates)
        self.weights = {
            "text": 25.0 / dim if how.text is None else how.text,
            "image": 10.0 / dim if how.image is None else how.image,
            "logits": 1.0 / len(classes) if how.logits is None else how.logits,
        }

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """``image`` [B, D], of pixels."""
        tower = self.frozen.model.image_tower()
        with visual_prompts(tower, self.module.visual()):
            return {"image": unit(tower(given))}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``, ``text``, ``image`` and ``logits``."""
        deeper = self.module.deeper if len(self.module.deeper) else None
        vectors = self.prompts.vectors(self.module.context, deeper)
        logits = self.frozen.logits(features["image"], vectors)
        frozen = self.frozen.logits(targets["frozen_image"], self.diverse)
        return {
            "cross_entropy": cross_entropy(logits, targets),
            "text": self.weights["text"] * l1_rows(vectors, self.diverse),
            "image": self.weights["image"] * l1_rows(features["image"], targets["frozen_image"]),
            "logits": self.weights["logits"] * kl_rows(logits, frozen).mean(),
        }

    def adapters(self) -> tuple[Adapter, ...]:
        """The tokens of both sides."""
        module = self.module
        tensors = {"context": module.context, "deeper": module.deeper, "visual": module.visual()}
        kept = {name: value.detach() for name, value in tensors.items() if len(value)}
        return (Adapter("prompts", self.classes, "single", self.prompts.facts(), kept),)
