"""Tip-Adapter: the few shots as a cache of keys and labels beside the class texts; -F also trains the keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.adapt.features import ClassTexts, Shots, score
from clipette.adapt.fitting import Course, Harness, train
from clipette.errors import ConfigError
from clipette.losses.numerics import full, similarity

# So often a range of the search may double: from 3 to 48.
WIDENINGS = 5


@dataclass(frozen=True)
class TipAdapterSettings:
    """``alpha``, ``beta``: the cache's weight and sharpness where nothing is searched, and while keys are trained.

    With validation images both are searched on the release's grid, ``beta_steps`` values from 0.1 below ``beta_up_to``
    and ``alpha_steps`` from 0.1 below ``alpha_up_to``, with α = 0 added: validation may refuse the cache. A range whose
    end is best grows (``search``).
    ``harness``: -F's (AdamW 1e-3, eps 1e-4, batches of 256, 20 epochs, cosine by step).
    """

    alpha: float = 1.0
    beta: float = 5.5
    alpha_up_to: float = 3.0
    beta_up_to: float = 7.0
    alpha_steps: int = 20
    beta_steps: int = 200
    harness: Harness = field(
        default_factory=lambda: Harness(
            optimizer="adamw", lr=1e-3, batch_size=256, epochs=20, weight_decay=0.01, eps=1e-4, first_lr=None,
            anneal="step",
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        if min(self.alpha_steps, self.beta_steps) < 1 or min(self.alpha_up_to, self.beta_up_to) <= 0.1:
            raise ConfigError("Tip-Adapter's search needs one step or more of each, and ranges that end above 0.1")
        if self.alpha < 0 or self.beta < 0:
            raise ConfigError(f"Tip-Adapter's alpha {self.alpha} and beta {self.beta} must not be negative")

    def alphas(self) -> list[float]:
        """0, then the grid."""
        return [0.0, *_grid(self.alpha_up_to, self.alpha_steps)]

    def betas(self) -> list[float]:
        """The grid."""
        return _grid(self.beta_up_to, self.beta_steps)


@dataclass(frozen=True, eq=False)
class FittedTipAdapter:
    """The cache: ``keys`` K [M, D], ``labels`` [M]; ``alpha``, ``beta``; for -F, how training went."""

    base: ClassTexts
    keys: Tensor
    labels: Tensor
    alpha: float
    beta: float
    course: Course | None = None

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C] of unit vectors [N, D]."""
        return cache_logits(self.base, image_features, self.keys, self.labels, alpha=self.alpha, beta=self.beta)

    def tensors(self) -> dict[str, Tensor]:
        """``keys`` and ``labels``."""
        return {"keys": self.keys, "labels": self.labels}


def cache_logits(base: ClassTexts, image: Tensor, keys: Tensor, labels: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Zero-shot logits and what the cache says.

    z = scale · f · Wᵀ + bias + α · exp(−β (1 − f · Kᵀ)) · Y

    Shapes: image f [N, D], keys K [M, D], unit length; labels [M] integers, Y their one-hot rows. ``alpha`` α ≥ 0 is in
    units of logits; ``beta`` β ≥ 0 has none. α = 0 is zero-shot, to the last bit.

    Paper: Zhang et al. (Tip-Adapter), ECCV 2022, eqs. 5-7. Deviation: none.
    """
    return base.logits(image) + alpha * _votes(image, keys, labels, beta, len(base.classes))


def fit_tip_adapter(
    base: ClassTexts,
    shots: Shots,
    settings: TipAdapterSettings = TipAdapterSettings(),
    dev: Shots | None = None,
    *,
    train_keys: bool = False,
) -> FittedTipAdapter:
    """Build the cache (keys: each shot's mean over its views); ``train_keys``: -F, trains them.

    α and β are searched on ``dev``, for -F after training, whose epoch ``dev`` chooses too; without ``dev`` they are
    the settings' and the epoch is the last.

    Raises:
        DataError, ModelError: labels or widths that do not fit the class texts.

    Deviation: the release of -F chooses its epoch on test images; equal accuracies are decided by cross-entropy.
    """
    for each in (shots, *(() if dev is None else (dev,))):
        each.check(base)
    keys, course = full(shots.mean()).clone(), None
    if train_keys:
        course = train(
            [keys],
            lambda f: cache_logits(base, f, keys, shots.labels, alpha=settings.alpha, beta=settings.beta),
            shots,
            settings.harness,
            dev,
        )
    alpha, beta = settings.alpha, settings.beta
    if dev is not None:
        alpha, beta = search(base, keys, shots.labels, dev, settings)
    return FittedTipAdapter(base, keys, shots.labels, alpha, beta, course)


def search(
    base: ClassTexts, keys: Tensor, labels: Tensor, dev: Shots, settings: TipAdapterSettings
) -> tuple[float, float]:
    """(α, β) of the best validation accuracy on the grid; ties by cross-entropy, then the smaller α, the smaller β.

    While the best is the last α or β of its range, that range is doubled: the release sets ranges by data set instead.
    """
    for _ in range(WIDENINGS):
        alpha, beta = _best(base, keys, labels, dev, settings)
        wider = replace(
            settings,
            alpha_up_to=settings.alpha_up_to * (2 if alpha == settings.alphas()[-1] else 1),
            beta_up_to=settings.beta_up_to * (2 if beta == settings.betas()[-1] else 1),
        )
        if wider == settings:
            break
        settings = wider
    return alpha, beta


@torch.no_grad()
def _best(
    base: ClassTexts, keys: Tensor, labels: Tensor, dev: Shots, settings: TipAdapterSettings
) -> tuple[float, float]:
    features, truth = dev.flat()
    zero_shot = base.logits(features)
    best, chosen = (-1.0, 0.0), (0.0, settings.betas()[0])
    for beta in settings.betas():
        votes = _votes(features, keys, labels, beta, len(base.classes))
        for alpha in settings.alphas():
            found = score(zero_shot + alpha * votes, truth)
            if found > best or (found == best and (alpha, beta) < chosen):
                best, chosen = found, (alpha, beta)
    return chosen


def _votes(image: Tensor, keys: Tensor, labels: Tensor, beta: float, classes: int) -> Tensor:
    weights = torch.exp(-beta * (1 - similarity(image, keys)))
    return weights @ F.one_hot(labels, classes).to(weights)


def _grid(up_to: float, steps: int) -> list[float]:
    return [0.1 + step * (up_to - 0.1) / steps for step in range(steps)]
