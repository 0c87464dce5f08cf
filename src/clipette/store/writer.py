"""Writing a store: locked per rank, committed shard by shard, resumable to the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from clipette.errors import InternalError, StoreError
from clipette.io import digest, fsync_folder, take_lock, write_atomic, write_json
from clipette.store.layout import (
    TABLES,
    Commit,
    FileRecord,
    Header,
    Identity,
    Part,
    StoredFailure,
    check_identity,
    commit_path,
    files_of,
    keys_path,
    merge_identity,
    plain,
    read_commits,
    read_header,
    storage_errors,
    vectors_path,
)
from clipette.store.plan import Chunk, Plan, make_plan, read_plan, write_plan
from clipette.store.reader import live_failures, manifest_of
from clipette.store.rows import Rows, key_bytes, read_columns, vector_bytes


class StoreWriter:
    """One rank's hand on a store. Rank 0 creates, plans and finishes; every rank commits shards.

    Use as a context manager. Ranks above 0 are opened after rank 0 has planned. A second writer of the same rank
    is refused. After a kill, opening and running again leads to the very files of a run that was never killed.

    Raises:
        StoreError: a store of another identity or width is there; another process is writing; the disk is full.
    """

    def __init__(
        self, path: str | Path, identity: Identity, dim: int, *, info: Mapping[str, Any] | None = None, rank: int = 0
    ) -> None:
        self.path = Path(path)
        self.rank = rank
        self._lock: int | None = None
        with storage_errors(self.path):
            _refuse_other_folder(self.path)
            (self.path / "locks").mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path, rank)
            try:
                self.header = self._open_header(identity, dim, info or {})
                if rank == 0:
                    _refuse_other_ranks(self.path)
                self._commits = {commit.number: commit for commit in read_commits(self.path)}
                if rank == 0:
                    self._sweep()
            except BaseException:
                self.close()
                raise

    def _open_header(self, identity: Identity, dim: int, info: Mapping[str, Any]) -> Header:
        stored = read_header(self.path)
        if stored is None:
            header = Header(plain(identity), dim, plain(info))
        else:
            check_identity(self.path, stored, identity, dim)
            header = Header(merge_identity(stored.identity, plain(identity)), dim, {**stored.info, **plain(info)})
        if self.rank == 0 and (stored is None or header != stored):
            write_json(self.path / "store.json", header.to_json())
        return header

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the next writer of this rank in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def views_per_key(self) -> int:
        """K of the identity's ``views`` (0: none)."""
        views = self.header.identity.get("views")
        return int(views["count"]) if views is not None else 0

    @property
    def commits(self) -> tuple[Commit, ...]:
        """The committed shards this rank knows of, in order."""
        return tuple(self._commits[number] for number in sorted(self._commits))

    def known(self, table: str) -> dict[str, str]:
        """Key → digest of its content, for every key that was poured into ``table`` or failed there."""
        found: dict[str, str] = {}
        for commit in self.commits:
            if table in commit.parts:
                columns = read_columns(keys_path(self.path, table, commit.number), ("key", "content"))
                found.update(zip(columns.column("key").to_pylist(), columns.column("content").to_pylist(), strict=True))
            found.update({failure.key: failure.content for failure in commit.failures if table in failure.tables})
        return found

    def failures(self) -> tuple[StoredFailure, ...]:
        """Failures that no later shard has made good."""
        return live_failures(self.path, self.commits)

    def resume(self, request: str) -> Plan | None:
        """The plan of an unfinished pour of the same ``request``; a plan of another request is dropped."""
        plan = read_plan(self.path / "plan.parquet")
        if plan is not None and plan.request != request:
            self.drop_plan()
            return None
        return plan

    def drop_plan(self) -> None:
        """Forget the plan; what is committed of it stays."""
        with storage_errors(self.path):
            (self.path / "plan.parquet").unlink(missing_ok=True)
            fsync_folder(self.path)

    def refresh(self) -> None:
        """See the shards that other ranks have committed."""
        self._commits = {commit.number: commit for commit in read_commits(self.path)}

    def plan(self, request: str, wanted: Iterable[tuple[tuple[str, ...], Sequence[str]]], *, shard_size: int) -> Plan:
        """Write down what goes into which shard; ``wanted`` holds (tables, keys) groups. Rank 0 only."""
        plan = make_plan(request, wanted, shard_size=shard_size, first=self.next_number)
        if plan.chunks:
            with storage_errors(self.path):
                write_plan(self.path / "plan.parquet", plan)
        return plan

    @property
    def next_number(self) -> int:
        """The number above all committed shards."""
        return max(self._commits, default=-1) + 1

    def is_committed(self, chunk: Chunk) -> bool:
        """Whether the chunk needs no more work."""
        return chunk.number in self._commits

    def commit(self, number: int, tables: Mapping[str, Rows], failures: Sequence[StoredFailure] = ()) -> Commit:
        """Make shard ``number`` exist: all its files are on disk before its record is.

        Raises:
            StoreError: vectors of another width or not finite; the disk is full.
        """
        if number in self._commits:
            raise InternalError(f"{self.path}: shard {number} is committed already")
        parts: dict[str, Part] = {}
        with storage_errors(self.path):
            for table in TABLES:
                rows = tables.get(table)
                if rows is None or not len(rows.keys):
                    continue
                if (rows.views is not None) != (table == "views"):
                    raise InternalError(f"table {table}: parameters of views belong to the table of views alone")
                if table == "views":
                    _check_groups(rows, self.views_per_key)
                where = f"{self.path}/{table}"
                vectors = vector_bytes(rows, self.header.dim, where)
                keys = key_bytes(rows, self.views_per_key)
                write_atomic(vectors_path(self.path, table, number), vectors)
                write_atomic(keys_path(self.path, table, number), keys)
                parts[table] = Part(
                    len(rows.keys), FileRecord(len(vectors), digest(vectors)), FileRecord(len(keys), digest(keys))
                )
            commit = Commit(number, parts, tuple(failures))
            write_json(commit_path(self.path, number), commit.to_json())
        self._commits[number] = commit
        return commit

    def append(self, tables: Mapping[str, Rows], failures: Sequence[StoredFailure] = ()) -> Commit:
        """``commit`` under the next free number: for a single rank that follows no plan."""
        return self.commit(self.next_number, tables, failures)

    def finish(self) -> None:
        """Take the other ranks' shards in, drop the plan, write the manifest. Rank 0, after all ranks are done."""
        with storage_errors(self.path):
            self.refresh()
            plan = read_plan(self.path / "plan.parquet")
            if plan is not None:
                missing = [chunk.number for chunk in plan.chunks if chunk.number not in self._commits]
                if missing:
                    raise InternalError(f"{self.path}: finished before shard {missing[0]} was committed")
                self.drop_plan()
            self._write_summary()

    def _write_summary(self) -> None:
        failed = sorted(self.failures(), key=lambda failure: failure.key)
        lines = "".join(
            json.dumps({"key": each.key, "location": each.location, "reason": each.reason}, ensure_ascii=False) + "\n"
            for each in failed
        )
        _write_if_changed(self.path / "failures.jsonl", lines.encode())
        manifest = manifest_of(self.header, self.commits, len(failed))
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        _write_if_changed(self.path / "manifest.json", text.encode())

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget shards: first the manifest does, then their records and files go, so that readers never miss one."""
        gone = [self._commits.pop(number) for number in numbers]
        with storage_errors(self.path):
            if (self.path / "manifest.json").exists():
                self._write_summary()
            for commit in gone:
                commit_path(self.path, commit.number).unlink()
            fsync_folder(self.path / "commits")
            for commit in gone:
                for path, _ in files_of(self.path, commit):
                    path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what a killed writer left behind: temporary files, and files of shards that were not committed."""
        kept = {path for commit in self._commits.values() for path, _ in files_of(self.path, commit)}
        for table in TABLES:
            folder = self.path / table
            if folder.is_dir():
                for path in folder.iterdir():
                    if path not in kept:
                        path.unlink()
        for folder in (self.path, self.path / "commits"):
            for path in folder.glob(".*.tmp"):
                path.unlink()


