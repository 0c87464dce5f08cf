"""One entry's files: mapped vectors, and the columns of its rows. Opened once, never changed, safe in threads."""

from __future__ import annotations

import errno
import io
import math
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clipette.errors import DataError, StoreError
from clipette.index.filters import BUILT_IN, INT64
from clipette.index.layout import Entry, entry_path
from clipette.index.places import NOWHERE, Place
from clipette.index.store import KINDS, Row, Value
from clipette.io import digest, write_atomic
from clipette.store.layout import FileRecord
from clipette.store.rows import hash_keys
from clipette.types import Floats, Ints

META = "meta."
TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.large_string(),
}
_FIELDS = [
    ("hash", pa.uint64()),
    ("key", pa.large_string()),
    ("kind", pa.int8()),
    ("text", pa.large_string()),
    ("of", pa.large_string()),
    ("stamp", pa.large_string()),
    ("root", pa.int16()),
    ("path", pa.large_string()),
    ("member", pa.large_string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
]
LONGEST_KEY, LONGEST_VALUE = 1024, 8192  # bytes of UTF-8: what every engine can hold


@dataclass(frozen=True, slots=True)
class Draft:
    """Rows about to be written. ``vectors``: [n, D]; ``stamps``: what changes when an image's bytes do."""

    rows: Sequence[Row]
    vectors: Floats
    places: Sequence[Place]
    stamps: Sequence[str]


def check_draft(draft: Draft, dim: int) -> Floats:
    """The vectors as they are stored: float32 of unit length.

    Raises ``DataError`` naming the row: a key that is empty, too long or given twice; a vector of another width, not
    finite, or zero.
    """
    vectors = np.ascontiguousarray(draft.vectors, dtype=np.float32)
    if vectors.shape != (len(draft.rows), dim):
        raise DataError(f"{len(draft.rows)} rows need vectors of shape {[len(draft.rows), dim]}, got {vectors.shape}")
    seen: set[str] = set()
    for position, row in enumerate(draft.rows):
        check_key(row.key, position)
        if row.key in seen:
            raise DataError(f"row {position}: the key {row.key!r} is given twice in one write; keep one")
        seen.add(row.key)
        if row.kind not in KINDS:
            raise DataError(f"row {position} ({row.key!r}): kind {row.kind!r} is none of {', '.join(KINDS)}")
        for name, text in (("text", row.text), ("of", row.of)):
            _encoded(text or "", row.key, name)
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-6))
    if len(wrong):
        key = draft.rows[int(wrong[0])].key
        raise DataError(f"row {int(wrong[0])} ({key!r}): its vector is zero or not finite; check what made it")
    off = np.abs(norms - 1) > 1e-5
    if off.any():
        vectors = vectors.copy()
        vectors[off] /= norms[off, None]
    return vectors


def check_key(key: str, position: int) -> None:
    """Raises ``DataError`` where ``key`` is empty, too long, or not one line of text."""
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise DataError(f"row {position}: the key {key!r} is not valid Unicode; rename it") from None
    if not key or length > LONGEST_KEY or not key.isprintable():
        raise DataError(
            f"row {position}: the key {key[:80]!r} must be 1 to {LONGEST_KEY} bytes of printable text; rename it"
        )


def rows_table(draft: Draft, columns: Mapping[str, str]) -> pa.Table:
    """Everything about the rows but their vectors. ``columns``: name → type of the metadata."""
    rows, places = draft.rows, draft.places
    data: dict[str, Any] = {
        "hash": hash_keys([row.key for row in rows]),
        "key": [row.key for row in rows],
        "kind": [KINDS.index(row.kind) for row in rows],
        "text": [row.text for row in rows],
        "of": [row.of for row in rows],
        "stamp": list(draft.stamps),
        "root": [place.root for place in places],
        "path": [place.path for place in places],
        "member": [place.member for place in places],
        "offset": [place.offset for place in places],
        "size": [place.size for place in places],
    }
    arrays = {name: pa.array(data[name], kind) for name, kind in _FIELDS}
    for name, kind in columns.items():
        values = [typed(row.meta.get(name), kind, row.key, name) for row in rows]
        if any(value is not None for value in values):
            arrays[META + name] = pa.array(values, TYPES[kind])
    return pa.table(arrays)


def typed(value: Value, kind: str, key: str, name: str) -> Value:
    """``value`` as the column holds it; NaN is unknown. Raises ``DataError`` where it is of another type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if kind == "text":
        text = value if isinstance(value, str) else str(value)
        if len(_encoded(text, key, name)) > LONGEST_VALUE:
            raise DataError(f"{key!r}: the value of {name!r} is longer than {LONGEST_VALUE} bytes; shorten it")
        return text
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        if not INT64[0] <= value <= INT64[1]:
            raise DataError(f"{key!r}: the value {value} of {name!r} does not fit in 64 bits; correct it")
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise DataError(f"{key!r}: a value of {name!r} has too many digits for a number; correct it") from None
    raise DataError(f"{key!r}: the column {name!r} holds {kind}, {value!r} is not; correct the value")


def merged_table(parts: Sequence[tuple[Shard, Ints]]) -> pa.Table:
    """The given rows of several shards as one table; a column that only some have is null in the others."""
    pieces = [shard.table().take(pa.array(rows)) for shard, rows in parts if len(rows)]
    if not pieces:
        return pa.table({name: pa.array([], kind) for name, kind in _FIELDS})
    # A column that grew from whole numbers to float is the wider of the two.
    wide = {field.name for piece in pieces for field in piece.schema if field.type == TYPES["float"]}
    return pa.concat_tables([_widened(piece, wide) for piece in pieces], promote_options="permissive")


def _widened(table: pa.Table, wide: Set[str]) -> pa.Table:
    fields = [field.with_type(TYPES["float"]) if field.name in wide else field for field in table.schema]
    return table.cast(pa.schema(fields), safe=False)


def _encoded(text: str, key: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{key!r}: its {name!r} is not valid Unicode; correct it") from None


def write_entry(
    root: Path, number: int, seq: int, table: pa.Table | None, vectors: Floats | None, gone: Sequence[str]
) -> Entry:
    """Write one entry's files, each whole and synced. It exists once a manifest names it."""
    files: dict[str, FileRecord] = {}

    def keep(part: str, data: bytes) -> None:
        write_atomic(entry_path(root, number, part), data)
        files[part] = FileRecord(len(data), digest(data))

    if table is not None and vectors is not None and len(table):
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        keep("vectors", buffer.getvalue())
        keep("rows", _parquet(table))
    if gone:
        keep("gone", _parquet(pa.table({"hash": hash_keys(gone), "key": pa.array(gone, pa.large_string())})))
    return Entry(number, seq, 0 if table is None else len(table), len(gone), files)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


