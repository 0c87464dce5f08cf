"""Keeping a store in order: superseded rows compacted, damaged shards dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import StoreError
from clipette.store.layout import TABLES, read_commits, read_header
from clipette.store.plan import read_plan
from clipette.store.reader import Store, Table
from clipette.store.rows import Rows
from clipette.store.writer import StoreWriter


def describe(store: Store) -> dict[str, Any]:
    """What a store holds, in plain values: whose outputs, how many of what, how far, and what could not be read."""
    tables = {"images": store.images, "views": store.views, "texts": store.texts}
    plan = read_plan(store.path / "plan.parquet")
    planned = {chunk.number for chunk in plan.chunks} if plan is not None else set()
    missing = len(planned - {commit.number for commit in store.commits})
    return {
        "path": str(store.path),
        "finished": not missing and (store.path / "manifest.json").exists(),
        "shards": {"poured": len(store.commits), "missing": missing},
        "encoder": dict(store.identity.get("encoder", {})),
        "info": dict(store.info),
        "dim": store.dim,
        "rows": {name: len(table) for name, table in tables.items() if table is not None},
        "views_per_image": store.view_count,
        "failures": [{"key": each.key, "location": each.location, "reason": each.reason} for each in store.failures],
    }


def compact(path: str | Path, *, shard_size: int = 1024) -> int:
    """Rewrite the live rows without the superseded ones; returns how many rows were removed.

    A reader that is open meanwhile must be opened anew: the files it maps are deleted.
    Killed at any moment, the store stays readable and whole: new shards supersede the old ones before these are
    deleted. Raises ``StoreError`` where there is no store, or another process writes to it.
    """
    root = Path(path)
    with _writer(root) as writer:
        old = writer.commits
        store = Store(root, writer.header, old)
        tables = {name: store.table(name) for name in TABLES if any(name in commit.parts for commit in old)}
        stored = sum(commit.parts[name].rows for name in tables for commit in old if name in commit.parts)
        removed = stored - sum(len(table) for table in tables.values())
        if not removed:
            writer.finish()
            return 0
        failures = writer.failures()
        for name, table in tables.items():
            _rewrite(writer, store, name, table, shard_size)
        if failures:
            writer.append({}, failures)
        writer.drop([commit.number for commit in old])
        writer.finish()
    return removed


def _rewrite(writer: StoreWriter, store: Store, name: str, table: Table, shard_size: int) -> None:
    step = shard_size * table.per_key
    for start in range(0, len(table), step):
        rows = np.arange(start, min(start + step, len(table)), dtype=np.int64)
        writer.append(
            {
                name: Rows(
                    keys=[table.keys[row] for row in rows],
                    content=[str(table.columns["content"][row]) for row in rows],
                    vectors=table.vectors(rows),
                    views=[store.view(int(row)) for row in rows] if name == "views" else None,
                )
            }
        )


def repair(path: str | Path) -> tuple[int, ...]:
    """Drop the shards that are missing, cut or changed, so that pouring again fills the gap; returns their numbers."""
    root = Path(path)
    header = read_header(root)
    if header is None:
        raise StoreError(f"{root}: no store here (no store.json)")
    damaged = Store(root, header, read_commits(root)).damaged_shards()
    if damaged:
        with _writer(root) as writer:
            writer.drop(damaged)
    return damaged


def _writer(root: Path) -> StoreWriter:
    header = read_header(root)
    if header is None:
        raise StoreError(f"{root}: no store here (no store.json)")
    return StoreWriter(root, header.identity, header.dim)
