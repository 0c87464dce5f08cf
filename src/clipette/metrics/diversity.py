"""Do results vary, or do a few classes or items take them all?"""

from __future__ import annotations

import numpy as np

from clipette.errors import DataError
from clipette.metrics.similarity import Doubles, Reals
from clipette.types import Ints


def normalised_entropy(counts: Reals) -> float:
    """-sum_i p_i ln p_i / ln n, p = counts / sum: 1 = all n alike, 0 = one takes all; NaN if empty or n < 2."""
    total = float(counts.sum())
    if len(counts) < 2 or total <= 0:
        return float("nan")
    shares = counts[counts > 0].astype(np.float64) / total
    return float(max(0.0, -(shares * np.log(shares)).sum()) / np.log(len(counts)))


def result_counts(results: Ints, items: int) -> Ints:
    """How often each of ``items`` appears in result lists [Q, k]: [items]."""
    if results.size and not (results.min() >= 0 and results.max() < items):
        raise DataError(f"results name item {results.max()}, there are {items}")
    return np.bincount(results.reshape(-1), minlength=items).astype(np.int64)


def result_entropy(results: Ints, items: int) -> float:
    """``normalised_entropy`` of ``result_counts``: low where a few hubs answer every query."""
    return normalised_entropy(result_counts(results, items))


def coverage(results: Ints, items: int) -> float:
    """Share of the gallery that appears in at least one result list."""
    return float((result_counts(results, items) > 0).mean()) if items else float("nan")


def list_diversity(results: Ints, gallery: Reals) -> Doubles:
    """1 - mean cosine between the results of each query [Q] (unit gallery [N, D], lists [Q, k], k >= 2)."""
    k = results.shape[1]
    if k < 2:
        raise DataError(f"diversity of a result list needs two results or more, got {k}")
    sums = np.stack([gallery[row].sum(axis=0, dtype=np.float64) for row in results])
    # |sum of unit vectors|^2 = k + sum of the k (k - 1) ordered cosines.
    return np.asarray(1.0 - ((sums**2).sum(axis=1) - k) / (k * (k - 1)), dtype=np.float64)
