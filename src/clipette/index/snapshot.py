"""One consistent state of an index: which rows are live, found by key. Immutable: readers keep theirs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipette.errors import InternalError, StoreError
from clipette.index.filters import BUCKET, BUILT_IN, Bools, Filter
from clipette.index.layout import Manifest, read_manifest
from clipette.index.places import Place
from clipette.index.shards import Shard
from clipette.index.store import KINDS, Kind, Row, Value
from clipette.store.rows import hash_keys
from clipette.types import Floats, Ints

# Keys written since the sorted part was made are looked up in a dictionary, which each write copies.
MOST_RECENT = 20_000
MASKS = 16
# Fewer rows than this are looked at one by one.
FEW = 32


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """Key → physical row. ``hashes`` is sorted; ``recent`` (key → row, -1 deleted) goes before it."""

    hashes: npt.NDArray[np.uint64]
    rows: Ints
    recent: dict[str, int] = field(default_factory=dict)


class Snapshot:
    """The state that one manifest describes. Physical rows are numbered over all shards, superseded ones included."""

    def __init__(self, root: Path, manifest: Manifest, shards: Sequence[Shard], live: Bools, index: KeyIndex) -> None:
        self.root = root
        self.manifest = manifest
        self.shards = tuple(shards)
        self.starts: Ints = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])]).astype(np.int64)
        self.live = live
        self._index = index
        self._masks: dict[object, tuple[Bools, int]] = {}
        self._lock = threading.Lock()

    @cached_property
    def _counts(self) -> Ints:
        return np.bincount(self.kinds[self.live], minlength=len(KINDS)).astype(np.int64)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def count(self, kind: Kind) -> int:
        """Live rows of one kind."""
        return int(self._counts[KINDS.index(kind)])

    @cached_property
    def kinds(self) -> npt.NDArray[np.int8]:
        """[N] the position of every physical row's kind in ``KINDS``."""
        return np.concatenate([shard.kinds for shard in self.shards] or [np.zeros(0, dtype=np.int8)])

    def find(self, keys: Sequence[str]) -> Ints:
        """[n] the physical row of each key, or -1."""
        found = np.full(len(keys), -1, dtype=np.int64)
        recent, old = self._index.recent, []
        for position, key in enumerate(keys):
            if key in recent:
                found[position] = recent[key]
            else:
                old.append(position)
        if not old or not len(self._index.hashes):
            return found
        hashes = hash_keys([keys[position] for position in old])
        places = np.minimum(np.searchsorted(self._index.hashes, hashes), len(self._index.hashes) - 1)
        same = np.flatnonzero(self._index.hashes[places] == hashes)
        rows = self._index.rows[places[same]]
        for which, row, key in zip(same.tolist(), rows.tolist(), self.names(rows), strict=True):
            if key == keys[old[which]]:
                found[old[which]] = row
        return found

    def rows_of(self, keys: Sequence[str]) -> Ints:
        """As ``find``; raises ``StoreError`` naming the first key that is not there."""
        rows = self.find(keys)
        if len(rows) and rows.min() < 0:
            raise StoreError(f"{self.root}: no row has the key {keys[int(np.argmin(rows))]!r}")
        return rows

    def _where(self, row: int) -> tuple[Shard, int]:
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shards[shard], int(row - self.starts[shard])

    def key(self, row: int) -> str:
        """The key of one physical row."""
        shard, inside = self._where(row)
        return shard.key(inside)

    def names(self, rows: Ints) -> list[str]:
        """The keys of physical rows, in that order: of many at once, in a fraction of the time."""
        if len(rows) < FEW:
            return [self.key(row) for row in rows.tolist()]
        out = np.empty(len(rows), dtype=object)
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            keys = self.shards[shard].column("key").take(pa.array(rows[chosen] - self.starts[shard]))
            out[chosen] = keys.to_numpy(zero_copy_only=False)
        return list(out.tolist())

    def row(self, row: int) -> Row:
        """All that is known of one physical row."""
        shard, inside = self._where(row)
        return shard.row(inside)

    def place(self, row: int) -> Place:
        """Where its image is."""
        shard, inside = self._where(row)
        return shard.place(inside)

    def stamp(self, row: int) -> str:
        """What changes when its image or text does."""
        shard, inside = self._where(row)
        return shard.stamp(inside)

    def vectors(self, rows: Ints | Sequence[int]) -> Floats:
        """[n, D] vectors of physical rows."""
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(wanted), self.manifest.dim), dtype=np.float32)
        shards = np.searchsorted(self.starts, wanted, side="right") - 1
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            out[chosen] = self.shards[int(shard)].vectors[wanted[chosen] - self.starts[shard]]
        return out

    def keys(self, mask: Bools | None) -> list[str]:
        """The keys of the physical rows of a mask (None: all)."""
        found: list[str] = []
        for number, shard in enumerate(self.shards):
            if len(shard):
                keys = shard.column("key")
                inside = None if mask is None else mask[self.starts[number] : self.starts[number + 1]]
                found += (keys if inside is None else keys.filter(pa.array(inside))).to_pylist()
        return found

    def columns(self, rows: Ints, names: Sequence[str]) -> dict[str, list[Value]]:
        """Metadata of physical rows (sorted), column by column; None where unknown."""
        out: dict[str, list[Value]] = {name: [] for name in names}
        bounds = np.searchsorted(rows, self.starts)
        for number, shard in enumerate(self.shards):
            begin, end = int(bounds[number]), int(bounds[number + 1])
            if begin < end:
                inside = pa.array(rows[begin:end] - self.starts[number])
                for name in names:
                    column = shard.filter_column(name, self.manifest.columns[name])
                    out[name] += column.take(inside).to_pylist()
        return out

    def mask(self, where: Filter | None, kind: Kind | None) -> tuple[Bools | None, int]:
        """[N] which physical rows are live, match and are of that kind (None: all of them), and how many do."""
        if kind is not None and self.count(kind) == len(self):
            kind = None
        if where is None and kind is None:
            return (None if len(self) == len(self.live) else self.live), len(self)
        asked = (where, kind)
        with self._lock:
            if asked in self._masks:
                return self._masks[asked]
        mask = self.live.copy()
        if kind is not None:
            mask &= self.kinds == KINDS.index(kind)
        if where is not None:
            parts = [_matching(shard, where, self.manifest) for shard in self.shards if len(shard)]
            mask &= np.concatenate(parts or [np.zeros(0, dtype=bool)])
        with self._lock:
            while len(self._masks) >= MASKS:
                self._masks.pop(next(iter(self._masks)))
            self._masks[asked] = mask, int(mask.sum())
            return self._masks[asked]

    def advance(self, manifest: Manifest) -> Snapshot:
        """The snapshot of a later manifest: what both share is not read again."""
        known = {shard.entry.number: shard for shard in self.shards}
        numbers = [entry.number for entry in manifest.entries]
        ours = [shard.entry.number for shard in self.shards]
        if numbers[: len(ours)] != ours or len(self._index.recent) > MOST_RECENT:
            shards = [known.get(entry.number) or Shard(self.root, entry, manifest.dim) for entry in manifest.entries]
            return _built(self.root, manifest, shards)
        added = [Shard(self.root, entry, manifest.dim) for entry in manifest.entries[len(ours) :]]
        if sum(len(shard) + len(shard.gone) for shard in added) > MOST_RECENT:
            return _built(self.root, manifest, [*self.shards, *added])
        live = np.concatenate([self.live, *(np.ones(len(shard), dtype=bool) for shard in added)])
        recent = dict(self._index.recent)
        start = int(self.starts[-1])
        for shard in added:
            keys = [shard.key(row) for row in range(len(shard))]
            for key in (*shard.gone, *keys):
                old = recent[key] if key in recent else int(self.find([key])[0])
                if old >= 0:
                    live[old] = False
                recent[key] = -1
            for position, key in enumerate(keys):
                recent[key] = start + position
            start += len(shard)
        index = KeyIndex(self._index.hashes, self._index.rows, recent)
        return Snapshot(self.root, manifest, [*self.shards, *added], live, index)


