"""How an index lies on disk: one manifest that is replaced whole, and files that never change.

::

    index.json                  the manifest: what exists. A write is done when this file has been replaced
    rows/000007.npy             [n, D] float32 vectors, in the order of …
    rows/000007.parquet         … their keys, kinds, texts, places and metadata columns
    rows/000008.gone.parquet    keys deleted by write 8
    blobs/000009.bin            bytes of images that exist nowhere else (uploads, cells of tables)
    queries.npy                 the queries that recall is measured with
    lance/                      derived from rows/: made again by `clipette index rebuild`
    writer.lock                 held by the one process that may write

Entries are in order: a key's last row counts, unless a later entry deletes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipette.errors import StoreError
from clipette.io import write_json
from clipette.store.layout import FileRecord, read_json, shard_name, storage_errors

FORMAT, VERSION = "clipette-index", 1
MANIFEST = "index.json"
QUERIES_FILE = "queries.npy"
# Up to so many rows comparing with all of them is as fast as a graph, and exact.
EXACT_ROWS = 50_000
SUFFIXES = {"vectors": ".npy", "rows": ".parquet", "gone": ".gone.parquet"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One write (or several, merged). ``seq``: the generation of the last write in it; ``files``: what it wrote."""

    number: int
    seq: int
    rows: int
    gone: int
    files: Mapping[str, FileRecord]

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        files = {name: {"size": record.size, "digest": record.digest} for name, record in self.files.items()}
        return {"number": self.number, "seq": self.seq, "rows": self.rows, "gone": self.gone, "files": files}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Entry:
        """The inverse of ``to_json``."""
        files = {str(name): FileRecord(**record) for name, record in value["files"].items()}
        return Entry(int(value["number"]), int(value["seq"]), int(value["rows"]), int(value["gone"]), files)


@dataclass(frozen=True, slots=True)
class Derived:
    """The vector store beside the rows. ``synced``: it holds every write up to this generation.

    ``place``: what opens that state (LanceDB's folder and version, Milvus' collection); ``effort``: of its searches;
    ``columns``: metadata columns that it can filter by, with their types when it was made.
    """

    place: Mapping[str, Any]
    synced: int
    effort: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "place": dict(self.place),
            "synced": self.synced,
            "effort": self.effort,
            "columns": dict(self.columns),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Derived:
        """The inverse of ``to_json``."""
        return Derived(value["place"], int(value["synced"]), value["effort"], value["columns"])


@dataclass(frozen=True, slots=True)
class Manifest:
    """``index.json``.

    ``generation`` grows with every write of content; ``next``: the number of the next file; ``exact_rows``: up to so
    many rows every search is exact; ``roots``: folders that images are read from, and from nowhere else; ``columns``:
    name → bool, int, float or text; ``facts``: measured recall, calibration, and what else was found out.
    """

    id: str
    space: str
    dim: int
    model: Mapping[str, Any]
    store: str = "lance"
    exact_rows: int = EXACT_ROWS
    ready: bool = False
    generation: int = 0
    next: int = 0
    entries: tuple[Entry, ...] = ()
    blobs: Mapping[str, FileRecord] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    derived: Derived | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As ``index.json`` holds it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "space": self.space,
            "dim": self.dim,
            "model": dict(self.model),
            "store": self.store,
            "exact_rows": self.exact_rows,
            "ready": self.ready,
            "generation": self.generation,
            "next": self.next,
            "entries": [entry.to_json() for entry in self.entries],
            "blobs": {name: {"size": record.size, "digest": record.digest} for name, record in self.blobs.items()},
            "roots": list(self.roots),
            "columns": dict(self.columns),
            "derived": None if self.derived is None else self.derived.to_json(),
            "facts": dict(self.facts),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], where: Path) -> Manifest:
        """Raises ``StoreError`` where it is no manifest of this version."""
        if value.get("format") != FORMAT:
            raise StoreError(f"{where}: not an index of Clipette (its format is {value.get('format')!r})")
        if value.get("version") != VERSION:
            raise StoreError(
                f"{where}: written in version {value.get('version')!r} of the format, this Clipette reads {VERSION}; "
                "build the index again, or use the Clipette that wrote it"
            )
        try:
            derived = value["derived"]
            return Manifest(
                id=str(value["id"]),
                space=str(value["space"]),
                dim=int(value["dim"]),
                model=value["model"],
                store=str(value["store"]),
                exact_rows=int(value["exact_rows"]),
                ready=bool(value["ready"]),
                generation=int(value["generation"]),
                next=int(value["next"]),
                entries=tuple(Entry.from_json(entry) for entry in value["entries"]),
                blobs={str(name): FileRecord(**record) for name, record in value["blobs"].items()},
                roots=tuple(str(root) for root in value["roots"]),
                columns={str(name): str(kind) for name, kind in value["columns"].items()},
                derived=None if derived is None else Derived.from_json(derived),
                facts=value["facts"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where}: damaged ({error!r}); build the index again") from error


def entry_path(root: Path, number: int, part: str) -> Path:
    """One file of one entry; ``part``: vectors, rows or gone."""
    return root / "rows" / f"{shard_name(number)}{SUFFIXES[part]}"


def blob_path(root: Path, name: str) -> Path:
    """A file of image bytes; ``name`` is a number as the manifest holds it."""
    return root / "blobs" / f"{shard_name(int(name))}.bin"


def files_of(root: Path, manifest: Manifest) -> Iterator[tuple[Path, FileRecord]]:
    """Every file that the manifest names, with what is known of it."""
    for entry in manifest.entries:
        for part, record in entry.files.items():
            yield entry_path(root, entry.number, part), record
    for name, record in manifest.blobs.items():
        yield blob_path(root, name), record


def read_manifest(root: Path) -> Manifest:
    """Raises ``StoreError`` where there is no index, or a damaged one."""
    path = root / MANIFEST
    if not path.exists():
        raise StoreError(f"{root}: no index here (no {MANIFEST}); build one: clipette index build DATA --out {root}")
    value = read_json(path, "restore the file, or build the index again")
    if not isinstance(value, dict):
        raise StoreError(f"{path}: damaged (no JSON object); build the index again")
    return Manifest.from_json(value, path)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Replace the manifest: from here on its state is the one that exists."""
    with storage_errors(root):
        write_json(root / MANIFEST, manifest.to_json())


def version_of(root: Path) -> tuple[int, int]:
    """What changes whenever the manifest is replaced: its inode and time, without reading it. Raises ``StoreError``."""
    try:
        status = os.stat(root / MANIFEST)
    except OSError as error:
        raise StoreError(f"{root}: the index is no longer there ({error.strerror})") from error
    return status.st_ino, status.st_mtime_ns


def appended(manifest: Manifest, entries: Sequence[Entry], **changes: Any) -> Manifest:
    """The manifest with further entries."""
    return replace(manifest, entries=(*manifest.entries, *entries), **changes)
