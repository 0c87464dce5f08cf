"""Reading a store: memory-mapped vectors, found by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipette.errors import InternalError, StoreError
from clipette.io import digest_file
from clipette.store.layout import (
    TABLES,
    Commit,
    Header,
    Identity,
    StoredFailure,
    check_identity,
    files_of,
    keys_path,
    read_commits,
    read_header,
    read_json,
    vectors_path,
)
from clipette.store.rows import hash_keys, map_vectors, read_columns
from clipette.types import Floats, Ints, View


class Table:
    """One table of a store: rows found by key, vectors read from the mapped shards.

    Rows are numbered 0 … len - 1 over live rows (superseded ones are not seen), in the order they were poured.
    In the table of views each key has ``views_per_key`` consecutive rows, and ``rows`` names the first of them.
    """

    def __init__(
        self, root: Path, name: str, commits: Sequence[Commit], dim: int, *, per_key: int = 1, locate: str = ""
    ) -> None:
        self.name = name
        self.dim = dim
        self.per_key = per_key
        self._root = root
        self._where = locate or f"{root}/{name}"
        self._numbers = [commit.number for commit in commits if name in commit.parts]
        sizes = [commit.parts[name].rows for commit in commits if name in commit.parts]
        self._starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._maps: dict[int, npt.NDArray[np.float16]] = {}
        hashes = np.asarray(self._read("hash"), dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        live = self._live_rows(hashes, order, commits)
        if live is not None:
            hashes = hashes[live]
            order = np.argsort(hashes, kind="stable")
        # None where nothing is superseded: the usual case needs no indirection.
        self._live: Ints | None = live
        # One entry per key: its first row.
        self._order: Ints = order[::per_key]
        self._sorted = hashes[self._order]
        self._count = len(hashes)

    def __len__(self) -> int:
        return self._count

    def _read(self, column: str) -> Any:
        """One column over all physical rows."""
        pieces = [read_columns(keys_path(self._root, self.name, number), (column,)) for number in self._numbers]
        array = pa.concat_tables(pieces).column(column)
        if len(array) != int(self._starts[-1]):
            raise StoreError(f"{self._where}: {len(array)} keys for {int(self._starts[-1])} vectors; pour again")
        return array

    def _live_rows(self, hashes: npt.NDArray[np.uint64], order: Ints, commits: Sequence[Commit]) -> Ints | None:
        """Physical rows that no later row of the same key supersedes, in order; None where that is all of them."""
        ordered = hashes[order]
        dead = np.zeros(len(hashes), dtype=bool)
        # Within a run of equal hashes, sorted stably, all but the last ``per_key`` rows are superseded.
        if len(hashes) > self.per_key:
            dead[order[: -self.per_key][ordered[: -self.per_key] == ordered[self.per_key :]]] = True
        keys = None
        if dead.any():
            keys = self._read("key")
            self._refuse_collisions(keys, ordered, order)
        failed = {
            failure.key: commit.number
            for commit in commits
            for failure in commit.failures
            if self.name in failure.tables
        }
        if failed:
            # A later failure hides the row: that image is no longer the one whose vector is stored.
            numbers = np.repeat(np.asarray(self._numbers, dtype=np.int64), np.diff(self._starts))
            for value, number in zip(hash_keys(list(failed)), failed.values(), strict=True):
                left, right = np.searchsorted(ordered, [value, value + np.uint64(1)])
                rows = order[left:right]
                dead[rows[numbers[rows] < number]] = True
        return np.flatnonzero(~dead).astype(np.int64) if dead.any() else None

    def _refuse_collisions(self, keys: Any, ordered: npt.NDArray[np.uint64], order: Ints) -> None:
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        first, second = keys.take(pa.array(order[same])), keys.take(pa.array(order[same + 1]))
        if not pc.all(pc.equal(first, second)).as_py():
            place = int(np.argmin(np.asarray(pc.equal(first, second))))
            raise InternalError(f"{self._where}: keys {first[place]} and {second[place]} share a 64-bit hash")

    def _column(self, name: str) -> Any:
        array = self._read(name)
        return array if self._live is None else array.take(pa.array(self._live))

    @cached_property
    def _arrow_keys(self) -> Any:
        # One piece: Arrow would join the shards anew on every lookup.
        return self._column("key").cast(pa.large_string()).combine_chunks()

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of every row (in the table of texts: the text)."""
        return tuple(self._arrow_keys.to_pylist())

    @cached_property
    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """The parameters of every row: ``content``, and in the table of views its index, box, flip and colours."""
        names = ["content"]
        if self.name == "views":
            names += ["index", "left", "top", "right", "bottom", "flip", "brightness", "contrast", "saturation"]
        return {name: np.asarray(self._column(name)) for name in names}

    def find(self, keys: Sequence[str]) -> Ints:
        """[n] the row of each key (its first row, for views), or -1 where it is not stored."""
        if not len(keys) or not len(self):
            return np.full(len(keys), -1, dtype=np.int64)
        hashes = hash_keys(keys)
        places = np.searchsorted(self._sorted, hashes)
        there = places < len(self._sorted)
        there[there] = self._sorted[places[there]] == hashes[there]
        rows = np.full(len(keys), -1, dtype=np.int64)
        rows[there] = self._order[places[there]]
        asked = pa.array([keys[place] for place in np.flatnonzero(there).tolist()], pa.large_string())
        stored = self._arrow_keys.take(pa.array(rows[there]))
        equal = np.asarray(pc.equal(stored, asked), dtype=bool)
        rows[np.flatnonzero(there)[~equal]] = -1
        return rows

    def rows(self, keys: Sequence[str]) -> Ints:
        """[n] the row of each key (its first row, for views).

        Raises:
            StoreError: a key is not stored; the message names the first.
        """
        rows = self.find(keys)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            more = f" (and {len(missing) - 1} more of {len(keys)})" if len(missing) > 1 else ""
            raise StoreError(
                f"{self._where}: {keys[int(missing[0])]!r} is not stored{more}; pour the data and texts you train on"
            )
        return rows

    def view_rows(self, keys: Sequence[str]) -> Ints:
        """[n, K] the rows of all views of each key."""
        return self.rows(keys)[:, None] + np.arange(self.per_key, dtype=np.int64)

    def vectors(self, rows: Ints | Sequence[int] | slice = slice(None)) -> Floats:
        """[..., D] float32 vectors of ``rows`` (of any shape); unit length to fp16's precision."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)), dtype=np.int64)
        wanted = np.asarray(rows, dtype=np.int64)
        flat = wanted.reshape(-1)
        if len(flat) and (flat.min() < 0 or flat.max() >= len(self)):
            raise StoreError(f"{self._where}: row {int(flat.min())} … {int(flat.max())} of a table of {len(self)} rows")
        physical = flat if self._live is None else self._live[flat]
        out = np.empty((len(flat), self.dim), dtype=np.float32)
        shards = np.searchsorted(self._starts, physical, side="right") - 1
        present = np.unique(shards)
        for shard in present:
            # One shard is the usual small store: no mask then.
            chosen: Any = slice(None) if len(present) == 1 else np.flatnonzero(shards == shard)
            out[chosen] = self._map(int(shard))[physical[chosen] - self._starts[shard]]
        return out.reshape(*wanted.shape, self.dim)

    def _map(self, shard: int) -> npt.NDArray[np.float16]:
        if shard not in self._maps:
            path = vectors_path(self._root, self.name, self._numbers[shard])
            rows = int(self._starts[shard + 1] - self._starts[shard])
            self._maps[shard] = map_vectors(path, rows, self.dim)
        return self._maps[shard]


class Store:
    """A finished store, opened by ``open_store``. Reading needs no PyTorch and is safe from several processes."""

    def __init__(self, path: Path, header: Header, commits: Sequence[Commit]) -> None:
        self.path = path
        self.header = header
        self.commits = tuple(commits)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that changes the vectors."""
        return self.header.identity

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the encoder that came along: name, logit scale and bias, licence, class names."""
        return self.header.info

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.header.dim

    @property
    def view_count(self) -> int:
        """K: views per image (0: none were poured)."""
        views = self.identity.get("views")
        return int(views["count"]) if views is not None and self.views is not None else 0

    def _table(self, name: str, per_key: int = 1) -> Table | None:
        if not any(name in commit.parts for commit in self.commits):
            return None
        return Table(self.path, name, self.commits, self.dim, per_key=per_key)

    @cached_property
    def images(self) -> Table | None:
        """One row per image, by the encoder's own full preprocessing."""
        return self._table("images")

    @cached_property
    def views(self) -> Table | None:
        """K rows per image, with the parameters of each view."""
        views = self.identity.get("views")
        return None if views is None else self._table("views", int(views["count"]))

    @cached_property
    def texts(self) -> Table | None:
        """One row per distinct text; its key is the text itself."""
        return self._table("texts")

    @cached_property
    def failures(self) -> tuple[StoredFailure, ...]:
        """Samples that could not be poured."""
        return live_failures(self.path, self.commits)

    def table(self, name: str) -> Table:
        """``images``, ``views`` or ``texts``. Raises ``StoreError`` where it was not poured."""
        table = {"images": self.images, "views": self.views, "texts": self.texts}[name]
        if table is None:
            raise StoreError(f"{self.path}: holds no {name}; pour them into it first")
        return table

    def view(self, row: int) -> View:
        """The parameters of one row of the table of views."""
        columns = self.table("views").columns
        return View(
            box=(
                float(columns["left"][row]),
                float(columns["top"][row]),
                float(columns["right"][row]),
                float(columns["bottom"][row]),
            ),
            flip=bool(columns["flip"][row]),
            brightness=float(columns["brightness"][row]),
            contrast=float(columns["contrast"][row]),
            saturation=float(columns["saturation"][row]),
        )

    def views_of(self, key: str) -> list[tuple[int, View]]:
        """(row, parameters) of each view of one image."""
        return [(int(row), self.view(int(row))) for row in self.table("views").view_rows([key])[0]]

    def verify(self) -> None:
        """Read everything and compare with the checksums. Raises ``StoreError`` naming every damaged file."""
        damaged = [fault for commit in self.commits for fault in _damage(self.path, commit)]
        if damaged:
            count = "1 damaged file" if len(damaged) == 1 else f"{len(damaged)} damaged files"
            more = f"; and {len(damaged) - 8} more" if len(damaged) > 8 else ""
            raise StoreError(f"{self.path}: {count}: {'; '.join(damaged[:8])}{more}; {_REPAIR}")

    def damaged_shards(self) -> tuple[int, ...]:
        """Numbers of the shards whose files are missing or differ from their checksums (reads everything)."""
        return tuple(commit.number for commit in self.commits if _damage(self.path, commit))


