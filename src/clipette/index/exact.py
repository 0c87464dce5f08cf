"""Exact search: every row compared, blocks of rows at a time, straight from the mapped shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clipette.index.filters import Bools
from clipette.index.store import Found
from clipette.metrics.similarity import GRID
from clipette.types import Floats, Ints

# A block of rows and its scores stay in the second-level cache's reach; one product of all would not.
BLOCK_ROWS = 16_384
BLOCK_SCORES = 4_000_000
# Where fewer rows than this share are wanted, gathering them is cheaper than comparing all.
GATHER = 0.25
STEP = np.float32(1.0) / GRID


class Best:
    """The k best rows of one query so far."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.scores: Floats = np.zeros(0, dtype=np.float32)
        self.rows: Ints = np.zeros(0, dtype=np.int64)
        self.bound = np.float32(-np.inf)

    def add(self, scores: Floats, rows: Ints) -> None:
        """Take candidates in; drop what can be no longer among the best, ties included."""
        self.scores = np.concatenate([self.scores, scores])
        self.rows = np.concatenate([self.rows, rows])
        if len(self.scores) > self.k:
            self.bound = np.partition(self.scores, -self.k)[-self.k] - STEP
            kept = self.scores >= self.bound
            self.scores, self.rows = self.scores[kept], self.rows[kept]


def exact_search(
    blocks: Sequence[Floats], queries: Floats, k: int, allowed: Bools | None, key_of: Callable[[int], str]
) -> Found:
    """The ``k`` rows with the highest cosines of each query [Q, D], best first; equal cosines by key.

    Cosines are snapped to the grid of ``metrics.similarity``, so that equal vectors tie exactly, here as in evaluation.
    ``blocks``: the vectors [n_i, D] of the shards, rows numbered over all of them; ``allowed`` [N]: which count.
    """
    return ranked(nearest_rows(blocks, queries, k, allowed), k, key_of)


def nearest_rows(
    blocks: Sequence[Floats], queries: Floats, k: int, allowed: Bools | None, first: int = 0
) -> list[Best]:
    """Of each query the candidates for its ``k`` best rows; rows are numbered from ``first``."""
    best = [Best(k) for _ in range(len(queries))]
    start = 0
    step = max(1, min(BLOCK_ROWS, BLOCK_SCORES // max(1, len(queries))))
    for vectors in blocks:
        for begin in range(0, len(vectors), step):
            block = vectors[begin : begin + step]
            place = start + begin
            wanted = None if allowed is None else allowed[place : place + len(block)]
            _compare(block, first + place, wanted, queries, best)
        start += len(vectors)
    return best


def _compare(block: Floats, first: int, wanted: Bools | None, queries: Floats, best: list[Best]) -> None:
    rows: Ints | None = None
    if wanted is not None:
        share = float(wanted.mean()) if len(wanted) else 0.0
        if share == 0.0:
            return
        if share < GATHER:
            rows = np.flatnonzero(wanted).astype(np.int64)
            block, wanted = block[rows], None
        elif share == 1.0:
            wanted = None
    # For one query a matrix-vector product: BLAS reads the rows as they lie.
    scores = (block @ queries[0])[None] if len(queries) == 1 else queries @ block.T
    if wanted is not None:
        scores[:, ~wanted] = -np.inf
    k = best[0].k if best else 0
    bounds = np.array([each.bound for each in best], dtype=np.float32)
    if scores.shape[1] > k > 0 and np.isneginf(bounds).any():
        bounds = np.maximum(bounds, np.partition(scores, -k, axis=1)[:, -k] - STEP)
    query, column = np.nonzero(scores >= bounds[:, None])
    ends = np.searchsorted(query, np.arange(len(best) + 1))
    for position in np.flatnonzero(np.diff(ends)).tolist():
        columns = column[ends[position] : ends[position + 1]]
        taken = scores[position, columns]
        there = taken > -np.inf
        columns = columns[there]
        best[position].add(taken[there], (columns if rows is None else rows[columns]) + first)


def ranked(best: Sequence[Best], k: int, key_of: Callable[[int], str]) -> Found:
    """Candidates snapped, ordered by score and key, cut to k."""
    keys: list[list[str]] = []
    scores: list[Floats] = []
    for each in best:
        found = order(each.scores, each.rows, k, key_of)
        keys.append(found[0])
        scores.append(found[1])
    return Found(keys, scores)


def order(scores: Floats, rows: Ints, k: int, key_of: Callable[[int], str]) -> tuple[list[str], Floats]:
    """The first ``k`` of candidates: by snapped score, then by key."""
    snapped = np.asarray(np.rint(scores * GRID) / GRID, dtype=np.float32)
    if len(snapped) > k:
        kept = np.flatnonzero(snapped >= np.partition(snapped, -k)[-k])
        snapped, rows = snapped[kept], rows[kept]
    named = [key_of(int(row)) for row in rows]
    sequence = sorted(range(len(named)), key=lambda i: (-float(snapped[i]), named[i]))[:k]
    return [named[i] for i in sequence], snapped[sequence]
