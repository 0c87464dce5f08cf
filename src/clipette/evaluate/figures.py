"""From per-item values to figures with intervals, all measures on the same resampled items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipette.errors import DataError
from clipette.evaluate.results import Doubles, Figure, Items
from clipette.metrics.bootstrap import Bootstrap, Interval, percentile, replicate_means


def figure_of(interval: Interval, count: int) -> Figure:
    """An ``Interval`` as a ``Figure``; an interval that could not be had (NaN) becomes None."""
    low, high = (None if np.isnan(edge) else edge for edge in (interval.low, interval.high))
    return Figure(interval.value, low, high, count)


def columns(items: Items, names: Sequence[str]) -> tuple[Doubles, Doubles]:
    """(sums [N, M], counts [N, M]) of the named measures."""
    return np.stack([items.sums[n] for n in names], axis=1), np.stack([items.counts[n] for n in names], axis=1)


def figures_of(items: Items, how: Bootstrap) -> tuple[dict[str, Figure], dict[str, Doubles]]:
    """(figure, replicates [B]) by measure. Every measure's replicate b drew the same items, so they may be combined."""
    names = list(items.sums)
    sums, counts = columns(items, names)
    drawn = replicate_means(sums, counts, how)
    figures = {}
    for column, name in enumerate(names):
        total = float(counts[:, column].sum())
        value = float(sums[:, column].sum()) / total if total else float("nan")
        figures[name] = figure_of(percentile(drawn[:, column], value, how), int(total))
    return figures, {name: drawn[:, column] for column, name in enumerate(names)}


def paired_columns(left: Items, right: Items, name: str) -> tuple[Doubles, Doubles]:
    """Of the items both have: sums [N, 2] and counts [N, 2] of measure ``name``, left then right.

    Raises ``DataError`` where they share no item.
    """
    row = {key: position for position, key in enumerate(right.keys)}
    here = [position for position, key in enumerate(left.keys) if key in row]
    there = [row[left.keys[position]] for position in here]
    if not here:
        raise DataError(f"the two results share no item, so {name!r} cannot be paired: evaluate both on the same data")
    sums = np.stack([left.sums[name][here], right.sums[name][there]], axis=1)
    counts = np.stack([left.counts[name][here], right.counts[name][there]], axis=1)
    return sums, counts
