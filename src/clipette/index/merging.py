"""Compaction: neighbouring small entries become one, superseded rows and unused image bytes go.

Merged is always a run of neighbours, into the run's place: what came before and after keeps its order, so that writes
may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipette.index.layout import Entry
from clipette.index.places import BLOB
from clipette.index.shards import Shard, merged_table, write_entry
from clipette.index.snapshot import Snapshot
from clipette.store.rows import hash_keys
from clipette.types import Ints

SHARD_ROWS = 65_536
RUN = 8  # neighbours that are worth merging
SMALL = 64  # rows that may be rewritten at every merge
DEAD = 0.3


def runs(snapshot: Snapshot, *, everything: bool = False) -> list[range]:
    """Runs of entries to merge; none crosses the point up to which the vector store is in step.

    By default runs of at least ``RUN`` entries none of which is larger than all that follow it in the run together, so
    that a row is rewritten a logarithmic number of times, and entries that are mostly dead. ``everything``: whatever
    is not yet a full shard of live rows.
    """
    derived = snapshot.manifest.derived
    synced = -1 if derived is None else derived.synced
    split = next((i for i, entry in enumerate(snapshot.manifest.entries) if entry.seq > synced), None)
    count = len(snapshot.manifest.entries)
    segments = [range(count)] if split is None else [range(split), range(split, count)]
    found = [run for segment in segments for run in (_all_small if everything else _tail)(snapshot, segment)]
    return sorted(found, key=lambda run: run.start)


def _live(snapshot: Snapshot, number: int) -> int:
    return int(snapshot.live[snapshot.starts[number] : snapshot.starts[number + 1]].sum())


def _wasteful(snapshot: Snapshot, number: int) -> bool:
    rows = len(snapshot.shards[number])
    return rows - _live(snapshot, number) > DEAD * rows


def _size(shard: Shard) -> int:
    return len(shard) + len(shard.gone)


def _tail(snapshot: Snapshot, segment: range) -> list[range]:
    """The longest tail in which no entry outweighs what follows it; entries before it that are mostly dead."""
    start, weight = segment.stop, 0
    for number in reversed(segment):
        size = _size(snapshot.shards[number])
        # Nothing follows the last one: whatever its size, a run may end with it.
        if size >= SHARD_ROWS or (weight and size > max(weight, SMALL)):
            break
        start, weight = number, weight + size
    tail = range(start, segment.stop)
    if len(tail) < RUN:
        tail = range(segment.stop, segment.stop)
    dead = [range(n, n + 1) for n in range(segment.start, tail.start) if _wasteful(snapshot, n)]
    return [*dead, tail] if tail else dead


def _all_small(snapshot: Snapshot, segment: range) -> list[range]:
    found: list[range] = []
    start = segment.start
    for number in [*segment, segment.stop]:
        shard = snapshot.shards[number] if number < segment.stop else None
        full = shard is None or (len(shard) >= SHARD_ROWS and not shard.gone and not _wasteful(snapshot, number))
        if full:
            if number - start > 1 or (number - start == 1 and _improves(snapshot, start)):
                found.append(range(start, number))
            start = number + 1
    return found


def _improves(snapshot: Snapshot, number: int) -> bool:
    """Whether one entry alone would shrink."""
    return _live(snapshot, number) < len(snapshot.shards[number]) or bool(snapshot.shards[number].gone and number == 0)


def merge_run(root: Path, snapshot: Snapshot, run: range, number: Callable[[], int]) -> list[Entry]:
    """Write the live rows of a run as new entries; ``number()`` gives the next file number."""
    shards = [snapshot.shards[i] for i in run]
    seq = max(shard.entry.seq for shard in shards)
    start, stop = int(snapshot.starts[run.start]), int(snapshot.starts[run.stop])
    rows = start + np.flatnonzero(snapshot.live[start:stop]).astype(np.int64)
    gone = _needed_gone(snapshot, run)
    entries: list[Entry] = []
    pieces: Sequence[Ints] = [rows[i : i + SHARD_ROWS] for i in range(0, len(rows), SHARD_ROWS)]
    for position, piece in enumerate(pieces or [rows]):
        first = gone if position == 0 else []
        if len(piece) or first:
            table = merged_table([(snapshot.shards[i], _inside(snapshot, i, piece)) for i in run])
            entries.append(write_entry(root, number(), seq, table, snapshot.vectors(piece), first))
    return entries


def _inside(snapshot: Snapshot, number: int, rows: Ints) -> Ints:
    """Those of ``rows`` that are in one shard, as its own numbers."""
    begin, end = np.searchsorted(rows, [snapshot.starts[number], snapshot.starts[number + 1]])
    return np.asarray(rows[begin:end] - snapshot.starts[number], dtype=np.int64)


def _needed_gone(snapshot: Snapshot, run: range) -> list[str]:
    """Deletions that still hide a row of an entry before the run."""
    gone = list(dict.fromkeys(key for i in run for key in snapshot.shards[i].gone))
    before = [snapshot.shards[i].hashes for i in range(run.start)]
    if not gone or not before:
        return []
    hidden = np.isin(hash_keys(gone), np.concatenate(before))
    found = snapshot.find(gone)
    kept = hidden & ~((found >= snapshot.starts[run.start]) & (found < snapshot.starts[run.stop]))
    return [gone[i] for i in np.flatnonzero(kept).tolist()]


def unused_blobs(snapshot: Snapshot) -> set[str]:
    """Files of image bytes of which no live row needs any."""
    used: set[str] = set()
    for number, shard in enumerate(snapshot.shards):
        if not len(shard):
            continue
        live = snapshot.live[snapshot.starts[number] : snapshot.starts[number + 1]]
        chosen = np.flatnonzero(live & (np.asarray(shard.column("root")) == BLOB))
        used.update(shard.column("path").take(pa.array(chosen)).unique().to_pylist())
    return set(snapshot.manifest.blobs) - used
