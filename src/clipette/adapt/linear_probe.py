"""Linear probe: L2-regularised logistic regression on frozen image vectors, its strength swept on validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.adapt.features import ClassTexts, Shots, needs_dev, score
from clipette.errors import ConfigError, DataError

Score = tuple[float, float]


@dataclass(frozen=True)
class LinearProbeSettings:
    """``c``: the weight of the data against the penalty, where nothing is swept (0.316: CLIP's own example).

    With validation images, C is swept as in CLIP's appendix A.3: from ``coarse`` exponents of 10, the interval around
    the best is halved until it is 10^(1/``per_decade``). ``iterations``: the most of L-BFGS.
    """

    c: float = 0.316
    coarse: tuple[int, ...] = (-6, -4, -2, 0, 2, 4, 6)
    per_decade: int = 8
    iterations: int = 1000

    def __post_init__(self) -> None:
        if self.c < 0 or self.per_decade < 1 or self.iterations < 1:
            raise ConfigError(
                f"linear probe: c {self.c}, per_decade {self.per_decade}, iterations {self.iterations}: need "
                ">= 0, >= 1, >= 1"
            )
        if list(self.coarse) != sorted(set(self.coarse)):
            raise ConfigError(f"linear probe: coarse exponents {self.coarse} must rise")


@dataclass(frozen=True, eq=False)
class FittedLinearProbe:
    """``weight`` [C, D], ``bias`` [C], on top of ``base`` where one was given; ``c`` and, if swept, accuracy by C."""

    weight: Tensor
    bias: Tensor
    c: float
    base: ClassTexts | None = None
    swept: tuple[tuple[float, float], ...] = ()

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C] of vectors [N, D]."""
        own = image_features.to(self.weight) @ self.weight.T + self.bias
        return own if self.base is None else self.base.logits(image_features) + own

    def tensors(self) -> dict[str, Tensor]:
        """``weight`` and ``bias``."""
        return {"weight": self.weight, "bias": self.bias}


def fit_linear_probe(
    shots: Shots,
    classes: int,
    settings: LinearProbeSettings = LinearProbeSettings(),
    dev: Shots | None = None,
    *,
    base: ClassTexts | None = None,
) -> FittedLinearProbe:
    """Fit the probe; each view of an image is an example. C is swept on ``dev``, else it is the settings'.

    min over w, b of ½‖w‖² + C Σ_i CE(f_i · wᵀ + b, y_i)

    ``base``: w and b are added to the zero-shot logits, so that the penalty pulls towards the class texts and C = 0 is
    zero-shot to the last bit; without it (the paper) C = 0 knows nothing.

    Raises:
        ConfigError: nothing to sweep over.
        DataError: labels outside ``classes``.

    Paper: Radford et al. (CLIP), ICML 2021, section 3.2 and appendix A.3. Deviation: PyTorch's L-BFGS in float64 where
    the paper uses scikit-learn's; the same objective. The paper's features come before CLIP's projection: give those.
    """
    for each in (shots, *(() if dev is None else (dev,))):
        if int(each.labels.max()) >= classes:
            raise DataError(f"label {int(each.labels.max())} is outside the {classes} classes")
        if base is not None:
            each.check(base)
    needs_dev(dev, len(settings.coarse) if dev is not None else 1, "linear probe's C")
    problem = _Problem.of(shots, classes, base)
    if dev is None:
        return _fitted(problem.solve(settings.c, None, settings.iterations), settings.c, base, ())
    features, labels = dev.flat()
    solved: dict[float, Tensor] = {}

    def accuracy_at(exponent: float) -> Score:
        near = min(solved, key=lambda known: abs(known - exponent), default=None)
        start = None if near is None else solved[near]
        solved[exponent] = problem.solve(10.0**exponent, start, settings.iterations)
        return score(_fitted(solved[exponent], 0.0, base, ()).logits(features), labels)

    best, found = sweep(accuracy_at, settings)
    swept = tuple((10.0**exponent, found[exponent][0]) for exponent in sorted(found))
    return _fitted(solved[best], 10.0**best, base, swept)


def sweep(score_at: Callable[[float], Score], settings: LinearProbeSettings) -> tuple[float, dict[float, Score]]:
    """(best exponent, score by exponent): coarse first, then halving the step around the best.

    Equal scores go to the smaller C, the smoother probe.
    """
    found = {float(exponent): score_at(float(exponent)) for exponent in settings.coarse}

    def best() -> float:
        return max(found, key=lambda exponent: (found[exponent], -exponent))

    low, high = min(found), max(found)
    step = (high - low) / max(1, len(found) - 1) / 2
    while step >= 1 / settings.per_decade and high > low:
        middle = best()
        for exponent in (middle - step, middle + step):
            if low <= exponent <= high and exponent not in found:
                found[exponent] = score_at(exponent)
        step /= 2
    return best(), found


def _fitted(solution: Tensor, c: float, base: ClassTexts | None, swept: tuple[Score, ...]) -> FittedLinearProbe:
    weight, bias = solution[:, :-1].float(), solution[:, -1].float()
    return FittedLinearProbe(weight, bias, c, base, swept)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Features with a column of ones [N, D + 1], labels [N], and the logits that are there already, in float64."""

    features: Tensor
    labels: Tensor
    before: Tensor | float
    classes: int

    @classmethod
    def of(cls, shots: Shots, classes: int, base: ClassTexts | None) -> _Problem:
        features, labels = shots.flat()
        before = 0.0 if base is None else base.logits(features).double()
        ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
        return cls(torch.cat([features.double(), ones], dim=1), labels, before, classes)

    def solve(self, c: float, start: Tensor | None, iterations: int) -> Tensor:
        """The minimum [C, D + 1], the bias in the last column; ``start``: the minimum for another C."""
        shape = (self.classes, self.features.shape[1])
        unknown = (
            torch.zeros(shape, dtype=torch.float64, device=self.features.device) if start is None else start.clone()
        )
        if c == 0:
            return torch.zeros_like(unknown)
        unknown.requires_grad_(True)
        # Divided by C · N: the data's term is then a mean, and tolerances mean the same at any C and N.
        penalty = 0.5 / (c * len(self.labels))
        optimizer = torch.optim.LBFGS(
            [unknown],
            max_iter=iterations,
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            optimizer.zero_grad()
            logits = self.features @ unknown.T + self.before
            value = F.cross_entropy(logits, self.labels) + penalty * unknown[:, :-1].square().sum()
            value.backward()
            return value.item()

        optimizer.step(closure)
        return unknown.detach()
