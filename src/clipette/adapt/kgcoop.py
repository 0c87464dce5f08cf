"""KgCoOp: a learned context whose class vectors stay near the frozen ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from clipette.adapt import coop, settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.learner import Frozen, Reads, cross_entropy


def distance_to_frozen(learned: Tensor, frozen: Tensor) -> Tensor:
    """(1/C) Σ_c ‖w_c − w_c^frozen‖², unit vectors [C, D] to a scalar in 0..4.

    Paper: Yao et al. (KgCoOp), CVPR 2023, eq. 4. Deviation: the release takes 1 − cos, half of it.
    """
    return (learned - frozen).square().sum(dim=-1).mean()


class KgCoOp:
    """CoOp + λ · ‖w − w^frozen‖², λ = 8, four tokens that start at "a photo of a".

    Raises ``ConfigError`` as CoOp. Paper: Yao et al., Visual-language prompt tuning with knowledge-guided context
    optimization, CVPR 2023, eqs. 4-5.
    """

    reads: ClassVar[Reads] = "vectors"
    compares: ClassVar[bool] = False

    def __init__(
        self,
        how: settings.KgCoOp,
        frozen: Frozen,
        classes: tuple[str, ...],
        *,
        templates: str = "single",
        seed: int = 0,
    ) -> None:
        plain = settings.CoOp(tokens=how.tokens, start=how.start)
        self.weight = how.weight
        self.coop = coop.CoOp(plain, frozen, classes, seed=seed)
        self.known = frozen.class_vectors(classes, templates)

    @property
    def module(self) -> nn.Module:
        """The context."""
        return self.coop.module

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """As CoOp."""
        return self.coop.features(given)

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy`` and ``knowledge``."""
        vectors = self.coop.vectors()
        return {
            "cross_entropy": cross_entropy(self.coop.frozen.logits(features["image"], vectors), targets),
            "knowledge": self.weight * distance_to_frozen(vectors, self.known),
        }

    def adapters(self) -> tuple[Adapter, ...]:
        """As CoOp."""
        return self.coop.adapters()
