"""Search with a vector store: it proposes, the rows decide. What it does not know yet is compared exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipette.index.derived import tail_start
from clipette.index.exact import nearest_rows, ranked
from clipette.index.filters import Bools, Filter, both, equals
from clipette.index.snapshot import Snapshot
from clipette.index.store import Found, Kind, VectorStore
from clipette.types import Floats, Ints

# Rows picked out by a filter cost more to compare than rows that lie side by side.
PICKED = 0.4
# Many queries at once share each read of the rows; graphs are walked for one query after the other.
MANY, SHARED = 32, 4
SPARE = 10


def exact_is_fast(
    snapshot: Snapshot, store: VectorStore | None, where: Filter | None, kind: Kind | None, queries: int = 1
) -> bool:
    """Whether comparing with every matching row is as fast as a graph, or the only way to evaluate the filter."""
    mask, matching = snapshot.mask(where, kind)
    limit = snapshot.manifest.exact_rows * (SHARED if queries >= MANY else 1)
    if store is None or matching <= (limit if mask is None or mask is snapshot.live else limit * PICKED):
        return True
    return where is not None and not store.can_filter(where)


def approximate_search(
    snapshot: Snapshot,
    store: VectorStore,
    queries: Floats,
    k: int,
    *,
    where: Filter | None,
    kind: Kind | None,
    effort: int | None,
) -> Found | None:
    """As ``exact_search``, but that the store may miss some; None where it found fewer than ``k`` of those there are.

    The store returns more than ``k`` candidates by quantized vectors; the rows' own vectors rank them, so that every
    score is exact. Rows deleted or changed since the store was brought up to date are judged by what they are now.
    """
    derived = snapshot.manifest.derived
    assert derived is not None
    mask, matching = snapshot.mask(where, kind)
    mixed = kind is not None and snapshot.count(kind) < len(snapshot)
    asked = both(where, equals("kind", kind) if mixed and kind is not None else None)
    fetch = 2 * k + SPARE
    found = store.search(queries, fetch, where=asked, effort=effort)
    first = tail_start(snapshot, derived.synced)
    start = int(snapshot.starts[first])
    recent = nearest_rows(
        [shard.vectors for shard in snapshot.shards[first:]],
        queries,
        k,
        None if mask is None else mask[start:],
        first=start,
    )
    for position, rows in enumerate(_candidates(snapshot, found.keys, mask, start)):
        recent[position].add(snapshot.vectors(rows) @ queries[position], rows)
    if any(len(each.rows) < min(k, matching) for each in recent):
        return None
    return ranked(recent, k, snapshot.key)


def _candidates(snapshot: Snapshot, keys: Sequence[Sequence[str]], mask: Bools | None, start: int) -> list[Ints]:
    """Per query the rows of its keys that are live, match, and are not compared exactly anyway."""
    rows = snapshot.find([key for some in keys for key in some])
    kept = (rows >= 0) & (rows < start)
    if mask is not None:
        kept &= mask[np.maximum(rows, 0)]
    ends = np.cumsum([0, *(len(some) for some in keys)])
    return [rows[a:b][kept[a:b]] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