class Shard:
    """The rows of one entry. Its files stay readable while the object lives, even when they are deleted."""

    def __init__(self, root: Path, entry: Entry, dim: int) -> None:
        self.entry = entry
        self.dim = dim
        self._lock = threading.Lock()
        self._columns: dict[str, Any] = {}
        self._file: Any = None
        self._names: frozenset[str] = frozenset()
        self.vectors: npt.NDArray[np.float32] = np.zeros((0, dim), dtype=np.float32)
        self.gone: tuple[str, ...] = ()
        if "vectors" in entry.files:
            self.vectors = _mapped(entry_path(root, entry.number, "vectors"), entry.rows, dim)
            self._file = _opened(entry_path(root, entry.number, "rows"))
            self._names = frozenset(self._file.schema_arrow.names)
        if "gone" in entry.files:
            gone = _opened(entry_path(root, entry.number, "gone")).read(use_threads=False)
            self.gone = tuple(gone.column("key").to_pylist())

    def __len__(self) -> int:
        return self.entry.rows

    def table(self) -> Any:
        """All columns of all rows."""
        with self._lock:
            return self._file.read(use_threads=False)

    def column(self, name: str) -> Any:
        """One column as an Arrow array; None where no row of this shard has it."""
        if name not in self._names:
            return None
        with self._lock:
            if name not in self._columns:
                read = self._file.read(columns=[name], use_threads=False).column(name)
                self._columns[name] = read.combine_chunks() if read.num_chunks != 1 else read.chunk(0)
            return self._columns[name]

    def filter_column(self, name: str, kind: str) -> Any:
        """A column as filters name it: ``key``, ``kind``, ``text``, ``of``, or metadata; nulls where it is absent."""
        if name == "kind":
            return pa.DictionaryArray.from_arrays(self.column("kind"), pa.array(KINDS)).cast(pa.large_string())
        found = self.column(name if name in BUILT_IN else META + name)
        if found is None:
            return pa.nulls(len(self), TYPES[kind])
        # Whole numbers that became float since lose what a float cannot hold.
        return found if found.type == TYPES[kind] else found.cast(TYPES[kind], safe=False)

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """[n] the hash of each key."""
        return np.zeros(0, dtype=np.uint64) if self._file is None else np.asarray(self.column("hash"))

    @cached_property
    def kinds(self) -> npt.NDArray[np.int8]:
        """[n] the position of each row's kind in ``KINDS``."""
        return np.zeros(0, dtype=np.int8) if self._file is None else np.asarray(self.column("kind"))

    def key(self, row: int) -> str:
        """The key of one row."""
        return str(self.column("key")[row].as_py())

    def place(self, row: int) -> Place:
        """Where one row's image is."""
        values = [self.column(name)[row].as_py() for name in ("root", "path", "member", "offset", "size")]
        return NOWHERE if values[0] is None else Place(*values)

    def stamp(self, row: int) -> str:
        """What changes when the row's image or text does."""
        return str(self.column("stamp")[row].as_py())

    def row(self, row: int) -> Row:
        """All that is known of one row."""
        names = sorted(name for name in self._names if name.startswith(META))
        values = {name.removeprefix(META): self.column(name)[row].as_py() for name in names}
        return Row(
            key=self.key(row),
            kind=KINDS[int(self.kinds[row])],
            location=self.place(row).shown,
            text=self.column("text")[row].as_py(),
            meta={name: value for name, value in values.items() if value is not None},
            of=self.column("of")[row].as_py(),
        )


_REPAIR = "the index is damaged: restore it from a copy, or build it again"


def _unreadable(path: Path, error: BaseException) -> StoreError:
    full = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return StoreError(f"{path}: cannot be read ({error}); {'allow more open files: ulimit -n' if full else _REPAIR}")


def _opened(path: Path) -> Any:
    try:
        # Mapped: it stays readable when a compaction deletes the file.
        return pq.ParquetFile(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _mapped(path: Path, rows: int, dim: int) -> npt.NDArray[np.float32]:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if mapped.shape != (rows, dim) or mapped.dtype != np.float32:
        raise StoreError(f"{path}: holds {mapped.dtype} {list(mapped.shape)}, not float32 {[rows, dim]}; {_REPAIR}")
    # A plain array over the map: numpy's memmap subclass costs microseconds on every slice.
    return np.asarray(mapped).view(np.ndarray)
