"""The vector store beside the rows: opened, made from them, brought up to date. It holds nothing of its own."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import ConfigError, StoreError
from clipette.index.layout import Derived, Manifest
from clipette.index.snapshot import Snapshot
from clipette.index.store import KINDS, VectorRows, VectorStore
from clipette.progress import track
from clipette.store.layout import shard_name, storage_errors
from clipette.types import Ints

log = logging.getLogger(__name__)

LANCE = "lance"
BATCH = 20_000
# More than this share changed: made anew, it is smaller and found better than mended.
REMAKE = 0.3


def check_store(reference: str) -> None:
    """Raises ``ConfigError`` where ``reference`` names no store."""
    if reference == LANCE:
        return
    if not reference.startswith("milvus"):
        raise ConfigError(f"--store {reference}: expected lance, or milvus://HOST:PORT")
    from clipette.index.milvus import address

    address(reference)


def open_derived(root: Path, manifest: Manifest, *, write: bool = False) -> VectorStore:
    """The store as the manifest knows it. Raises ``StoreError`` where it cannot be opened."""
    derived = manifest.derived
    assert derived is not None
    columns = derived.columns
    if manifest.store == LANCE:
        from clipette.index.lance import open_lance

        version = int(derived.place["version"])
        return open_lance(_folder(root, derived.place), dim=manifest.dim, columns=columns, version=version, write=write)
    from clipette.index.milvus import open_milvus

    return open_milvus(manifest.store, str(derived.place["name"]), dim=manifest.dim, columns=columns)


def _folder(root: Path, place: Mapping[str, Any]) -> Path:
    """LanceDB's folder. Raises ``StoreError`` where the manifest, which others may have written, names another one."""
    name = str(place["folder"])
    if not re.fullmatch(rf"{LANCE}-\d+b?", name):
        raise StoreError(f"{root}: the index names {name!r} as its vector store; make it anew: clipette index rebuild")
    return root / name


def make_derived(root: Path, snapshot: Snapshot, *, progress: bool = False) -> Derived:
    """A new store with every live row, beside the old one if there is any."""
    rows = np.flatnonzero(snapshot.live).astype(np.int64)
    manifest = snapshot.manifest
    if manifest.store == LANCE:
        return _make_lance(root, snapshot, rows, progress)
    from clipette.index.milvus import create_milvus

    name = f"clipette_{manifest.id}_{manifest.generation}"
    if manifest.derived is not None and manifest.derived.place.get("name") == name:
        name += "b"  # the same rows indexed again: the old one answers until the new one is whole
    store = create_milvus(manifest.store, name, dim=manifest.dim, columns=manifest.columns)
    try:
        _upsert(store, snapshot, rows, store.columns, progress)
        store.optimize()
        return Derived({"name": name}, manifest.generation, columns=store.columns)
    finally:
        store.close()


def _make_lance(root: Path, snapshot: Snapshot, rows: Ints, progress: bool) -> Derived:
    from clipette.index.lance import create_lance

    manifest = snapshot.manifest
    name = f"{LANCE}-{shard_name(manifest.generation)}"
    if manifest.derived is not None and manifest.derived.place.get("folder") == name:
        name += "b"  # the same rows indexed again: readers still look at the old folder
    with storage_errors(root):
        shutil.rmtree(root / name, ignore_errors=True)
        store = create_lance(root / name, dim=manifest.dim, columns=manifest.columns)
        _upsert(store, snapshot, rows, store.columns, progress)
        store.optimize()
    return Derived({"folder": name, "version": store.version}, manifest.generation, columns=store.columns)


def update_derived(root: Path, snapshot: Snapshot, *, progress: bool = False) -> Derived:
    """The store with every write of ``snapshot`` in it: mended, or made anew where much has changed or it is damaged.

    Raises ``StoreError`` where a server does not answer.
    """
    derived = snapshot.manifest.derived
    if derived is None:
        return make_derived(root, snapshot, progress=progress)
    touched = changed_keys(snapshot, derived.synced)
    widened = any(snapshot.manifest.columns[name] != kind for name, kind in derived.columns.items())
    if widened or len(touched) > REMAKE * max(1, len(snapshot)):
        return make_derived(root, snapshot, progress=progress)
    try:
        return _mended(root, snapshot, derived, touched, progress)
    except (StoreError, OSError, RuntimeError, ValueError) as error:  # LanceDB raises all of these
        if snapshot.manifest.store != LANCE:
            raise
        log.warning("%s: the vector store cannot be brought up to date (%s); it is made anew", root, error)
        return make_derived(root, snapshot, progress=progress)


def _mended(root: Path, snapshot: Snapshot, derived: Derived, touched: Sequence[str], progress: bool) -> Derived:
    found = snapshot.find(touched)
    gone = [key for key, row in zip(touched, found.tolist(), strict=True) if row < 0]
    store = open_derived(root, snapshot.manifest, write=True)
    try:
        if gone:
            store.delete(gone)
        _upsert(store, snapshot, np.sort(found[found >= 0]), derived.columns, progress)
        store.optimize()
        place: Mapping[str, Any] = derived.place
        if snapshot.manifest.store == LANCE:
            from clipette.index.lance import LanceStore

            assert isinstance(store, LanceStore)
            place = {**derived.place, "version": store.version}
        return Derived(place, snapshot.manifest.generation, derived.effort, derived.columns)
    finally:
        store.close()


def changed_keys(snapshot: Snapshot, since: int) -> list[str]:
    """Keys written or deleted after generation ``since``, each once."""
    keys: dict[str, None] = {}
    for shard in snapshot.shards:
        if shard.entry.seq > since:
            keys.update(dict.fromkeys(shard.gone))
            keys.update(dict.fromkeys(shard.column("key").to_pylist() if len(shard) else ()))
    return list(keys)


def tail_start(snapshot: Snapshot, since: int) -> int:
    """The first shard that holds writes after generation ``since``."""
    later = (number for number, shard in enumerate(snapshot.shards) if shard.entry.seq > since)
    return next(later, len(snapshot.shards))


def _upsert(store: VectorStore, snapshot: Snapshot, rows: Ints, columns: Mapping[str, str], progress: bool) -> None:
    pieces = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    bar = track(pieces, total=len(rows), description="indexing", unit="rows", enabled=progress, size=len)
    for piece in bar:
        store.upsert(_vector_rows(snapshot, piece, columns))


def _vector_rows(snapshot: Snapshot, rows: Ints, columns: Mapping[str, str]) -> VectorRows:
    kinds = snapshot.kinds[rows]
    return VectorRows(
        snapshot.names(rows),
        snapshot.vectors(rows),
        [KINDS[kind] for kind in kinds.tolist()],
        snapshot.columns(rows, list(columns)),
    )


def discard(root: Path, manifest: Manifest, place: Mapping[str, Any]) -> None:
    """Remove a store that no manifest names any more."""
    if manifest.store == LANCE:
        shutil.rmtree(_folder(root, place), ignore_errors=True)
        return
    from clipette.index.milvus import open_milvus

    store = open_milvus(manifest.store, str(place["name"]), dim=manifest.dim, columns={})
    store.drop()
    store.close()


def strays(root: Path, manifest: Manifest) -> Iterator[Path]:
    """Folders of LanceDB that were being made when their process died, or that readers have long left."""
    known = None if manifest.derived is None else manifest.derived.place.get("folder")
    for path in root.glob(f"{LANCE}-*"):
        if path.name != known and path.is_dir():
            yield path
