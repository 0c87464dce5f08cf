"""What keeps an index in order: leftovers swept, files checked against their digests, a description in plain values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipette.errors import ClipetteError
from clipette.index.derived import open_derived, strays
from clipette.index.layout import MANIFEST, Manifest, files_of
from clipette.index.snapshot import Snapshot
from clipette.io import digest_file
from clipette.store.layout import storage_errors

# A text of a fact that is longer is packed numbers: nothing for people.
LONGEST = 256


def sweep(root: Path, manifest: Manifest) -> None:
    """Delete what killed writers left behind: nothing of it is in the manifest, so nothing of it was acknowledged."""
    kept = {path for path, _ in files_of(root, manifest)}
    with storage_errors(root):
        for folder in (root / "rows", root / "blobs"):
            for path in folder.glob("*") if folder.is_dir() else ():
                if path not in kept:
                    path.unlink(missing_ok=True)
        for path in root.glob(f".{MANIFEST}.*.tmp"):
            path.unlink(missing_ok=True)
        for path in strays(root, manifest):
            shutil.rmtree(path, ignore_errors=True)


def damage(root: Path, snapshot: Snapshot) -> list[str]:
    """What is wrong with the files of an index, by their sizes and digests, and with its vectors."""
    found: list[str] = []
    for path, record in files_of(root, snapshot.manifest):
        if not path.exists():
            found.append(f"{path} is missing")
        elif path.stat().st_size != record.size:
            found.append(f"{path} is cut or grown to {path.stat().st_size} of {record.size} bytes")
        elif digest_file(path) != record.digest:
            found.append(f"{path} has changed since it was written")
    if not found:
        for shard in snapshot.shards:
            norms = np.linalg.norm(shard.vectors, axis=1)
            if len(norms) and not np.abs(norms - 1).max() < 1e-3:
                found.append(f"{root}/rows/{shard.entry.number:06d}.npy holds vectors that are not of unit length")
    return found


def derived_damage(root: Path, snapshot: Snapshot) -> list[str]:
    """What is wrong with the vector store beside the rows; `clipette index rebuild` mends it."""
    manifest = snapshot.manifest
    if manifest.derived is None:
        return []
    try:
        store = open_derived(root, manifest)
        try:
            there = store.count()
        finally:
            store.close()
    except ClipetteError as error:
        return [str(error)]
    if manifest.derived.synced == manifest.generation and there != len(snapshot):
        return [
            f"the vector store ({manifest.store}) holds {there} rows for {len(snapshot)}; run clipette index rebuild"
        ]
    return []


def size_of(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
    return None if isinstance(fact, str) and len(fact) > LONGEST else fact


def _pending(snapshot: Snapshot, synced: int) -> int:
    return sum(len(shard) + len(shard.gone) for shard in snapshot.shards if shard.entry.seq > synced)
