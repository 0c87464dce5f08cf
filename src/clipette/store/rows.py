"""Rows of one shard, and their two files: vectors (``.npy``) and keys with parameters (``.parquet``)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clipette.errors import StoreError
from clipette.types import View

Hashes = npt.NDArray[np.uint64]

_KEY_FIELDS = [("hash", pa.uint64()), ("key", pa.string()), ("content", pa.string())]
# Double precision: the student must cut exactly the region whose embedding is stored.
_VIEW_FIELDS = [
    ("index", pa.int32()),
    ("left", pa.float64()),
    ("top", pa.float64()),
    ("right", pa.float64()),
    ("bottom", pa.float64()),
    ("flip", pa.bool_()),
    ("brightness", pa.float64()),
    ("contrast", pa.float64()),
    ("saturation", pa.float64()),
]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one table, in order. ``vectors``: [n, D] unit vectors; ``views`` only in the table of views.

    In the table of views each key has its K views in K consecutive rows, view 0 first.
    ``content`` is the digest of the image's bytes or of the text.
    """

    keys: Sequence[str]
    content: Sequence[str]
    vectors: npt.NDArray[np.floating[Any]]
    views: Sequence[View] | None = None


def hash_keys(keys: Sequence[str]) -> Hashes:
    """[n] 64-bit hashes (BLAKE2b) by which keys are found; the strings themselves are compared as well."""
    blake = hashlib.blake2b
    joined = b"".join([blake(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys])
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def vector_bytes(rows: Rows, dim: int, where: str) -> bytes:
    """The ``.npy`` file of ``rows``. Raises ``StoreError`` on another width, or on numbers that are not finite."""
    vectors = np.asarray(rows.vectors)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise StoreError(
            f"{where}: vectors of shape {list(vectors.shape)} do not fit a store of width {dim}; "
            "another encoder needs another store"
        )
    if len(rows.keys) != len(vectors) or len(rows.content) != len(vectors):
        raise StoreError(f"{where}: {len(vectors)} vectors but {len(rows.keys)} keys and {len(rows.content)} digests")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(vectors, dtype="<f2")
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise StoreError(f"{where}: the vector of {rows.keys[row]!r} holds numbers that fp16 cannot (NaN or too large)")
    buffer = io.BytesIO()
    np.save(buffer, half, allow_pickle=False)
    return buffer.getvalue()


def key_bytes(rows: Rows, views_per_key: int) -> bytes:
    """The ``.parquet`` file of ``rows``: equal rows give equal bytes."""
    columns: dict[str, Any] = {
        "hash": hash_keys(rows.keys),
        "key": list(rows.keys),
        "content": list(rows.content),
    }
    fields = list(_KEY_FIELDS)
    if rows.views is not None:
        views = rows.views
        fields += _VIEW_FIELDS
        columns["index"] = np.arange(len(views)) % max(views_per_key, 1)
        for place, name in enumerate(("left", "top", "right", "bottom")):
            columns[name] = [view.box[place] for view in views]
        columns["flip"] = [view.flip for view in views]
        for name in ("brightness", "contrast", "saturation"):
            columns[name] = [getattr(view, name) for view in views]
    table = pa.table([pa.array(columns[name], type=kind) for name, kind in fields], schema=pa.schema(fields))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False)
    return sink.getvalue()


def read_columns(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Columns of a shard's Parquet file, as an Arrow table. Raises ``StoreError`` where it cannot be read."""
    try:
        # ParquetFile and not read_table: a third of the time, which counts with a thousand shards.
        with pq.ParquetFile(path) as file:
            return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, though the shard is committed; the store is damaged") from None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged: pour again") from error


def map_vectors(path: Path, rows: int, dim: int) -> npt.NDArray[np.float16]:
    """[rows, dim] float16, memory-mapped. Raises ``StoreError`` where the file is missing, cut or of another shape."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing, though the shard is committed; the store is damaged") from None
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged: pour again") from error
    if mapped.shape != (rows, dim) or mapped.dtype != np.float16:
        raise StoreError(
            f"{path}: holds {mapped.dtype} of shape {list(mapped.shape)}, the store says float16 of {[rows, dim]}; "
            "the store is damaged: pour again"
        )
    # A plain array over the map: numpy's memmap subclass costs microseconds on every slice.
    return np.asarray(mapped).view(np.ndarray)