_REPAIR = "run `clipette store DIR --repair` on it, then pour again"


def open_store(
    path: str | Path, *, identity: Identity | None = None, dim: int | None = None, unfinished: bool = False
) -> Store:
    """Open a finished store for reading.

    Args:
        path: its folder.
        identity: where given, parts that must be equal (``{"encoder": …}``).
        dim: where given, the width the caller needs.
        unfinished: read what is committed of a pour that has not finished.

    Raises:
        StoreError: no store, unfinished, damaged, of another identity or of another width.
    """
    root = Path(path)
    header = read_header(root)
    if header is None:
        raise StoreError(f"{root}: no store here (no store.json); pour one with: clipette pour … --out {root}")
    check_identity(root, header, identity or {}, dim)
    if unfinished:
        commits = read_commits(root)
    elif (root / "manifest.json").exists():
        manifest = read_json(root / "manifest.json")
        commits = [Commit.from_json(each) for each in manifest["commits"]]
    else:
        raise StoreError(f"{root}: the pour has not finished; run the same command again to resume it")
    _check_sizes(root, commits)
    return Store(root, header, commits)


def _check_sizes(root: Path, commits: Sequence[Commit]) -> None:
    """A file of another size than committed is found at once; ``verify`` reads the content too."""
    for commit in commits:
        for path, record in files_of(root, commit):
            size = path.stat().st_size if path.exists() else None
            if size is None:
                raise StoreError(f"{path}: missing, though the store lists it; {_REPAIR}")
            if size != record.size:
                raise StoreError(f"{path}: cut or grown to {size} of {record.size} bytes; {_REPAIR}")


