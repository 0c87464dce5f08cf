"""Ranking measures with several relevant items per query and exact ties, without ever holding the full score matrix.

**Ties.** Every measure is its expected value over all orders of the tied items (McSherry and Najork, "Computing
information retrieval performance measures efficiently in the presence of tied scores", ECIR 2008). So a model that
scores everything alike gets exactly chance, and no measure depends on the order in which items are stored. Without ties
the values are trec_eval's.

A measure needs only, for each relevant item, how many items score higher and how many score the same. That is what
``rank_relevant`` collects by blocks of queries; ``measure`` turns it into figures per query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipette.errors import DataError
from clipette.metrics.similarity import BLOCK_BYTES, Doubles, Reals, cosines, require_finite, row_blocks
from clipette.types import Ints

# Counting by comparison costs one pass over a block per relevant item, sorting a row about this many.
_SORT_FROM = 12


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which items answer which query: ``item[m]`` is relevant for ``query[m]``. Build it with ``relevance``."""

    query: Ints
    item: Ints
    queries: int
    items: int

    def transposed(self) -> Relevance:
        """Items ask, queries answer: the other direction of the same pairs."""
        return relevance(self.item, self.query, queries=self.items, items=self.queries)


def relevance(query: Ints | Sequence[int], item: Ints | Sequence[int], *, queries: int, items: int) -> Relevance:
    """Pairs sorted by query, repeated pairs counted once. Raises ``DataError`` for an index out of range."""
    pairs = np.unique(np.stack([np.asarray(query, np.int64), np.asarray(item, np.int64)], axis=1), axis=0)
    for name, column, size in (("query", pairs[:, 0], queries), ("item", pairs[:, 1], items)):
        if len(column) and not (column.min() >= 0 and column.max() < size):
            raise DataError(f"relevance: {name} index outside 0..{size - 1} (found {column.min()}..{column.max()})")
    return Relevance(pairs[:, 0].copy(), pairs[:, 1].copy(), queries, items)


def relevance_of_classes(query_labels: Ints, item_labels: Ints) -> Relevance:
    """An item is relevant if it has the query's class: class name to image, or image to image."""
    order = np.argsort(item_labels, kind="stable")
    ordered = np.asarray(item_labels)[order]
    start = np.searchsorted(ordered, query_labels, "left")
    counts = np.searchsorted(ordered, query_labels, "right") - start
    query = np.repeat(np.arange(len(query_labels)), counts)
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    item = order[np.repeat(start, counts) + inside]
    return relevance(query, item, queries=len(query_labels), items=len(item_labels))


@dataclass(frozen=True, slots=True)
class TiedRanks:
    """Tie groups that hold a relevant item, best first within a query.

    For group m of query ``query[m]``: ``above`` items score higher, ``tied`` score the same (relevant ones included),
    ``relevant`` of those are relevant, and ``relevant_above`` relevant items score higher.
    """

    query: Ints
    above: Ints
    tied: Ints
    relevant: Ints
    relevant_above: Ints
    relevant_total: Ints  # [queries]: number of relevant items of each query
    items: int


def _counts_in_block(scores: Reals, row: Ints, target: Reals) -> tuple[Ints, Ints]:
    """For each (row, target score): how many of the row's scores are greater, how many equal. ``row`` is sorted."""
    above = np.empty(len(row), dtype=np.int64)
    tied = np.empty(len(row), dtype=np.int64)
    first = np.searchsorted(row, row, "left")
    slot = np.arange(len(row)) - first  # which relevant item of its row this is
    slots = int(slot.max(initial=-1)) + 1
    if slots <= _SORT_FROM:
        for current in range(slots):
            pairs = np.flatnonzero(slot == current)
            block = scores if len(pairs) == len(scores) else scores[row[pairs]]
            above[pairs] = (block > target[pairs, None]).sum(axis=1)
            tied[pairs] = (block == target[pairs, None]).sum(axis=1)
        return above, tied
    starts = np.flatnonzero(slot == 0)
    for start, stop in zip(starts, np.append(starts[1:], len(row)), strict=True):
        ordered = np.sort(scores[row[start]])
        left = np.searchsorted(ordered, target[start:stop], "left")
        right = np.searchsorted(ordered, target[start:stop], "right")
        above[start:stop] = len(ordered) - right
        tied[start:stop] = right - left
    return above, tied


