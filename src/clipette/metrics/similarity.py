"""Cosines by blocks of rows, top-k lists, and the chance of being among the first k when scores tie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipette.errors import ModelError
from clipette.types import Floats, Ints

Doubles: TypeAlias = npt.NDArray[np.float64]
Reals: TypeAlias = npt.NDArray[Any]

BLOCK_BYTES = 64 << 20
# BLAS sums in another order at the edges of its blocks, so equal vectors can give cosines some 1e-7 apart. Cosines are
# snapped to this grid before they are ranked: what is equal ties exactly, wherever it stands in the matrix.
GRID = np.float32(2.0**20)


def require_finite(scores: Reals, what: str = "scores") -> None:
    """Raises ``ModelError`` naming the first row of ``scores`` [N, ...] that holds NaN or an infinity."""
    finite = np.isfinite(scores)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise ModelError(f"{what}: row {row} is not finite; the model returned NaN or infinity: check its weights")


def cosines(left: Reals, right: Reals) -> Floats:
    """Cosines [N, M] of unit vectors [N, D] and [M, D], snapped to a grid of 2^-20. Raises ``ModelError`` on NaN."""
    product = np.asarray(left, dtype=np.float32) @ np.asarray(right, dtype=np.float32).T
    require_finite(product, "similarities")
    product *= GRID
    np.rint(product, out=product)
    product /= GRID
    return np.asarray(product, dtype=np.float32)


def row_blocks(rows: int, columns: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of ``rows`` such that a float32 block [slice, columns] stays within ``block_bytes``."""
    step = max(1, block_bytes // (4 * max(1, columns)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def top_k_of_scores(scores: Reals, k: int) -> Ints:
    """Columns [N, min(k, M)] of the highest scores, best first; among equals the lowest column first."""
    k = min(k, scores.shape[1])
    if k == 0:
        return np.zeros((scores.shape[0], 0), dtype=np.int64)
    threshold = np.partition(scores, -k, axis=1)[:, -k, None]
    # Above the threshold everything enters; of those equal to it, the first columns do until k are reached.
    chosen = scores >= threshold
    crowded = np.flatnonzero(chosen.sum(axis=1) > k)
    if len(crowded):
        above = scores[crowded] > threshold[crowded]
        equal = scores[crowded] == threshold[crowded]
        room = k - above.sum(axis=1, keepdims=True)
        chosen[crowded] = above | (equal & (np.cumsum(equal, axis=1) <= room))
    columns = np.nonzero(chosen)[1].reshape(scores.shape[0], k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(columns, order, axis=1), dtype=np.int64)


def top_k(queries: Reals, gallery: Reals, k: int, *, block_bytes: int = BLOCK_BYTES) -> Ints:
    """Rows of ``gallery`` [M, D] nearest to each query [N, D]: [N, min(k, M)], best first, by blocks of queries."""
    blocks = [
        top_k_of_scores(cosines(queries[rows], gallery), k)
        for rows in row_blocks(len(queries), len(gallery), block_bytes)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, min(k, len(gallery))), dtype=np.int64)


def inclusion(scores: Reals, k: int) -> Doubles:
    """P(column is among the first k) [N, M] when exact ties are ordered at random: 1, 0, or a share of the tied places.

    Rows sum to min(k, M).
    """
    count = scores.shape[1]
    if k >= count:
        return np.ones(scores.shape, dtype=np.float64)
    threshold = np.partition(scores, -k, axis=1)[:, -k, None]
    above = scores > threshold
    equal = scores == threshold
    share = (k - above.sum(axis=1, keepdims=True)) / equal.sum(axis=1, keepdims=True)
    return np.asarray(above + equal * share, dtype=np.float64)