def _damage(root: Path, commit: Commit) -> list[str]:
    """What is wrong with the files of one shard, compared with their checksums."""
    found: list[str] = []
    for path, record in files_of(root, commit):
        if not path.exists():
            found.append(f"{path} is missing")
        elif digest_file(path) != record.digest:
            found.append(f"{path} has changed since it was written")
    return found


def live_failures(root: Path, commits: Sequence[Commit]) -> tuple[StoredFailure, ...]:
    """Failures that no later shard has made good or replaced, in order."""
    live: dict[str, tuple[int, StoredFailure]] = {
        failure.key: (commit.number, failure) for commit in commits for failure in commit.failures
    }
    if live:
        for commit in commits:
            later = {key for key, (number, _) in live.items() if number < commit.number}
            for table in commit.parts if later else ():
                keys = read_columns(keys_path(root, table, commit.number), ("key",)).column("key").to_pylist()
                for key in later.intersection(keys):
                    if table in live[key][1].tables:
                        del live[key]
                        later.discard(key)
    return tuple(failure for _, failure in live.values())


def manifest_of(header: Header, commits: Sequence[Commit], failures: int) -> dict[str, Any]:
    """The manifest: all of it follows from ``store.json`` and the commits."""
    counts = {
        table: {
            "rows": sum(commit.parts[table].rows for commit in commits if table in commit.parts),
            "shards": sum(table in commit.parts for commit in commits),
        }
        for table in TABLES
    }
    return {
        **header.to_json(),
        "tables": counts,
        "failures": failures,
        "commits": [commit.to_json() for commit in commits],
    }
