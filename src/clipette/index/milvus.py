"""Milvus as a vector store: a server or cluster that many machines share. HNSW over inner products of unit vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from clipette.errors import ConfigError, StoreError
from clipette.index.exact import order
from clipette.index.filters import BUCKET, BUILT_IN, Filter
from clipette.index.render import ALWAYS, FIELDS, field_name, milvus_can, null_name, to_milvus
from clipette.index.shards import LONGEST_KEY, LONGEST_VALUE
from clipette.index.store import Found, Value, VectorRows
from clipette.store.rows import hash_keys
from clipette.types import Floats

SCHEME = "milvus://"
EFFORT = 96
BATCH_BYTES = 8 << 20  # of a request: the server refuses 64 MB
# Milvus allows 64 fields; a column takes two (its value, and whether there is one).
MOST_COLUMNS = 28
MOST_RESULTS = 16_384
PAGE = 1000
EMPTY: dict[str, Value] = {"bool": False, "int": 0, "float": 0.0, "text": ""}
T = TypeVar("T")


def address(reference: str) -> str:
    """``milvus://host:19530`` (or ``milvus+https://…``) as pymilvus wants it. Raises ``ConfigError``."""
    kind, mark, rest = reference.partition("://")
    schemes = {"milvus": "http", "milvus+https": "https"}
    host, _, port = rest.strip("/").rpartition(":")
    if not mark or kind not in schemes or not host or not port.isdigit() or "@" in rest or "/" in host:
        raise ConfigError(
            f"--store {reference}: expected milvus://HOST:PORT (a password goes into CLIPETTE_MILVUS_TOKEN)"
        )
    return f"{schemes[kind]}://{host}:{port}"


