"""CLIP-Adapter: a small network on the frozen image vector, mixed in by a ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipette.adapt.features import ClassTexts, Shots, keep_length, needs_dev, score
from clipette.adapt.fitting import Course, Harness, train
from clipette.errors import ConfigError
from clipette.losses.numerics import full


@dataclass(frozen=True)
class ClipAdapterSettings:
    """``ratios``: α, one or several to choose from on validation images (the paper: 0.2; 0.6 for fine-grained data).

    ``reduction``: the hidden width is D over it. ``harness``: CoOp's. The paper states the rate 1e-5, which in CoOp's
    harness is the first epoch's; the release is a trainer of that harness.
    """

    ratios: tuple[float, ...] = (0.2,)
    reduction: int = 4
    harness: Harness = field(default_factory=Harness)


@dataclass(frozen=True, eq=False)
class FittedClipAdapter:
    """What was learned: ``down`` [H, D], ``up`` [D, H]; ``ratio`` α in 0..1; and how training went."""

    base: ClassTexts
    down: Tensor
    up: Tensor
    ratio: float
    course: Course

    def image(self, features: Tensor) -> Tensor:
        """The adapted image vectors [N, D], of the length they had: they stay in the space of the class texts."""
        return adapted(features, self.down, self.up, self.ratio)

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C] of unit vectors [N, D]."""
        return self.base.logits(self.image(image_features))

    def tensors(self) -> dict[str, Tensor]:
        """``down`` and ``up``."""
        return {"down": self.down, "up": self.up}


def adapted(features: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """The mixed image vector, at its old length.

    f′ = unit(α · ReLU(W_up · ReLU(W_down · f)) + (1 − α) · f)

    Shapes: features [N, D] unit length, down [H, D], up [D, H]. ``ratio`` α = 0 gives f itself, to the last bit.
    Without biases the network is homogeneous: unit vectors and the model's raw ones give the same direction.

    Raises:
        ConfigError: a ratio outside 0..1.

    Paper: Gao et al. (CLIP-Adapter), IJCV 2024, eqs. 4-7. Deviation: none from the release, which has no text adapter
    (the paper's second, weaker variant).
    """
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"CLIP-Adapter's ratio {ratio} must lie in 0..1")
    own = full(features)
    new = torch.relu(torch.relu(own @ down.T) @ up.T)
    return keep_length(ratio * new + (1 - ratio) * own, own)


def fit_clip_adapter(
    base: ClassTexts, shots: Shots, settings: ClipAdapterSettings = ClipAdapterSettings(), dev: Shots | None = None
) -> FittedClipAdapter:
    """Train one adapter for each ratio; ratio and epoch are chosen on ``dev`` (without it: the one ratio, last epoch).

    Raises:
        ConfigError: several ratios without ``dev``; a ratio outside 0..1; a reduction that leaves no hidden unit.
        DataError, ModelError: labels or widths that do not fit the class texts.
    """
    needs_dev(dev, len(settings.ratios), "CLIP-Adapter's ratio")
    for each in (shots, *(() if dev is None else (dev,))):
        each.check(base)
    fitted = [_fit(base, shots, settings, ratio, dev) for ratio in settings.ratios]
    if dev is None:
        return fitted[0]
    features, labels = dev.flat()
    return max(fitted, key=lambda one: score(one.logits(features), labels))


def _fit(
    base: ClassTexts, shots: Shots, settings: ClipAdapterSettings, ratio: float, dev: Shots | None
) -> FittedClipAdapter:
    width = base.classes.shape[1]
    hidden = width // settings.reduction if settings.reduction > 0 else 0
    if hidden < 1:
        raise ConfigError(f"reduction {settings.reduction} leaves no hidden unit of {width}: it must be 1 to {width}")
    generator = torch.Generator().manual_seed(settings.harness.seed)
    down = _uniform((hidden, width), generator).to(shots.features.device)
    up = _uniform((width, hidden), generator).to(shots.features.device)
    course = train([down, up], lambda f: base.logits(adapted(f, down, up, ratio)), shots, settings.harness, dev)
    return FittedClipAdapter(base, down, up, ratio, course)


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """U(±1/√fan_in): ``nn.Linear``'s own start."""
    return torch.empty(shape).uniform_(-1, 1, generator=generator) / math.sqrt(shape[1])