def _rank(score_rows: Callable[[slice], Reals], relevant: Relevance, block_bytes: int, items: int) -> TiedRanks:
    above = np.empty(len(relevant.query), dtype=np.int64)
    tied = np.empty(len(relevant.query), dtype=np.int64)
    for rows in row_blocks(relevant.queries, relevant.items, block_bytes):
        start, stop = np.searchsorted(relevant.query, [rows.start, rows.stop])
        if start == stop:
            continue
        scores = score_rows(rows)
        row = relevant.query[start:stop] - rows.start
        target = scores[row, relevant.item[start:stop]]
        above[start:stop], tied[start:stop] = _counts_in_block(scores, row, target)
    return _grouped(relevant.query, above, tied, relevant.queries, items)


def _grouped(query: Ints, above: Ints, tied: Ints, queries: int, items: int) -> TiedRanks:
    order = np.lexsort((above, query))
    query, above, tied = query[order], above[order], tied[order]
    new = np.ones(len(query), dtype=bool)
    new[1:] = (query[1:] != query[:-1]) | (above[1:] != above[:-1])
    starts = np.flatnonzero(new)
    relevant = np.diff(np.append(starts, len(query)))
    before = starts - np.searchsorted(query, query[starts], "left")
    total = np.bincount(query, minlength=queries)
    return TiedRanks(query[starts], above[starts], tied[starts], relevant, before, total, items)


