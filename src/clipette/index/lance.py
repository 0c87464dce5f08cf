"""LanceDB as a vector store: a folder, no server. IVF_HNSW_SQ over all rows; every partition is searched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipette.errors import StoreError
from clipette.index.exact import order
from clipette.index.filters import BUCKET, BUILT_IN, Filter
from clipette.index.render import FIELDS, field_name, sql_value, to_sql
from clipette.index.shards import TYPES
from clipette.index.store import Found, VectorRows
from clipette.store.rows import hash_keys
from clipette.types import Floats

TABLE = "vectors"
# Below this a graph would not be worth its training; rows are scanned then.
FEWEST = 1000
# Each partition is a graph of its own: this many rows keep the memory of building one below a gigabyte or two.
PARTITION_ROWS = 400_000
PROBES = 8
EFFORT = 96
KEPT = timedelta(hours=24)  # old states that slow readers may still be looking at
IN_LIST = 2000


class LanceStore:
    """``VectorStore`` over one LanceDB table. ``columns``: metadata columns that filters may name → type.

    Opened at a ``version`` it is for reading and shows that state for good.
    """

    def __init__(self, folder: Path, table: Any, dim: int, columns: Mapping[str, str], *, frozen: bool) -> None:
        self.folder = folder
        self.dim = dim
        self.columns = dict(columns)
        self._table = table
        self._frozen = frozen
        self._rows: int | None = None
        self._indexed: bool | None = None

    @property
    def version(self) -> int:
        """Of the table's current state: ``open_lance`` finds it again."""
        return int(self._table.version)

    def _changed(self) -> None:
        self._rows = self._indexed = None

    def upsert(self, rows: VectorRows) -> None:
        if self._frozen:
            raise StoreError(f"{self.folder}: opened at version {self.version}, for reading only")
        batch = _arrow(rows, self.dim, self.columns)
        if self.count():
            update = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            update.execute(batch)
        else:
            self._table.add(batch)
        self._changed()

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), IN_LIST):
            listed = ", ".join(sql_value(key) for key in keys[start : start + IN_LIST])
            self._table.delete(f"`key` IN ({listed})")
        self._changed()

    def count(self) -> int:
        if self._rows is None:
            self._rows = int(self._table.count_rows())
        return self._rows

    def can_filter(self, where: Filter) -> bool:
        return all(name in FIELDS or name in self.columns for name in where.columns)

    def has_index(self) -> bool:
        """Whether a graph has been built."""
        if self._indexed is None:
            self._indexed = any("vector" in index.columns for index in self._table.list_indices())
        return self._indexed

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        where: Filter | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> Found:
        keys: list[list[str]] = []
        scores: list[Floats] = []
        for query in np.asarray(queries, dtype=np.float32):
            found = self._nearest(query, k, where, exact, effort)
            named = found.column("key").to_pylist()
            cosines = 1.0 - np.asarray(found.column("_distance"), dtype=np.float32)
            first, ranked = order(cosines, np.arange(len(named)), k, named.__getitem__)
            keys.append(first)
            scores.append(ranked)
        return Found(keys, scores)

    def _nearest(self, query: Floats, k: int, where: Filter | None, exact: bool, effort: int | None) -> Any:
        asked = self._table.search(query, vector_column_name="vector").distance_type("cosine")
        asked = asked.limit(k).select(["key", "_distance"])
        if where is not None:
            asked = asked.where(to_sql(where, self.columns), prefilter=True)
        if exact:
            asked = asked.bypass_vector_index()
        elif self.has_index():
            wide = max(EFFORT if effort is None else effort, k)
            asked = asked.ef(wide).nprobes(probes(self.count(), wide))
        return asked.to_arrow()

    def get(self, keys: Sequence[str]) -> Floats:
        found: dict[str, Floats] = {}
        for start in range(0, len(keys), IN_LIST):
            listed = ", ".join(sql_value(key) for key in keys[start : start + IN_LIST])
            query = self._table.search().where(f"`key` IN ({listed})").select(["key", "vector"]).limit(IN_LIST)
            table = query.to_arrow()
            vectors = table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
            found.update(zip(table.column("key").to_pylist(), vectors, strict=True))
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            raise StoreError(f"{self.folder}: no row has the key {missing!r}")
        return np.array([found[key] for key in keys], dtype=np.float32).reshape(len(keys), self.dim)

    def optimize(self) -> None:
        from lancedb.index import HnswSq

        rows = self.count()
        if not self.has_index() and rows >= FEWEST:
            config = HnswSq(distance_type="cosine", num_partitions=partitions(rows), m=20, ef_construction=300)
            self._table.create_index("vector", config=config)
        self._table.optimize(cleanup_older_than=KEPT)
        self._changed()

    def close(self) -> None:
        self._table = None


