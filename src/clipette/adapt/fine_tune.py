"""Fine-tuning of the image tower against the class texts, and WiSE-FT's weights between old and new."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.learner import Frozen, Reads, cross_entropy
from clipette.adapt.wise_ft import wise_ft
from clipette.losses.numerics import unit
from clipette.models.core import ImageTower, set_trainable


class FineTune:
    """CE(scale · cos(f_θ(x), w), label) over all weights θ of a copy of the image tower; then (1 − α) θ₀ + α θ₁.

    Paper: Wortsman et al. (WiSE-FT), CVPR 2022, eq. 1. Deviation: the classifier w, the class texts that the paper too
    starts from, stays frozen, so that one image–text space remains and other classes can still be named.
    """

    reads: ClassVar[Reads] = "pixels"
    compares: ClassVar[bool] = False

    def __init__(
        self,
        how: settings.WiseFT,
        frozen: Frozen,
        classes: tuple[str, ...],
        *,
        templates: str = "single",
        seed: int = 0,
    ) -> None:
        self.module: ImageTower = copy.deepcopy(frozen.model.image_tower())
        set_trainable(self.module, True)
        self.frozen = frozen
        self.classes = classes
        self.templates = templates
        self.shares = how.shares
        self.texts = frozen.class_vectors(classes, templates)

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """``image`` [B, D], of pixels."""
        return {"image": unit(self.module(given))}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``."""
        return {"cross_entropy": cross_entropy(self.frozen.logits(features["image"], self.texts), targets)}

    @torch.no_grad()
    def adapters(self) -> tuple[Adapter, ...]:
        """The image tower's mixed weights, at each share."""
        before, after = self.frozen.model.image_tower().state_dict(), self.module.state_dict()
        return tuple(
            Adapter("weights", self.classes, self.templates, {"share": share}, wise_ft(before, after, share))
            for share in self.shares
        )
