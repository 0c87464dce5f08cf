"""What an unfinished pour still has to do, written down before it starts.

Shard numbers and borders follow from the plan alone, so they do not depend on where a pour was killed, nor on the
number of ranks: rank r of w takes the chunks whose place in the plan is r modulo w.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipette.errors import StoreError
from clipette.io import write_atomic


@dataclass(frozen=True, slots=True)
class Chunk:
    """The keys that become shard ``number`` of ``tables`` (less those that fail)."""

    number: int
    tables: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All chunks of one pour. ``request`` is a digest of what was asked: the plan is resumed only for the same."""

    request: str
    chunks: tuple[Chunk, ...]

    def share(self, rank: int, world_size: int) -> tuple[Chunk, ...]:
        """The chunks of one rank."""
        return self.chunks[rank::world_size]


def make_plan(
    request: str, wanted: Iterable[tuple[tuple[str, ...], Sequence[str]]], *, shard_size: int, first: int
) -> Plan:
    """Cut each group of (tables, keys) into chunks of ``shard_size`` keys, numbered from ``first``."""
    chunks: list[Chunk] = []
    for tables, keys in wanted:
        for start in range(0, len(keys), shard_size):
            chunks.append(Chunk(first + len(chunks), tables, tuple(keys[start : start + shard_size])))
    return Plan(request, tuple(chunks))


def write_plan(path: Path, plan: Plan) -> None:
    """One Parquet row per key; the request is in its schema."""
    numbers = [chunk.number for chunk in plan.chunks for _ in chunk.keys]
    tables = ["+".join(chunk.tables) for chunk in plan.chunks for _ in chunk.keys]
    keys = [key for chunk in plan.chunks for key in chunk.keys]
    fields = [("number", pa.int64()), ("tables", pa.dictionary(pa.int32(), pa.string())), ("key", pa.string())]
    schema = pa.schema(fields, metadata={"request": plan.request})
    texts = [pa.array(tables, pa.string()).dictionary_encode(), pa.array(keys, pa.string())]
    sink = io.BytesIO()
    pq.write_table(pa.table([pa.array(numbers, pa.int64()), *texts], schema=schema), sink, compression="zstd")
    write_atomic(path, sink.getvalue())


def read_plan(path: Path) -> Plan | None:
    """The plan of an unfinished pour, or None. Raises ``StoreError`` where the file is damaged."""
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        request = table.schema.metadata[b"request"].decode()
        columns = [table.column(name).to_pylist() for name in ("number", "tables", "key")]
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete this one file and run again") from error
    chunks: list[Chunk] = []
    pending: list[str] = []
    for place, (number, tables, key) in enumerate(zip(*columns, strict=True)):
        pending.append(key)
        if place + 1 == len(columns[0]) or columns[0][place + 1] != number:
            chunks.append(Chunk(number, tuple(tables.split("+")), tuple(pending)))
            pending = []
    return Plan(request, tuple(chunks))