def partitions(rows: int) -> int:
    """How many graphs ``rows`` vectors are split into."""
    return max(1, round(rows / PARTITION_ROWS))


def probes(rows: int, effort: int) -> int:
    """How many graphs are searched: all of a few; of many a share that grows with the effort.

    Rows may have been deleted since the graphs were made: there may be more of them than ``rows`` would be given now.
    """
    return max(PROBES, -(-partitions(rows) * effort // 1024))


def _arrow(rows: VectorRows, dim: int, columns: Mapping[str, str]) -> pa.Table:
    vectors = np.ascontiguousarray(rows.vectors, dtype=np.float32)
    if vectors.shape != (len(rows.keys), dim):
        raise StoreError(f"{len(rows.keys)} rows need vectors of shape {[len(rows.keys), dim]}, got {vectors.shape}")
    data = {
        "key": pa.array(rows.keys, pa.string()),
        "kind": pa.array(rows.kinds, pa.string()),
        "bucket": pa.array((hash_keys(rows.keys) % 1000).astype(np.int16)),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
    }
    for name, kind in columns.items():
        values = rows.columns.get(name)
        target = _lance_type(kind)
        data[field_name(name)] = pa.nulls(len(rows.keys), target) if values is None else pa.array(values, target)
    return pa.table(data)


def _lance_type(kind: str) -> pa.DataType:
    return pa.string() if kind == "text" else TYPES[kind]


def _schema(dim: int, columns: Mapping[str, str]) -> pa.Schema:
    fields = [("key", pa.string()), ("kind", pa.string()), ("bucket", pa.int16())]
    fields.append(("vector", pa.list_(pa.float32(), dim)))
    fields += [(field_name(name), _lance_type(kind)) for name, kind in columns.items()]
    return pa.schema(fields)


def _library() -> Any:
    """LanceDB; it warns on stderr of what is no trouble (a new table is not there yet), unless told otherwise."""
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb


def create_lance(folder: str | Path, *, dim: int, columns: Mapping[str, str] | None = None) -> LanceStore:
    """A new, empty table in ``folder``. ``columns``: metadata columns → bool, int, float or text."""
    lancedb = _library()
    known = {name: kind for name, kind in (columns or {}).items() if name not in BUILT_IN and name != BUCKET}
    table = lancedb.connect(str(folder)).create_table(TABLE, schema=_schema(dim, known), mode="overwrite")
    return LanceStore(Path(folder), table, dim, known, frozen=False)


def open_lance(
    folder: str | Path, *, dim: int, columns: Mapping[str, str], version: int | None = None, write: bool = False
) -> LanceStore:
    """The table in ``folder`` as it was at ``version`` (None: now).

    For writing, whatever was written after ``version`` is undone first: it was never acknowledged.

    Raises ``StoreError`` where it cannot be opened.
    """
    lancedb = _library()
    try:
        table = lancedb.connect(str(folder)).open_table(TABLE)
        if version is not None and write and int(table.version) != version:
            table.restore(version)
        elif version is not None and not write:
            table.checkout(version)
    except (ValueError, OSError, RuntimeError, FileNotFoundError) as error:
        raise StoreError(f"{folder}: cannot be opened ({error}); make it again: clipette index rebuild") from error
    return LanceStore(Path(folder), table, dim, columns, frozen=not write)
