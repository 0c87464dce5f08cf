"""Percentile bootstrap intervals (Efron, 1979): means, paired differences and ratios, seeds and items.

What is resampled are **items** (images), so intervals tell how much another sample of images would move the figure.
Values that belong to one image (its five captions) move together: pass ``groups``. The gallery of a search stays as it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clipette.errors import DataError
from clipette.metrics.similarity import Doubles, Reals
from clipette.types import Ints

_WEIGHTS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its percentile interval at the asked level."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How to resample: ``resamples`` replicates, a ``seed``, a ``level`` in (0, 1)."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0.0 < self.level < 1.0:
            raise DataError(f"bootstrap needs resamples >= 1 and 0 < level < 1, got {self.resamples}, {self.level}")


def grouped(values: Doubles, groups: Ints | None = None) -> tuple[Doubles, Doubles]:
    """(sum, count) of ``values`` [N] per group [G]; without groups, each value is its own group."""
    if groups is None:
        return values.astype(np.float64), np.ones(len(values), dtype=np.float64)
    if len(groups) != len(values):
        raise DataError(f"{len(values)} values and {len(groups)} groups: need one group per value")
    index = np.unique(groups, return_inverse=True)[1].reshape(-1)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def _weights(items: int, how: Bootstrap) -> Iterator[Doubles]:
    """Multinomial counts [b, items], in blocks that add up to ``how.resamples`` replicates."""
    generator = np.random.default_rng(how.seed)
    step = max(1, _WEIGHTS_AT_ONCE // max(1, items))
    for start in range(0, how.resamples, step):
        rows = min(step, how.resamples - start)
        drawn = generator.integers(0, items, size=(rows, items))
        drawn += np.arange(rows)[:, None] * items
        yield np.bincount(drawn.reshape(-1), minlength=rows * items).reshape(rows, items).astype(np.float64)


def replicate_means(sums: Doubles, counts: Doubles, how: Bootstrap = Bootstrap()) -> Doubles:
    """Replicates [B, M] of sum(sums) / sum(counts) over items, the **same** items drawn for all M columns.

    ``sums`` and ``counts``: [N, M]. A replicate that drew no count at all is NaN.
    """
    if sums.shape != counts.shape or sums.ndim != 2 or not len(sums):
        raise DataError(f"bootstrap needs one item or more and equal shapes [N, M], got {sums.shape}, {counts.shape}")
    out = []
    for weights in _weights(len(sums), how):
        total, count = weights @ sums, weights @ counts
        out.append(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))
    return np.concatenate(out)


def percentile(replicates: Doubles, value: float, how: Bootstrap = Bootstrap()) -> Interval:
    """The central ``how.level`` of replicates [B], NaN left out, around ``value``."""
    finite = replicates[~np.isnan(replicates)]
    if not len(finite):
        return Interval(value, float("nan"), float("nan"))
    tail = (1.0 - how.level) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(values: Doubles, groups: Ints | None = None, how: Bootstrap = Bootstrap()) -> Interval:
    """Mean of ``values`` [N] with its interval over items, or over ``groups`` [N] of values that move together."""
    sums, counts = grouped(values, groups)
    replicates = replicate_means(sums[:, None], counts[:, None], how)[:, 0]
    return percentile(replicates, float(sums.sum() / counts.sum()), how)


def statistic_interval(statistic: Callable[[Ints], float], items: int, how: Bootstrap = Bootstrap()) -> Interval:
    """Any ``statistic(indices [N])`` with its interval: called once per replicate, so keep it cheap."""
    if items < 1:
        raise DataError("bootstrap needs one item or more")
    generator = np.random.default_rng(how.seed)
    draws = (generator.integers(0, items, size=items) for _ in range(how.resamples))
    replicates = np.array([statistic(draw) for draw in draws], dtype=np.float64)
    return percentile(replicates, statistic(np.arange(items)), how)


def _paired(left: Doubles, right: Doubles, groups: Ints | None, how: Bootstrap) -> tuple[Doubles, Doubles, Doubles]:
    if left.shape != right.shape:
        raise DataError(f"paired values must belong to the same items: {left.shape} and {right.shape}")
    (a, counts), (b, _) = grouped(left, groups), grouped(right, groups)
    sums = np.stack([a, b], axis=1)
    both = np.stack([counts, counts], axis=1)
    means = sums.sum(axis=0) / both.sum(axis=0)
    replicates = replicate_means(sums, both, how)
    return means, replicates[:, 0], replicates[:, 1]


def difference_interval(
    left: Doubles, right: Doubles, groups: Ints | None = None, how: Bootstrap = Bootstrap()
) -> Interval:
    """mean(left) - mean(right) on the same items, each replicate drawing the same items for both (paired)."""
    means, a, b = _paired(left, right, groups, how)
    return percentile(a - b, float(means[0] - means[1]), how)


def ratio_interval(left: Doubles, right: Doubles, groups: Ints | None = None, how: Bootstrap = Bootstrap()) -> Interval:
    """mean(left) / mean(right), paired: retention of student over teacher. NaN where the denominator is 0."""
    means, a, b = _paired(left, right, groups, how)
    ratios = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
    return percentile(ratios, float(means[0] / means[1]) if means[1] > 0 else float("nan"), how)


def hierarchical_interval(values: Reals, how: Bootstrap = Bootstrap()) -> Interval:
    """Mean of ``values`` [S, N] (S training seeds, the same N test items) with both as sources of chance.

    Each replicate draws S seeds and, independently, N items **shared by all seeds**: seeds and items are crossed, for
    every seed is tested on the same images. Drawing items anew within each seed would average their noise away.
    """
    if values.ndim != 2 or not values.size:
        raise DataError(f"need values [seeds, items] with one of each or more, got shape {values.shape}")
    seeds, items = values.shape
    generator = np.random.default_rng([how.seed, 1])
    drawn = np.stack([np.bincount(generator.integers(0, seeds, seeds), minlength=seeds) for _ in range(how.resamples)])
    per_seed = np.concatenate([weights @ values.T.astype(np.float64) for weights in _weights(items, how)]) / items
    replicates = (per_seed * drawn).sum(axis=1) / seeds
    return percentile(replicates, float(values.mean(dtype=np.float64)), how)


def hierarchical_difference(left: Reals, right: Reals, how: Bootstrap = Bootstrap()) -> Interval:
    """mean(left) - mean(right) for [S, N] arms with the same seeds and items, both drawn together (paired)."""
    if left.shape != right.shape:
        raise DataError(f"paired arms must have the same seeds and items: {left.shape} and {right.shape}")
    return hierarchical_interval(left.astype(np.float64) - right.astype(np.float64), how)