def _refuse_other_folder(root: Path) -> None:
    """Before anything is written: a folder that holds something else stays as it is."""
    if not root.is_dir() or (root / "store.json").exists():
        return
    # A pour that was killed before it wrote its header leaves its locks, and perhaps half a header.
    others = sorted(entry.name for entry in root.iterdir() if entry.name != "locks" and not _is_temporary(entry))
    if others:
        raise StoreError(f"{root}: not empty and not a store (it holds {others[0]!r}); name a new or an empty folder")


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".store.json.") and path.suffix == ".tmp"


def _check_groups(rows: Rows, per_key: int) -> None:
    """The table of views is found by its first row per key: every key must have its K rows together."""
    keys = list(rows.keys)
    if not per_key or len(keys) % per_key or any(keys[i] != keys[i - i % per_key] for i in range(len(keys))):
        raise InternalError(f"each key needs {per_key} consecutive views (identity['views']['count'])")


def _write_if_changed(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def _take_lock(root: Path, rank: int) -> int:
    try:
        return take_lock(root / "locks" / f"{rank:04d}")
    except BlockingIOError:
        raise StoreError(
            f"{root}: another process is pouring into this store (rank {rank}); wait for it, or name another folder"
        ) from None


def _refuse_other_ranks(root: Path) -> None:
    """A rank that outlived its killed group still writes: sweeping beneath it would lose its work."""
    for path in sorted((root / "locks").iterdir()):
        if path.name != "0000":
            os.close(_take_lock(root, int(path.name)))
