"""A collection: the vectors of images and texts in one folder, written by one process and read by many."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clipette.errors import BadImageError, DataError, StoreError
from clipette.index.drafting import Drafted, Texts, draft_samples, merged_columns
from clipette.index.exact import exact_search
from clipette.index.filters import Filter, parse_filter
from clipette.index.layout import (
    MANIFEST,
    Manifest,
    appended,
    blob_path,
    read_manifest,
    version_of,
    write_manifest,
)
from clipette.index.lock import drop_lock, take_lock
from clipette.index.places import BLOB, NOWHERE, read_place
from clipette.index.shards import Draft, check_draft, rows_table, write_entry
from clipette.index.snapshot import Snapshot, load_snapshot
from clipette.index.store import Found, Kind, Row
from clipette.io import digest, write_atomic
from clipette.store.layout import FileRecord, storage_errors
from clipette.types import Encoder, Failure, Floats, Sample


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an add did. ``unchanged`` rows were neither encoded nor written."""

    added: int
    updated: int
    unchanged: int
    deleted: int
    failures: tuple[Failure, ...]
    generation: int


class Collection:
    """A folder ``my.index``, opened by ``open_index`` or made by ``build_index``. Safe to use from several threads.

    A reader sees one state until ``refresh``; the process that writes sees its own writes at once.
    """

    def __init__(self, path: Path, snapshot: Snapshot, lock: int | None) -> None:
        self.path = path
        self._snapshot = snapshot
        self._version = (0, 0)
        self._lock = lock
        self._writing = threading.RLock()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the next writer in."""
        with self._writing:
            if self._lock is not None:
                drop_lock(self._lock)
                self._lock = None

    # ------------------------------------------------------------ what it is

    @property
    def manifest(self) -> Manifest:
        """The state that is being read."""
        return self._snapshot.manifest

    @property
    def space(self) -> str:
        """Id of the embedding space: queries must come from an encoder of the same."""
        return self.manifest.space

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.manifest.dim

    @property
    def generation(self) -> int:
        """Grows with every write: what is cached under another generation is stale."""
        return self.manifest.generation

    @property
    def columns(self) -> Mapping[str, str]:
        """Metadata columns for filters: name → bool, int, float or text."""
        return self.manifest.columns

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was found out about the collection and is kept with it: measured recall, calibration, …"""
        return self.manifest.facts

    def __len__(self) -> int:
        return len(self._snapshot)

    def count(self, kind: Kind | None = None) -> int:
        """Rows, or rows of one kind."""
        return len(self._snapshot) if kind is None else self._snapshot.count(kind)

    def keys(self, kind: Kind | None = None, where: Filter | str | None = None) -> list[str]:
        """Keys in the order they were written; of one kind, of those that match ``where``."""
        snapshot = self._snapshot
        mask = snapshot.mask(self._filter(where), kind)
        rows = range(int(snapshot.starts[-1])) if mask is None else np.flatnonzero(mask).tolist()
        return [snapshot.key(row) for row in rows]

    def sample_keys(self, count: int, *, kind: Kind | None = None, seed: int = 0) -> list[str]:
        """At most ``count`` keys drawn at random without repetition; the same for equal ``seed`` and content."""
        snapshot = self._snapshot
        mask = snapshot.mask(None, kind)
        rows = np.arange(int(snapshot.starts[-1])) if mask is None else np.flatnonzero(mask)
        if len(rows) > count:
            rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
        return [snapshot.key(row) for row in rows.tolist()]

    # ------------------------------------------------------------ reading

    def __contains__(self, key: str) -> bool:
        return bool(self._snapshot.find([key])[0] >= 0)

    def rows(self, keys: Sequence[str]) -> list[Row]:
        """What is known of each key. Raises ``StoreError`` naming the first that is not there."""
        snapshot = self._snapshot
        return [snapshot.row(row) for row in snapshot.rows_of(keys).tolist()]

    def vectors(self, keys: Sequence[str]) -> Floats:
        """[n, D] unit vectors. Raises ``StoreError`` naming the first key that is not there."""
        snapshot = self._snapshot
        return snapshot.vectors(snapshot.rows_of(keys))

    def image_bytes(self, key: str) -> bytes:
        """The encoded image of a key, from the indexed folders or the index itself and from nowhere else.

        Raises ``StoreError`` where there is no such key; ``BadImageError`` where its image cannot be read.
        """
        snapshot = self._snapshot
        row = int(snapshot.rows_of([key])[0])
        place = snapshot.place(row)
        if place == NOWHERE:
            raise BadImageError(f"{key!r}: a {snapshot.row(row).kind} without an image")
        return read_place(self.path, place, snapshot.manifest.roots)

    def search_vectors(
        self,
        queries: Floats,
        k: int,
        where: Filter | str | None = None,
        exact: bool | None = None,
        kind: Kind | None = None,
    ) -> Found:
        """The ``k`` rows nearest to each query [Q, D] by cosine, best first; equal cosines by key.

        Args:
            queries: unit vectors of this collection's space.
            k: at least 1; fewer rows come back where fewer match.
            where: a filter, or its text.
            exact: compare with every matching row; by default where that is fast anyway.
            kind: only images, or only texts.

        Raises:
            DataError: queries of another width, or not finite.
            ConfigError: a filter that is wrong; see ``parse_filter``.
        """
        snapshot = self._snapshot
        asked = _checked_queries(queries, snapshot.manifest.dim)
        if k < 1:
            raise DataError(f"k is {k}: ask for at least 1 result")
        mask = snapshot.mask(self._filter(where), kind)
        return exact_search([shard.vectors for shard in snapshot.shards], asked, k, mask, snapshot.key)

    def _filter(self, where: Filter | str | None) -> Filter | None:
        return parse_filter(where, self.columns) if isinstance(where, str) else where

    def refresh(self) -> bool:
        """See what was written since; whether there was anything."""
        with self._writing:
            version = version_of(self.path)
            if version == self._version:
                return False
            self._version = version
            before = self.manifest
            manifest = read_manifest(self.path)
            if manifest == before:
                return False
            try:
                self._snapshot = self._snapshot.advance(manifest)
            except FileNotFoundError:
                self._snapshot = load_snapshot(self.path)
            return True

    # ------------------------------------------------------------ writing

    def add(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        *,
        texts: Texts = "none",
        replace: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> AddReport:
        """Add samples, or update those whose keys are there: all of them at once, on disk when this returns.

        A sample without an image is a text. With ``texts="captions"`` an image's captions become rows of their own
        (``key#0``, ``key#1``, …). What has not changed since is not encoded again; an image that cannot be read is
        a failure in the report, and its old row stays.

        Args:
            samples: images in files and tars are read from there later; others (uploads, cells of tables) are copied.
            encoder: of this collection's space.
            texts: whether captions are searchable too.
            replace: let a key be taken over by another file.
            batch_size: of the encoder.
            progress: show a bar.

        Raises:
            StoreError: opened for reading only, or an encoder of another space.
            DataError: a key given twice or taken by something else, or a value that does not fit its column.
        """
        self.check_space(encoder)
        with self._writing:
            self._require_writer()
            drafted = draft_samples(
                self._snapshot,
                samples,
                encoder,
                texts=texts,
                replace=replace,
                batch_size=batch_size,
                progress=progress,
            )
            gone = [key for key in drafted.gone if key in self]
            self._commit(drafted, gone)
            return AddReport(
                drafted.added,
                drafted.updated,
                drafted.unchanged,
                len(gone),
                tuple(drafted.failures),
                self.generation,
            )

    def add_rows(self, rows: Sequence[Row], vectors: Floats) -> AddReport:
        """Add or replace rows whose vectors [N, D] are there already; their images are nowhere to be read.

        Raises ``StoreError`` where opened for reading only, ``DataError`` on a bad key, vector or value.
        """
        with self._writing:
            self._require_writer()
            old = self._snapshot.find([row.key for row in rows])
            stamps = ["" if row.text is None else digest(row.text.encode()) for row in rows]
            draft = Draft(list(rows), vectors, [NOWHERE] * len(rows), stamps)
            updated = int((old >= 0).sum())
            self._commit(Drafted(draft, self.manifest.roots), [])
            return AddReport(len(rows) - updated, updated, 0, 0, (), self.generation)

    def delete(self, keys: Sequence[str]) -> int:
        """Delete rows, and captions that belong to deleted images; how many rows were there. On disk on return."""
        with self._writing:
            self._require_writer()
            gone = dict.fromkeys(key for key in keys if key in self)
            for key in list(gone):
                position = 0
                while (caption := f"{key}#{position}") in self and self.rows([caption])[0].of == key:
                    gone[caption] = None
                    position += 1
            if gone:
                empty = Draft([], np.zeros((0, self.dim), np.float32), [], [])
                self._commit(Drafted(empty, self.manifest.roots), list(gone))
            return len(gone)

    def set_fact(self, name: str, value: Any) -> None:
        """Keep something found out about the collection (JSON) with it; None removes it."""
        with self._writing:
            self._require_writer()
            facts = {**self.manifest.facts, name: value}
            if value is None:
                del facts[name]
            self._replace(replace(self.manifest, facts=facts))

    def check_space(self, encoder: Encoder) -> None:
        """Raises ``StoreError`` where ``encoder``'s vectors are not comparable with this collection's."""
        if encoder.space != self.space or encoder.dim != self.dim:
            raise StoreError(
                f"{self.path}: its vectors are of the space {self.space!r} ({self.dim} wide, made by "
                f"{self.manifest.model.get('name', 'another model')!r}), those of {encoder.name!r} of "
                f"{encoder.space!r} ({encoder.dim} wide): they cannot be compared. Use the model that built the index, "
                "a student distilled into its space, or build another index"
            )

    def _require_writer(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path}: opened for reading only; open it with write=True")

    def _commit(self, drafted: Drafted, gone: Sequence[str]) -> None:
        """Files first, each synced; then the manifest. What is in the manifest is written, and nothing else is."""
        vectors = check_draft(drafted.rows, self.dim)
        if not len(vectors) and not gone:
            return
        manifest = self.manifest
        columns = merged_columns(manifest.columns, drafted.rows.rows)
        number, generation, blobs = manifest.next, manifest.generation + 1, dict(manifest.blobs)
        draft = _with_blob(drafted.rows, number)
        with storage_errors(self.path):
            if drafted.blob:
                write_atomic(blob_path(self.path, str(number)), drafted.blob)
                blobs[str(number)] = FileRecord(len(drafted.blob), digest(drafted.blob))
            table = rows_table(draft, columns)
            entry = write_entry(self.path, number, generation, table, vectors, gone)
        self._replace(
            appended(
                manifest,
                [entry],
                generation=generation,
                next=number + 1,
                blobs=blobs,
                roots=drafted.roots,
                columns=columns,
            )
        )

    def _replace(self, manifest: Manifest) -> None:
        write_manifest(self.path, manifest)
        self._snapshot = self._snapshot.advance(manifest)
        self._version = version_of(self.path)


def _with_blob(draft: Draft, number: int) -> Draft:
    """Places in the blob of this write get its number."""
    places = [
        replace(place, path=str(number)) if place.root == BLOB and not place.path else place for place in draft.places
    ]
    return Draft(draft.rows, draft.vectors, places, draft.stamps)


def _checked_queries(queries: Floats, dim: int) -> Floats:
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    if asked.ndim != 2 or asked.shape[1] != dim:
        raise DataError(f"queries of shape {list(asked.shape)}: this index needs [Q, {dim}]")
    if not np.isfinite(asked).all():
        raise DataError("a query vector holds NaN or infinity; check what made it")
    return asked


def create(
    path: str | Path, *, space: str, dim: int, model: Mapping[str, Any] | None = None, store: str = "lance"
) -> Collection:
    """A new, empty collection, opened for writing. Raises ``StoreError`` where the folder holds anything."""
    root = Path(path)
    with storage_errors(root):
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(f"{root}: not empty; name a new folder, or add to the index that is there")
        root.mkdir(parents=True, exist_ok=True)
    lock = take_lock(root)
    manifest = Manifest(id=secrets.token_hex(8), space=space, dim=dim, model=dict(model or {}), store=store, ready=True)
    write_manifest(root, manifest)
    return Collection(root, load_snapshot(root), lock)


def open_index(path: str | Path, *, write: bool = False) -> Collection:
    """Open an index for reading, or as its one writer.

    Raises ``StoreError``: no index there, damaged, unfinished, or another process is writing.
    """
    root = Path(path)
    if not (root / MANIFEST).exists():
        read_manifest(root)
    lock = take_lock(root) if write else None
    try:
        collection = Collection(root, load_snapshot(root), lock)
    except BaseException:
        if lock is not None:
            drop_lock(lock)
        raise
    collection.refresh()
    return collection