@contextmanager
def _engine(where: str) -> Iterator[None]:
    """What the server or the connection says, as ``StoreError``."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise StoreError(f"{where}: Milvus refused or did not answer ({error.message})") from error


class MilvusStore:
    """``VectorStore`` over one collection of a Milvus server. ``columns``: columns that filters may name → type."""

    def __init__(self, client: Any, reference: str, name: str, dim: int, columns: Mapping[str, str]) -> None:
        self.name = name
        self.dim = dim
        self.columns = dict(columns)
        self._client = client
        self._where = f"{reference}/{name}"

    def upsert(self, rows: VectorRows) -> None:
        vectors = np.ascontiguousarray(rows.vectors, dtype=np.float32)
        if vectors.shape != (len(rows.keys), self.dim):
            raise StoreError(f"{len(rows.keys)} rows need vectors of shape {[len(rows.keys), self.dim]}, "
                             f"got {vectors.shape}")  # fmt: skip
        buckets = (hash_keys(rows.keys) % 1000).tolist()
        step = max(1, BATCH_BYTES // (self.dim * 4 + 1024))
        for start in range(0, len(rows.keys), step):
            data = [self._record(rows, vectors, buckets, row) for row in range(start, min(start + step, len(vectors)))]
            with _engine(self._where):
                self._client.upsert(self.name, data)

    def _record(self, rows: VectorRows, vectors: Floats, buckets: Sequence[int], row: int) -> dict[str, Any]:
        record: dict[str, Any] = {
            "key": rows.keys[row],
            "kind": rows.kinds[row],
            "bucket": buckets[row],
            "vector": vectors[row],
        }
        for name, kind in self.columns.items():
            values = rows.columns.get(name)
            value = None if values is None else values[row]
            record[field_name(name)] = EMPTY[kind] if value is None else value
            record[null_name(name)] = value is None
        return record

    def delete(self, keys: Sequence[str]) -> None:
        with _engine(self._where):
            for start in range(0, len(keys), 1000):
                self._client.delete(self.name, filter=_listed(keys[start : start + 1000]))

    def count(self) -> int:
        with _engine(self._where):
            return int(self._client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def can_filter(self, where: Filter) -> bool:
        return milvus_can(where) and all(name in FIELDS or name in self.columns for name in where.columns)

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        where: Filter | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> Found:
        expression = "" if where is None else to_milvus(where, self.columns)
        asked = np.asarray(queries, dtype=np.float32)
        if exact:
            return self._exact(asked, k, expression)
        k = min(k, MOST_RESULTS)
        wide = min(max(EFFORT if effort is None else effort, k), 32_768)
        with _engine(self._where):
            answer = self._client.search(
                self.name,
                data=list(asked),
                limit=k,
                filter=expression,
                anns_field="vector",
                search_params={"metric_type": "IP", "params": {"ef": wide}},
            )
        keys: list[list[str]] = []
        scores: list[Floats] = []
        for hits in answer:
            named = [str(key) for key in hits.ids]
            cosines = np.array(hits.distances, dtype=np.float32)
            first, ranked = order(cosines, np.arange(len(named)), k, named.__getitem__)
            keys.append(first)
            scores.append(ranked)
        return Found(keys, scores)

    def _exact(self, queries: Floats, k: int, expression: str) -> Found:
        """Milvus has no exact search beside an HNSW index: every matching vector comes here to be compared."""
        named: list[str] = []
        pieces: list[Floats] = [np.zeros((len(queries), 0), dtype=np.float32)]
        for batch in self._rows(expression or ALWAYS):
            named += [str(row["key"]) for row in batch]
            pieces.append(queries @ np.array([row["vector"] for row in batch], dtype=np.float32).T)
        cosines = np.concatenate(pieces, axis=1)
        found = [order(row, np.arange(len(named)), k, named.__getitem__) for row in cosines]
        return Found([keys for keys, _ in found], [scores for _, scores in found])

    def _rows(self, expression: str) -> Iterator[list[Mapping[str, Any]]]:
        """Matching rows, a page at a time in the order of their keys.

        pymilvus' own iterator writes the last key into the next page's expression unescaped.
        """
        page = expression
        with _engine(self._where):
            while batch := self._client.query(self.name, filter=page, limit=PAGE, output_fields=["key", "vector"]):
                yield batch
                last = max((str(row["key"]) for row in batch), key=str.encode)
                page = f"key > {json.dumps(last, ensure_ascii=False)} and ({expression})"

    def get(self, keys: Sequence[str]) -> Floats:
        found: dict[str, Any] = {}
        with _engine(self._where):
            for start in range(0, len(keys), 1000):
                some = _listed(keys[start : start + 1000])
                for row in self._client.query(self.name, filter=some, output_fields=["key", "vector"]):
                    found[str(row["key"])] = row["vector"]
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            raise StoreError(f"{self._where}: no row has the key {missing!r}")
        return np.array([found[key] for key in keys], dtype=np.float32).reshape(len(keys), self.dim)

    def optimize(self) -> None:
        with _engine(self._where):
            self._client.flush(self.name)

    def drop(self) -> None:
        """Remove the collection from the server."""
        with _engine(self._where):
            self._client.drop_collection(self.name)

    def close(self) -> None:
        self._client.close()


def _listed(keys: Sequence[str]) -> str:
    """Written by us: pymilvus would write the keys as Python does, which is another language."""
    return f"key in {json.dumps(list(keys), ensure_ascii=False)}"


def _connected(reference: str, work: Callable[[Any], T]) -> T:
    from pymilvus import MilvusClient

    uri = address(reference)
    with _engine(reference):
        client = MilvusClient(uri=uri, token=os.environ.get("CLIPETTE_MILVUS_TOKEN", ""), timeout=10)
        try:
            return work(client)
        except BaseException:
            client.close()
            raise


def create_milvus(reference: str, name: str, *, dim: int, columns: Mapping[str, str] | None = None) -> MilvusStore:
    """A new, empty collection ``name`` on the server; one of that name is replaced.

    Raises ``ConfigError`` on a bad address, ``StoreError`` where the server does not answer.
    """
    known = {name: kind for name, kind in (columns or {}).items() if name not in BUILT_IN and name != BUCKET}
    known = dict(list(known.items())[:MOST_COLUMNS])

    def work(client: Any) -> MilvusStore:
        if client.has_collection(name):
            client.drop_collection(name)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
        schema = _schema(client, dim, known)
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        client.load_collection(name)
        return MilvusStore(client, reference, name, dim, known)

    return _connected(reference, work)


def open_milvus(reference: str, name: str, *, dim: int, columns: Mapping[str, str]) -> MilvusStore:
    """The collection ``name`` on the server. Raises ``StoreError`` where it is not there, or no server answers."""

    def work(client: Any) -> MilvusStore:
        if not client.has_collection(name):
            raise StoreError(f"{reference}: no collection {name!r} there; make it again: clipette index rebuild")
        client.load_collection(name)
        return MilvusStore(client, reference, name, dim, columns)

    return _connected(reference, work)


def _schema(client: Any, dim: int, columns: Mapping[str, str]) -> Any:
    from pymilvus import DataType

    types = {"bool": DataType.BOOL, "int": DataType.INT64, "float": DataType.DOUBLE, "text": DataType.VARCHAR}
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=LONGEST_KEY)
    schema.add_field("kind", DataType.VARCHAR, max_length=16)
    schema.add_field("bucket", DataType.INT16)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    for name, kind in columns.items():
        more = {"max_length": LONGEST_VALUE} if kind == "text" else {}
        schema.add_field(field_name(name), types[kind], **more)
        schema.add_field(null_name(name), DataType.BOOL)
    return schema