def rank_relevant(
    queries: Reals,
    gallery: Reals,
    relevant: Relevance,
    *,
    exclude_self: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> TiedRanks:
    """Where the relevant items stand for each query, by cosine of unit vectors [Q, D] and [N, D].

    ``exclude_self``: queries are the gallery (image to image); item i is never a result of query i, and a pair (i, i)
    in ``relevant`` is dropped. Memory: one block of ``block_bytes`` and a few copies. Raises ``DataError`` where
    ``relevant`` does not fit, ``ModelError`` on NaN.
    """
    if (len(queries), len(gallery)) != (relevant.queries, relevant.items):
        raise DataError(
            f"relevance is for {relevant.queries} queries and {relevant.items} items, "
            f"the vectors are {len(queries)} and {len(gallery)}"
        )
    if not exclude_self:
        return _rank(lambda rows: cosines(queries[rows], gallery), relevant, block_bytes, len(gallery))
    others = relevant.query != relevant.item
    kept = Relevance(relevant.query[others], relevant.item[others], relevant.queries, relevant.items)

    def without_self(rows: slice) -> Reals:
        scores = cosines(queries[rows], gallery)
        scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf
        return scores

    return _rank(without_self, kept, block_bytes, len(gallery) - 1)


def rank_relevant_of_scores(scores: Reals, relevant: Relevance) -> TiedRanks:
    """``rank_relevant`` from a score matrix [Q, N] that is already there (any real scores, compared exactly)."""
    if scores.shape != (relevant.queries, relevant.items):
        raise DataError(f"relevance is for {(relevant.queries, relevant.items)}, the scores are {scores.shape}")
    require_finite(scores)
    return _rank(lambda rows: scores[rows], relevant, BLOCK_BYTES, relevant.items)


def _sum_by_query(ranks: TiedRanks, values: npt.NDArray[Any]) -> Doubles:
    return np.bincount(ranks.query, weights=values, minlength=len(ranks.relevant_total)).astype(np.float64)


def _found(ranks: TiedRanks, k: int) -> Doubles:
    """Expected number of relevant items among the first k [Q]."""
    places = np.clip(k - ranks.above, 0, ranks.tied)
    return _sum_by_query(ranks, ranks.relevant * places / ranks.tied)


def _first_groups(ranks: TiedRanks) -> tuple[Ints, Ints, Ints, Ints]:
    """Of each query's best group: (query, above, tied, relevant)."""
    first = ranks.relevant_above == 0
    return ranks.query[first], ranks.above[first], ranks.tied[first], ranks.relevant[first]


def hit_at(ranks: TiedRanks, k: int) -> Doubles:
    """P(at least one relevant item among the first k) [Q]: the "R@k" of image-text papers; Success@k elsewhere."""
    query, above, tied, relevant = _first_groups(ranks)
    places = np.clip(k - above, 0, tied)
    # No relevant one in `places` of the `tied` positions: prod_j (tied - relevant - j) / (tied - j).
    miss = np.ones(len(query), dtype=np.float64)
    for j in range(int(places.max(initial=0))):
        miss *= np.where(j < places, np.clip(tied - relevant - j, 0, None) / np.clip(tied - j, 1, None), 1.0)
    out = np.zeros(len(ranks.relevant_total), dtype=np.float64)
    out[query] = 1.0 - miss
    return out


def recall_at(ranks: TiedRanks, k: int) -> Doubles:
    """Relevant items among the first k / relevant items [Q]: true recall."""
    return _found(ranks, k) / np.maximum(ranks.relevant_total, 1)


def precision_at(ranks: TiedRanks, k: int) -> Doubles:
    """Relevant items among the first k / k [Q] (k even where the gallery is smaller, as trec_eval)."""
    return _found(ranks, k) / k


def reciprocal_rank(ranks: TiedRanks) -> Doubles:
    """1 / rank of the first relevant item [Q], expected over ties: sum_j P(first at j) / (above + j)."""
    query, above, tied, relevant = _first_groups(ranks)
    out = np.zeros(len(ranks.relevant_total), dtype=np.float64)
    out[query] = 1.0 / (above + 1)
    several = tied > 1
    if several.any():
        groups = np.stack([above, tied, relevant], axis=1)[several]
        kinds, kind = np.unique(groups, axis=0, return_inverse=True)
        expected = np.array([_expected_reciprocal(*map(int, row)) for row in kinds], dtype=np.float64)
        out[query[several]] = expected[kind.reshape(-1)]
    return out


def _expected_reciprocal(above: int, tied: int, relevant: int) -> float:
    places = np.arange(1, tied - relevant + 2, dtype=np.float64)
    # P(first relevant at place 1) = relevant / tied; each next place multiplies by (tied - j - relevant + 1) / (tied -
    # j).
    ratios = np.concatenate([[relevant / tied], (tied - places - relevant + 1)[:-1] / (tied - places[:-1])])
    return float((np.cumprod(ratios) / (above + places)).sum())


def average_precision(ranks: TiedRanks) -> Doubles:
    """Mean over the query's relevant items of the precision at their rank [Q]; denominator: **all** its relevant items.

    Whole ranking, as trec_eval's ``map``. A tied group adds
    (r/g) * sum_{p=1..g} (R + 1 + (p-1)(r-1)/(g-1)) / (o+p), with o items and R relevant ones above it.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, ranks.items + 1))])
    above, tied, relevant = ranks.above, ranks.tied, ranks.relevant
    first = harmonic[above + tied] - harmonic[above]
    # sum of (p-1)/(o+p) over the group is g - (o+1) * first: (p-1) = (o+p) - (o+1).
    second = tied - (above + 1) * first
    others = np.where(tied > 1, (relevant - 1) / np.maximum(tied - 1, 1), 0.0)
    total = _sum_by_query(ranks, relevant / tied * ((ranks.relevant_above + 1) * first + others * second))
    return total / np.maximum(ranks.relevant_total, 1)


def ndcg_at(ranks: TiedRanks, k: int) -> Doubles:
    """DCG / ideal DCG over the first k [Q]; binary gains, discount 1 / log2(rank + 1). Jarvelin and Kekalainen."""
    depth = min(k, ranks.items)
    discount = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, depth + 2)))])
    reached = discount[np.minimum(ranks.above + ranks.tied, depth)] - discount[np.minimum(ranks.above, depth)]
    gained = _sum_by_query(ranks, ranks.relevant / ranks.tied * reached)
    ideal = discount[np.minimum(ranks.relevant_total, depth)]
    ndcg: Doubles = np.divide(gained, ideal, out=np.zeros_like(gained), where=ideal > 0)
    return ndcg


def expected_first_rank(ranks: TiedRanks) -> Doubles:
    """Expected rank (from 1) of the first relevant item [Q]; NaN for a query without one."""
    query, above, tied, relevant = _first_groups(ranks)
    out = np.full(len(ranks.relevant_total), np.nan, dtype=np.float64)
    out[query] = above + (tied + 1) / (relevant + 1)
    return out


def measure(ranks: TiedRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Doubles]:
    """Per-query values [Q] of hit@k, recall@k, precision@k, ndcg@k for each k, and mrr and map; all in 0..1.

    A query without relevant items scores 0 everywhere, as trec_eval -c; callers leave such queries out beforehand.
    """
    if any(k < 1 for k in ks):
        raise DataError(f"ks must be at least 1, got {tuple(ks)}")
    out: dict[str, Doubles] = {}
    for name, function in (("hit", hit_at), ("recall", recall_at), ("precision", precision_at), ("ndcg", ndcg_at)):
        out.update({f"{name}@{k}": function(ranks, k) for k in ks})
    return out | {"mrr": reciprocal_rank(ranks), "map": average_precision(ranks)}
