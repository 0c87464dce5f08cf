"""Making a collection, and opening one: for reading, or as its one writer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.errors import StoreError
from clipette.index.collection import Collection
from clipette.index.layout import EXACT_ROWS, MANIFEST, Manifest, read_manifest, write_manifest
from clipette.index.lock import LOCK, drop_lock, take_lock
from clipette.index.upkeep import sweep
from clipette.io import fsync_folder
from clipette.store.layout import storage_errors


def create(
    path: str | Path,
    *,
    space: str,
    dim: int,
    model: Mapping[str, Any] | None = None,
    store: str = "lance",
    exact_rows: int = EXACT_ROWS,
    ready: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Collection:
    """A new, empty collection, opened for writing. Raises ``StoreError`` where the folder holds anything.

    ``exact_rows``: up to so many rows every search is exact. ``ready``: whether readers may open it already.
    """
    root = Path(path)
    with storage_errors(root):
        _check_empty(root)
        root.mkdir(parents=True, exist_ok=True)
        fsync_folder(root.parent)
    lock = take_lock(root)
    manifest = Manifest(
        id=secrets.token_hex(8),
        space=space,
        dim=dim,
        model=dict(model or {}),
        store=store,
        exact_rows=exact_rows,
        ready=ready,
        facts=dict(facts or {}),
    )
    try:
        _check_empty(root)  # another process may have been faster, and have finished
        write_manifest(root, manifest)
        return Collection(root, lock)
    except BaseException:
        drop_lock(lock)
        raise


def _check_empty(root: Path) -> None:
    """Nothing but a lock, and what a process left that was killed before it had made an index."""
    if root.exists() and (
        not root.is_dir()
        or any(entry.name != LOCK and not entry.name.startswith(f".{MANIFEST}.") for entry in root.iterdir())
    ):
        raise StoreError(f"{root}: not empty; name a new folder, or add to the index that is there")


def open_index(
    path: str | Path, *, write: bool = False, background: bool = False, unfinished: bool = False
) -> Collection:
    """Open an index for reading, or as its one writer.

    Args:
        path: its folder.
        write: take the lock; what killed writers left behind is swept.
        background: tidy in a thread, so that no write waits for it (for servers).
        unfinished: open a build that has not finished, too.

    Raises:
        StoreError: no index there, damaged, unfinished, or another process is writing.
    """
    root = Path(path)
    manifest = read_manifest(root)
    if not manifest.ready and not unfinished:
        raise StoreError(f"{root}: its build has not finished; run the same command again to go on")
    if not write:
        return Collection(root, None)
    lock = take_lock(root)
    try:
        sweep(root, read_manifest(root))
        return Collection(root, lock, background=background)
    except BaseException:
        drop_lock(lock)
        raise