def _matching(shard: Shard, where: Filter, manifest: Manifest) -> Bools:
    def column(name: str) -> Any:
        if name == BUCKET:
            return pa.array((shard.hashes % 1000).astype(np.int64))
        return shard.filter_column(name, BUILT_IN.get(name) or manifest.columns[name])

    return where.mask(column)


def load_snapshot(root: Path) -> Snapshot:
    """The state on disk now. Raises ``StoreError`` where there is none, or it is damaged."""
    for _ in range(5):
        manifest = read_manifest(root)
        try:
            return _built(root, manifest, [Shard(root, entry, manifest.dim) for entry in manifest.entries])
        except FileNotFoundError as error:
            missing = error
            # A compaction may have deleted files between reading the manifest and opening them: then it was replaced.
            if read_manifest(root) == manifest:
                break
    raise StoreError(
        f"{root}: {missing.filename or missing}: missing, though the index lists it; build the index again"
    )


def _built(root: Path, manifest: Manifest, shards: Sequence[Shard]) -> Snapshot:
    """Which row of each key is the last one, by sorting the hashes of all writes in their order."""
    pieces: list[npt.NDArray[np.uint64]] = []
    owners: list[Ints] = []
    start = 0
    for shard in shards:
        # A merged entry may delete keys that its own rows do not have: first the deletions, then the rows.
        pieces += [hash_keys(shard.gone), shard.hashes]
        owners += [np.full(len(shard.gone), -1, dtype=np.int64), np.arange(start, start + len(shard), dtype=np.int64)]
        start += len(shard)
    hashes = np.concatenate(pieces or [np.zeros(0, dtype=np.uint64)])
    rows = np.concatenate(owners or [np.zeros(0, dtype=np.int64)])
    order = np.argsort(hashes, kind="stable")
    hashes, rows = hashes[order], rows[order]
    last = np.ones(len(hashes), dtype=bool)
    last[:-1] = hashes[1:] != hashes[:-1]
    chosen = last & (rows >= 0)
    live = np.zeros(start, dtype=bool)
    live[rows[chosen]] = True
    snapshot = Snapshot(root, manifest, shards, live, KeyIndex(hashes[chosen], rows[chosen]))
    _refuse_collisions(snapshot, hashes, rows, last)
    return snapshot


def _refuse_collisions(snapshot: Snapshot, hashes: npt.NDArray[np.uint64], rows: Ints, last: Bools) -> None:
    """Two keys of one 64-bit hash (once in 30 million indexes of a million rows) must not hide each other."""
    places = np.flatnonzero(~last)
    places = places[(rows[places] >= 0) & (rows[places + 1] >= 0)]
    pairs = zip(snapshot.names(rows[places]), snapshot.names(rows[places + 1]), strict=True)
    wrong = next((place for place, (first, second) in enumerate(pairs) if first != second), None)
    if wrong is not None:
        shared = int(hashes[places[wrong]])
        raise InternalError(f"{snapshot.root}: two keys share the hash {shared:x}; rename one of them")
