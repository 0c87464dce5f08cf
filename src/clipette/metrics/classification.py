"""Classification from scores [N, C] and labels [N]; exact ties count by their expected value under a random order."""

from __future__ import annotations

import numpy as np

from clipette.errors import DataError
from clipette.metrics.similarity import Doubles, Reals, require_finite
from clipette.types import Ints


def _checked(scores: Reals, labels: Ints) -> None:
    if scores.ndim != 2 or len(scores) != len(labels):
        raise DataError(f"scores {scores.shape} and labels {labels.shape} do not fit: need [N, C] and [N]")
    if len(labels) and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
        raise DataError(f"labels {labels.min()}..{labels.max()} outside the {scores.shape[1]} classes of the scores")
    require_finite(scores)


def correct_at(scores: Reals, labels: Ints, k: int) -> Doubles:
    """P(the label is among the k best classes) [N]: 0 or 1, a share where the label ties at the border.

    clip((k - above) / tied, 0, 1). Constant scores give k / C, which is chance.
    """
    _checked(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    above = (scores > own).sum(axis=1)
    tied = (scores == own).sum(axis=1)
    return np.asarray(np.clip((k - above) / tied, 0.0, 1.0), dtype=np.float64)


def first_shares(scores: Reals) -> Doubles:
    """P(class is predicted) [N, C]: 1 for the best class, split evenly among exact ties."""
    best = scores == scores.max(axis=1, keepdims=True)
    return np.asarray(best / best.sum(axis=1, keepdims=True), dtype=np.float64)


def confusion(scores: Reals, labels: Ints) -> Doubles:
    """[C, C]: entry (i, j) counts items of class i predicted as j; ties are split: the diagonal agrees with top-1."""
    _checked(scores, labels)
    out = np.zeros((scores.shape[1], scores.shape[1]), dtype=np.float64)
    np.add.at(out, labels, first_shares(scores))
    return out


def per_class_accuracy(correct: Doubles, labels: Ints, classes: int) -> Doubles:
    """Mean of ``correct`` [N] within each class [C]; NaN for a class without items."""
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=correct, minlength=classes)
    accuracy: Doubles = np.divide(total, count, out=np.full(classes, np.nan), where=count > 0)
    return accuracy


def mean_per_class(correct: Doubles, labels: Ints, classes: int) -> float:
    """Mean of the classes' accuracies, each class once whatever its size; classes without items left out."""
    accuracies = per_class_accuracy(correct, labels, classes)
    present = accuracies[~np.isnan(accuracies)]
    return float(present.mean()) if len(present) else float("nan")


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n): the HM of base-to-novel tables; 0 where either is 0."""
    return 2.0 * base * novel / (base + novel) if base + novel > 0 else 0.0


def base_count(classes: int) -> int:
    """CoOp's split: the first ceil(n / 2) classes are base, the rest novel."""
    return (classes + 1) // 2
