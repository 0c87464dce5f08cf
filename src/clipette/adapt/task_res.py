"""TaskRes: the class texts stay, a learned residual is added to each."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipette.adapt.features import ClassTexts, Shots, keep_length, needs_dev, score
from clipette.adapt.fitting import Course, Harness, train
from clipette.losses.numerics import full, pair_logits


@dataclass(frozen=True)
class TaskResSettings:
    """``scales``: α, one or several to choose from on validation images (the paper: 0.5, and 1 for flowers).

    ``harness``: Adam 2e-3 (2e-4 on ImageNet), batches of 256, 100 epochs for up to 4 shots and 200 beyond.
    """

    scales: tuple[float, ...] = (0.5,)
    harness: Harness = field(default_factory=lambda: Harness(optimizer="adam", batch_size=256))


@dataclass(frozen=True, eq=False)
class FittedTaskRes:
    """What was learned: ``residual`` x [C, D], entering by ``scale`` α; and how training went."""

    base: ClassTexts
    residual: Tensor
    scale: float
    course: Course

    def classes(self) -> Tensor:
        """The new class texts [C, D]: with any image vectors of the base model they classify as ``logits`` does."""
        return residual_classes(self.base.classes, self.residual, self.scale)

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C] of unit vectors [N, D]."""
        return pair_logits(image_features, self.classes(), scale=self.base.scale, bias=self.base.bias)

    def tensors(self) -> dict[str, Tensor]:
        """``residual``."""
        return {"residual": self.residual}


def residual_classes(classes: Tensor, residual: Tensor, scale: float) -> Tensor:
    """Class texts moved by a residual, at their old length.

    t′_c = unit(t_c + α · x_c)

    Shapes: classes and residual [C, D]. α = 0 or x = 0 gives t itself, to the last bit.

    Paper: Yu et al. (TaskRes), CVPR 2023, eqs. 4-5. Deviation: none.
    """
    own = full(classes)
    return keep_length(own + scale * residual, own)


def fit_task_res(
    base: ClassTexts, shots: Shots, settings: TaskResSettings = TaskResSettings(), dev: Shots | None = None
) -> FittedTaskRes:
    """Train one residual, from zero, for each scale; scale and epoch are chosen on ``dev`` (without it: last epoch).

    Raises:
        ConfigError: several scales without ``dev``.
        DataError, ModelError: labels or widths that do not fit the class texts.
    """
    needs_dev(dev, len(settings.scales), "TaskRes's scale")
    for each in (shots, *(() if dev is None else (dev,))):
        each.check(base)
    fitted = [_fit(base, shots, settings, scale, dev) for scale in settings.scales]
    if dev is None:
        return fitted[0]
    features, labels = dev.flat()
    return max(fitted, key=lambda one: score(one.logits(features), labels))


def _fit(base: ClassTexts, shots: Shots, settings: TaskResSettings, scale: float, dev: Shots | None) -> FittedTaskRes:
    residual = torch.zeros_like(full(base.classes))

    def logits_of(features: Tensor) -> Tensor:
        moved = residual_classes(base.classes, residual, scale)
        return pair_logits(features, moved, scale=base.scale, bias=base.bias)

    return FittedTaskRes(base, residual, scale, train([residual], logits_of, shots, settings.harness, dev))
