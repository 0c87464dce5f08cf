"""Recall measured: what share of the exact results the index finds, unfiltered and under filters; settings raised."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipette.errors import StoreError
from clipette.index.filters import BUCKET, Compare, Filter
from clipette.index.layout import QUERIES_FILE
from clipette.index.store import Found, Kind
from clipette.io import digest, write_atomic
from clipette.metrics.similarity import GRID
from clipette.types import Floats

if TYPE_CHECKING:
    from clipette.index.collection import Collection

K = 10
ASKED = 0.98
QUERIES = 200
# Shares of the rows that a filter lets through, and the filter: by a hash of the key, so that it knows no content.
SELECTIVITIES: dict[str, Filter | None] = {
    "all": None,
    "10%": Filter(Compare(BUCKET, "<", 100)),
    "1%": Filter(Compare(BUCKET, "<", 10)),
}
EFFORTS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
# Products of one query and of many sum in another order: a cosine may fall on either side of a step of its grid.
SAME = 2 / float(GRID)


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries [Q, D] for rows of one kind; ``own``: the keys of those that are rows themselves and find themselves."""

    queries: Floats
    kind: Kind | None
    own: Sequence[str | None]


def recall_of(found: Found, exact: Found, own: Sequence[str | None], k: int) -> float:
    """Mean over queries of |found ∩ exact| / |exact|, of the first ``k`` beside the query itself.

    A row as near as the k-th exact one counts: among equals neither list is wrong.
    """
    shares: list[float] = []
    for position, key in enumerate(own):
        best = [s for name, s in _others(exact, position, key)][:k]
        if best:
            got = [s for name, s in _others(found, position, key)][:k]
            shares.append(sum(score >= best[-1] - SAME for score in got) / len(best))
    return float(np.mean(shares)) if shares else 1.0


def _others(found: Found, position: int, own: str | None) -> list[tuple[str, float]]:
    pairs = zip(found.keys[position], found.scores[position].tolist(), strict=True)
    return [(name, score) for name, score in pairs if name != own]


def sampled_queries(collection: Collection, count: int | None = None, seed: int = 0) -> list[Asked]:
    """Queries to measure with: rows of the index, and the texts that were kept at the build, which ask for images.

    ``count`` of each sort, ``QUERIES`` if not given. Where no texts were kept, strays stand for them: rows with twice
    their length of noise. Rows alone flatter a graph, for they lie where it was built: of 100,000 vectors an effort
    that found all neighbours of rows found .920 of those of CLIP's texts, and .899 of those of strays (.975 and .969,
    .990 and .990, .996 and .997 at the next efforts).
    """
    groups: list[Asked] = []
    count = QUERIES if count is None else count
    images = collection.sample_keys(count, kind="image", seed=seed)
    if images:
        groups.append(Asked(collection.vectors(images), None, images))
    texts = collection.sample_keys(count, kind="text", seed=seed)
    if texts:
        groups.append(Asked(collection.vectors(texts), "image" if images else None, texts))
    kept = kept_queries(collection.path, collection.dim)
    if len(kept):
        groups.append(Asked(kept[:count], "image", [None] * len(kept[:count])))
    elif groups:
        groups.append(Asked(_strays(groups[0].queries, seed), groups[0].kind, [None] * len(groups[0].queries)))
    return groups


def _strays(rows: Floats, seed: int) -> Floats:
    noise = np.random.default_rng(seed).normal(size=rows.shape).astype(np.float32)
    moved = rows + 2 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)


def keep_queries(collection: Collection, queries: Floats) -> None:
    """Keep the vectors of texts that people might type, for later measurements."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(queries, dtype=np.float32), allow_pickle=False)
    data = buffer.getvalue()
    write_atomic(collection.path / QUERIES_FILE, data)
    collection.set_fact("queries", {"size": len(data), "digest": digest(data)})


def kept_queries(root: Path, dim: int) -> Floats:
    """[Q, D] what ``keep_queries`` wrote; none where there is nothing."""
    path = root / QUERIES_FILE
    if not path.exists():
        return np.zeros((0, dim), dtype=np.float32)
    try:
        queries: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete it: recall is then measured without it") from error
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise StoreError(f"{path}: shape {list(queries.shape)} for an index {dim} wide; delete it")
    return queries.astype(np.float32)


class Measurement:
    """Exact results are found once, whatever settings are then tried."""

    def __init__(self, collection: Collection, groups: Sequence[Asked], k: int = K) -> None:
        self.collection = collection
        self.groups = groups
        self.k = k
        self._exact: dict[tuple[str, int], Found] = {}

    def recall(self, name: str) -> float:
        """Recall@k of the single searches that users get, under one of ``SELECTIVITIES``."""
        where = SELECTIVITIES[name]
        values: list[float] = []
        for number, group in enumerate(self.groups):
            if self.collection.searches_exactly(where, group.kind):
                values.append(1.0)
                continue
            found = self.collection.search_vectors(group.queries, self.k + 1, where, False, group.kind)
            values.append(recall_of(found, self._truth(name, number, where, group), group.own, self.k))
        # The worst kind of query counts: text queries lie elsewhere in the space than images do.
        return min(values, default=1.0)

    def _truth(self, name: str, number: int, where: Filter | None, group: Asked) -> Found:
        if (name, number) not in self._exact:
            exact = self.collection.search_vectors(group.queries, self.k + 1, where, True, group.kind)
            self._exact[name, number] = exact
        return self._exact[name, number]


def measure_recall(collection: Collection, *, k: int = K, seed: int = 0) -> dict[str, Any]:
    """Recall@k now, as ``facts["recall"]`` holds it: per selectivity the value and how such searches are done."""
    measurement = Measurement(collection, sampled_queries(collection, seed=seed), k)
    return _summary(measurement, {name: measurement.recall(name) for name in SELECTIVITIES})


def _summary(measurement: Measurement, values: Mapping[str, float]) -> dict[str, Any]:
    collection = measurement.collection
    derived = collection.manifest.derived
    exact = {name: collection.searches_exactly(SELECTIVITIES[name], None) for name in values}
    return {
        "k": measurement.k,
        "queries": sum(len(group.queries) for group in measurement.groups),
        "recall": {name: round(value, 4) for name, value in values.items()},
        "search": {name: "exact" if exact[name] else "approximate" for name in values},
        "effort": None if derived is None else derived.effort,
        "generation": collection.generation,
    }


def asked_recall(collection: Collection) -> float:
    """What was asked at the build, or when recall was last measured."""
    return float(collection.facts.get("recall", {}).get("asked", ASKED))


def raise_until(collection: Collection, asked: float, *, k: int = K, seed: int = 0) -> dict[str, Any]:
    """The least effort that reaches recall@k ``asked`` at every selectivity becomes the index' own.

    Returns what was measured, with ``asked`` and ``met``; where even the greatest effort does not reach it, that one
    is kept and ``met`` is false.
    """
    measurement = Measurement(collection, sampled_queries(collection, seed=seed), k)
    values = {name: measurement.recall(name) for name in SELECTIVITIES}
    if collection.manifest.derived is not None:
        for effort in EFFORTS:
            collection.set_effort(effort)
            values = {}
            for name in SELECTIVITIES:
                values[name] = measurement.recall(name)
                if values[name] < asked and effort != EFFORTS[-1]:
                    break
            if len(values) == len(SELECTIVITIES) and min(values.values()) >= asked:
                break
    found = {**_summary(measurement, values), "asked": asked, "met": min(values.values()) >= asked}
    collection.set_fact("recall", found)
    return found
