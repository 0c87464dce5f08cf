"""From nearest neighbours to a result list: unwanted things pushed down, near-duplicates folded, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipette.index.collection import Collection
from clipette.index.filters import Filter
from clipette.index.mixing import Moments, Reference, mixed, penalties
from clipette.index.rerank import centred, groups, mmr
from clipette.index.store import Kind
from clipette.metrics.similarity import cosines
from clipette.types import Floats, Ints

# Candidates looked at per hit wanted, and at least so many: re-ranking can only choose among what it sees.
PER_HIT, AT_LEAST = 4, 200
# Folding duplicates asks for more until k groups are there, up to so many candidates.
MOST_CANDIDATES = 5000
# How hard negatives steer the second list of candidates: see `_steered`.
STEER = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query ready to be searched: its vector [D] and what it was mixed of, negatives [M, D], keys to leave out."""

    vector: Floats
    parts: tuple[tuple[Floats, float], ...]
    negatives: Floats
    negative_weight: float
    skip: frozenset[str]


@dataclass(frozen=True, slots=True)
class Picked:
    """One item found: its cosine, what it was ranked by (in units of spread, less penalties), keys folded into it."""

    key: str
    score: float
    standard: float
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asking:
    """What is the same for all queries of a search."""

    collection: Collection
    reference: Reference
    k: int
    where: Filter | str | None
    kind: Kind
    mmr: float | None
    group: bool
    exact: bool | None


@dataclass(slots=True)
class _Pool:
    """Candidates, best first: keys, cosines [n], and what they are ranked by [n]."""

    keys: list[str]
    scores: Floats
    standard: Floats
    vectors: Floats | None = None

    def taken(self, rows: Ints) -> _Pool:
        vectors = None if self.vectors is None else self.vectors[rows]
        return _Pool([self.keys[row] for row in rows.tolist()], self.scores[rows], self.standard[rows], vectors)


def refined(
    collection: Collection,
    queries: Sequence[Wanted],
    reference: Reference,
    *,
    k: int,
    where: Filter | str | None,
    kind: Kind,
    mmr: float | None,
    group: bool,
    exact: bool | None,
    standard: bool = False,
) -> list[list[Picked]]:
    """At most ``k`` items of one kind for each query, best first.

    ``standard``: put ``Picked.standard`` in units of spread, for comparison with items of another kind; else it may be
    the bare cosine, which costs nothing.

    Without negatives, marks, MMR and grouping the order is that of the collection's search: cosine, then key.
    """
    if not queries:
        return []
    asking = _Asking(collection, reference, k, where, kind, mmr, group, exact)
    depths = [_depth(query, asking) for query in queries]
    # One pass over the collection for all queries; those that need more come back for it.
    found = collection.search_vectors(np.stack([query.vector for query in queries]), max(depths), where, exact, kind)
    if standard or any(len(query.negatives) for query in queries):
        moments = reference.moments_of(np.stack([query.vector for query in queries]))
    else:
        moments = [Moments(0.0, 1.0)] * len(queries)
    out = []
    for query, known, depth, keys, scores in zip(queries, moments, depths, found.keys, found.scores, strict=True):
        out.append(_one(query, known, asking, depth, keys, scores))
    return out


def _depth(query: Wanted, asking: _Asking) -> int:
    """How many candidates to look at: no more than there are hits wanted, where nothing is re-ranked."""
    plain = asking.k + len(query.skip)
    if len(query.negatives) or asking.mmr is not None:
        return max(PER_HIT * plain, AT_LEAST)
    return 2 * plain + 10 if asking.group else plain


def _one(
    query: Wanted, known: Moments, asking: _Asking, depth: int, keys: Sequence[str], scores: Floats
) -> list[Picked]:
    while True:
        pool = _pool(query, known, asking, depth, keys, scores)
        members = [[row] for row in range(len(pool.keys))]
        if asking.group and pool.keys:
            vectors = _vectors(pool, asking)
            members = groups(centred(vectors, asking.reference.centre))
            more = len(keys) >= depth and depth < MOST_CANDIDATES
            if len(members) < asking.k and more:
                depth *= 2
                found = asking.collection.search_vectors(
                    query.vector[None], depth, asking.where, asking.exact, asking.kind
                )
                keys, scores = found.keys[0], found.scores[0]
                continue
        leaders = np.array([rows[0] for rows in members], dtype=np.int64)
        if asking.mmr is not None and len(leaders):
            _vectors(pool, asking)
            chosen = _diverse(pool.taken(leaders), asking, asking.mmr)
        else:
            chosen = np.arange(min(asking.k, len(leaders)))
        return [
            Picked(
                pool.keys[leaders[row]],
                float(pool.scores[leaders[row]]),
                float(pool.standard[leaders[row]]),
                tuple(pool.keys[other] for other in members[row][1:]),
            )
            for row in chosen.tolist()
        ]


def _pool(query: Wanted, known: Moments, asking: _Asking, depth: int, keys: Sequence[str], scores: Floats) -> _Pool:
    kept = [row for row, key in enumerate(keys) if key not in query.skip]
    names, values = [keys[row] for row in kept], scores[kept]
    if not len(query.negatives) or query.negative_weight == 0:
        return _Pool(names[:depth], values[:depth], (values[:depth] - known.mean) / known.spread)
    names, values = _steered(query, asking, depth, names, values)
    pool = _Pool(names, values, (values - known.mean) / known.spread)
    vectors = _vectors(pool, asking)
    pool.standard = pool.standard - penalties(vectors, query.negatives, asking.reference, query.negative_weight)
    # Ties as everywhere: by key.
    order = sorted(range(len(names)), key=lambda row: (-float(pool.standard[row]), names[row]))
    return pool.taken(np.array(order, dtype=np.int64))


def _steered(query: Wanted, asking: _Asking, depth: int, keys: list[str], scores: Floats) -> tuple[list[str], Floats]:
    """Further candidates, away from the negatives: where what is unwanted fills the list, none else would be seen."""
    pull = -STEER * query.negative_weight / len(query.negatives)
    total = sum(abs(weight) for _, weight in query.parts)
    parts = [*((vector, weight / total) for vector, weight in query.parts), *((n, pull) for n in query.negatives)]
    vector = mixed(parts, asking.reference)
    found = asking.collection.search_vectors(vector[None], depth, asking.where, asking.exact, asking.kind)
    there = {*keys, *query.skip}
    fresh = [key for key in found.keys[0] if key not in there]
    if not fresh:
        return keys, scores
    added = cosines(query.vector[None], asking.collection.vectors(fresh))[0]
    return [*keys, *fresh], np.concatenate([scores, added])


def _vectors(pool: _Pool, asking: _Asking) -> Floats:
    if pool.vectors is None:
        pool.vectors = asking.collection.vectors(pool.keys)
    return pool.vectors


def _diverse(pool: _Pool, asking: _Asking, balance: float) -> Ints:
    vectors = _vectors(pool, asking)
    return mmr(pool.standard, centred(vectors, asking.reference.centre), asking.k, balance)
