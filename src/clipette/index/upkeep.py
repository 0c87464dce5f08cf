"""What keeps an index in order: leftovers swept, files checked against their digests, a description in plain values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import ClipetteError
from clipette.index.derived import open_derived, strays, tail_start
from clipette.index.layout import QUERIES_FILE, Manifest, files_of
from clipette.index.snapshot import Snapshot
from clipette.index.store import VectorStore
from clipette.io import digest_file
from clipette.store.layout import FileRecord, storage_errors

# A text of a fact that is longer is packed numbers: nothing for people.
LONGEST = 256
# Rows of the vector store that are compared with those of the index.
SAMPLED = 200


def sweep(root: Path, manifest: Manifest) -> None:
    """Delete what killed writers left behind: nothing of it is in the manifest, so nothing of it was acknowledged."""
    kept = {path for path, _ in files_of(root, manifest)}
    with storage_errors(root):
        for folder in (root / "rows", root / "blobs"):
            for path in folder.glob("*") if folder.is_dir() else ():
                if path not in kept:
                    path.unlink(missing_ok=True)
        for path in root.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        for path in strays(root, manifest):
            shutil.rmtree(path, ignore_errors=True)


def damage(root: Path, snapshot: Snapshot) -> list[str]:
    """What is wrong with the files of an index, by their sizes and digests, and with its vectors."""
    found: list[str] = []
    for path, record in [*files_of(root, snapshot.manifest), *_kept_queries(root, snapshot.manifest)]:
        try:
            size = path.stat().st_size
            if size != record.size:
                found.append(f"{path} is cut or grown to {size} of {record.size} bytes")
            elif digest_file(path) != record.digest:
                found.append(f"{path} has changed since it was written")
        except FileNotFoundError:
            found.append(f"{path} is missing")
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror})")
    if not found:
        for shard in snapshot.shards:
            norms = np.linalg.norm(shard.vectors, axis=1)
            if len(norms) and not np.abs(norms - 1).max() < 1e-3:
                found.append(f"{root}/rows/{shard.entry.number:06d}.npy holds vectors that are not of unit length")
    return found


def _kept_queries(root: Path, manifest: Manifest) -> list[tuple[Path, FileRecord]]:
    """The queries that recall is measured with, where they are kept: without them it is measured by rows alone."""
    told, path = manifest.facts.get("queries"), root / QUERIES_FILE
    if not isinstance(told, Mapping) or not path.exists():
        return []
    return [(path, FileRecord(told.get("size", 0), told.get("digest", "")))]


def derived_damage(root: Path, snapshot: Snapshot) -> list[str]:
    """What is wrong with the vector store beside the rows; `clipette index rebuild` mends it."""
    manifest = snapshot.manifest
    if manifest.derived is None:
        return []
    try:
        store = open_derived(root, manifest)
        try:
            there = store.count()
            stored = _differing(store, snapshot, tail_start(snapshot, manifest.derived.synced))
        finally:
            store.close()
    except ClipetteError as error:
        return [str(error)]
    except (OSError, RuntimeError, ValueError) as error:  # LanceDB raises all of these
        return [f"the vector store ({manifest.store}) cannot be read ({error}); run clipette index rebuild"]
    if stored:
        return [f"the vector store ({manifest.store}) holds another vector of {stored!r}; run clipette index rebuild"]
    if manifest.derived.synced == manifest.generation and there != len(snapshot):
        return [
            f"the vector store ({manifest.store}) holds {there} rows for {len(snapshot)}; run clipette index rebuild"
        ]
    return []


def _differing(store: VectorStore, snapshot: Snapshot, tail: int) -> str | None:
    """Of a sample of the rows that the store must hold the first whose vector is another; it must answer, too."""
    rows = np.flatnonzero(snapshot.live[: snapshot.starts[tail]])
    rows = rows[np.round(np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows)))).astype(np.int64)]
    if not len(rows):
        return None
    keys, vectors = snapshot.names(rows), snapshot.vectors(rows)
    store.search(vectors[:1], 1)
    wrong = np.flatnonzero(np.abs(store.get(keys) - vectors).max(axis=1) > 1e-3)
    return keys[int(wrong[0])] if len(wrong) else None


def size_of(folder: Path) -> int:
    """Bytes of all files below ``folder``, less those that go while they are counted."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def describe(root: Path, snapshot: Snapshot) -> dict[str, Any]:
    """What an index holds, in plain values."""
    manifest = snapshot.manifest
    derived = manifest.derived
    return {
        "path": str(root),
        "space": manifest.space,
        "dim": manifest.dim,
        "model": dict(manifest.model),
        "rows": {"image": snapshot.count("image"), "text": snapshot.count("text")},
        "columns": dict(manifest.columns),
        "generation": manifest.generation,
        "store": manifest.store,
        "search": "exact" if derived is None else f"approximate, effort {derived.effort or 'default'}",
        "entries": len(manifest.entries),
        "superseded": int((~snapshot.live).sum()),
        "not_in_store": 0 if derived is None else _pending(snapshot, derived.synced),
        "roots": list(manifest.roots),
        "bytes": size_of(root),
        "ready": manifest.ready,
        **{name: _readable(manifest.facts[name]) for name in sorted(manifest.facts)},
    }


def _readable(fact: Any) -> Any:
    """A fact without what only programs read: packed arrays."""
    if isinstance(fact, Mapping):
        shown = {name: _readable(value) for name, value in fact.items()}
        return {name: value for name, value in shown.items() if value is not None}
    if isinstance(fact, list | tuple):
        return [_readable(value) for value in fact]
    return None if isinstance(fact, str) and len(fact) > LONGEST else fact


def _pending(snapshot: Snapshot, synced: int) -> int:
    return sum(len(shard) + len(shard.gone) for shard in snapshot.shards if shard.entry.seq > synced)
