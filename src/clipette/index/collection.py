"""A collection: the vectors of images and texts in one folder, written by one process and read by many."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clipette.errors import BadImageError, ConfigError, DataError, StoreError
from clipette.index.approximate import approximate_search, exact_is_fast
from clipette.index.derived import open_derived
from clipette.index.drafting import Texts
from clipette.index.exact import exact_search
from clipette.index.filters import BUCKET, BUILT_IN, Filter, parse_filter
from clipette.index.layout import Manifest
from clipette.index.places import NOWHERE, read_place
from clipette.index.recall import asked_recall, measure_recall, raise_until
from clipette.index.snapshot import Snapshot
from clipette.index.state import State
from clipette.index.store import Found, Kind, Row, VectorStore
from clipette.index.tidying import Tidier
from clipette.index.upkeep import damage, derived_damage, describe
from clipette.index.values import few_values
from clipette.index.writing import AddReport, Writer
from clipette.types import Encoder, Floats, Sample

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # after a vector store could not be opened


class Collection:
    """A folder ``my.index``, opened by ``open_index`` or made by ``build_index``. Safe to use from several threads.

    A reader sees one state until ``refresh``; the process that writes sees its own writes at once. Close it, or use it
    as a context manager.
    """

    def __init__(self, path: Path, lock: int | None, *, background: bool = False) -> None:
        self.path = path
        self._state = State(path, lock)
        self._tidier = Tidier(self._state, background=background)
        self._writer = Writer(self._state, self._tidier)
        self._store: tuple[Mapping[str, Any], VectorStore] | None = None
        self._retry = 0.0
        self._opening = threading.Lock()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being tidied and let the next writer in."""
        self._tidier.close()
        with self._opening:
            if self._store is not None:
                self._store[1].close()
                self._store = None

    @property
    def _snapshot(self) -> Snapshot:
        return self._state.snapshot

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
        return snapshot.keys(snapshot.mask(_filter(where, snapshot), kind)[0])

    def few_values(self, most: int) -> dict[str, list[str]]:
        """The distinct values of each text column that has at most ``most``; see ``values.few_values``."""
        return few_values(self._snapshot, most)

    def sample_keys(self, count: int, *, kind: Kind | None = None, seed: int = 0) -> list[str]:
        """At most ``count`` keys drawn at random without repetition; the same for equal ``seed`` and content."""
        snapshot = self._snapshot
        mask, _ = snapshot.mask(None, kind)
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
        filtered = _filter(where, snapshot)
        store = None if exact else self._opened_store(snapshot)
        if store is not None and (exact is False or not exact_is_fast(snapshot, store, filtered, kind, len(asked))):
            found = self._proposed(snapshot, store, asked, k, filtered, kind)
            if found is not None:
                return found
        mask, _ = snapshot.mask(filtered, kind)
        return exact_search([shard.vectors for shard in snapshot.shards], asked, k, mask, snapshot.key)

    def _proposed(
        self, snapshot: Snapshot, store: VectorStore, asked: Floats, k: int, where: Filter | None, kind: Kind | None
    ) -> Found | None:
        if where is not None and not store.can_filter(where):
            return None
        derived = snapshot.manifest.derived
        effort = None if derived is None else derived.effort
        try:
            return approximate_search(snapshot, store, asked, k, where=where, kind=kind, effort=effort)
        except (StoreError, OSError, RuntimeError, ValueError) as error:
            # LanceDB raises all of these. A writer may have replaced the store since; the rows are still here.
            log.warning("%s: the vector store failed (%s); searched exactly", self.path, error)
            return None

    def searches_exactly(self, where: Filter | None = None, kind: Kind | None = None) -> bool:
        """Whether a single query is compared with every matching row, so that it misses nothing."""
        snapshot = self._snapshot
        return exact_is_fast(snapshot, self._opened_store(snapshot), where, kind)

    def _opened_store(self, snapshot: Snapshot) -> VectorStore | None:
        derived = snapshot.manifest.derived
        if derived is None:
            return None
        with self._opening:
            if self._store is not None and self._store[0] == derived.place:
                return self._store[1]
            if time.monotonic() < self._retry:
                return None
            try:
                store = open_derived(self.path, snapshot.manifest)
            except (StoreError, OSError) as error:
                log.warning("%s: searched exactly, for the vector store cannot be used: %s", self.path, error)
                self._retry = time.monotonic() + RETRY_SECONDS
                return None
            # The one before may still be searched by other threads: it is closed when they let go of it.
            self._store = (derived.place, store)
            return store

    def refresh(self) -> bool:
        """See what another process has written since; whether there was anything."""
        return self._state.refresh()

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
        return self._writer.add(
            samples, encoder, texts=texts, replace=replace, batch_size=batch_size, progress=progress
        )

    def add_rows(self, rows: Sequence[Row], vectors: Floats) -> AddReport:
        """Add or replace rows whose vectors [N, D] are there already; their images are nowhere to be read.

        Raises ``StoreError`` where opened for reading only, ``DataError`` on a bad key, vector or value.
        """
        return self._writer.add_rows(rows, vectors)

    def delete(self, keys: Sequence[str]) -> int:
        """Delete rows, and captions that belong to deleted images; how many rows were there. On disk on return."""
        return self._writer.delete(keys)

    def set_fact(self, name: str, value: Any) -> None:
        """Keep something found out about the collection (JSON) with it; None removes it."""

        def changed(manifest: Manifest) -> Manifest:
            facts = {key: old for key, old in manifest.facts.items() if key != name}
            return replace(manifest, facts=facts if value is None else {**facts, name: value})

        self._state.change(changed)

    def set_effort(self, effort: int) -> None:
        """How many candidates approximate search keeps in sight: more finds more and takes longer."""

        def changed(manifest: Manifest) -> Manifest:
            derived = manifest.derived
            return manifest if derived is None else replace(manifest, derived=replace(derived, effort=effort))

        self._state.change(changed)

    def finish(self, *, progress: bool = False) -> None:
        """End a build: the vector store is made, and readers may open the index."""
        self._tidier.optimize(progress=progress)
        self._state.change(lambda manifest: replace(manifest, ready=True))

    # ------------------------------------------------------------ upkeep

    def optimize(self, *, progress: bool = False) -> None:
        """Bring the vector store up to date, merge what small writes left, drop image bytes that nothing needs.

        Writes do this by themselves when it is due; a search never waits for it. Raises ``StoreError`` where a server
        does not answer, or the index was opened for reading only.
        """
        self._state.require_writer()
        self._tidier.optimize(progress=progress)

    def rebuild(self, *, recall: float | None = None, progress: bool = False) -> dict[str, Any]:
        """Make the vector store anew from the rows, and measure recall again (asked: as at the build).

        Raises ``StoreError`` where the rows themselves are damaged: they are the source of truth.
        """
        self._state.require_writer()
        if damaged := damage(self.path, self._snapshot):
            raise StoreError(f"{damaged[0]}: restore the file, or build the index anew")
        self._tidier.remake(progress=progress)
        self._tidier.optimize(progress=progress)
        return raise_until(self, asked_recall(self) if recall is None else recall)

    def verify(self, *, recall: bool = True) -> dict[str, Any]:
        """Compare every file with its digest, the vector store with the rows, and measure recall.

        Returns ``{"sound": bool, "damaged": [...], "recall": {...}}``; ``damaged`` says what to do.
        """
        snapshot = self._snapshot
        damaged = damage(self.path, snapshot)
        # A compaction meanwhile replaces files: another process' shows at a refresh, our own at once.
        for _ in range(5):
            if not damaged or not (self.refresh() or self._snapshot is not snapshot):
                break
            snapshot = self._snapshot
            damaged = damage(self.path, snapshot)
        if not damaged:
            damaged = derived_damage(self.path, snapshot)
        measured = measure_recall(self) if recall and not damaged and len(self) else None
        return {"sound": not damaged, "damaged": damaged, "rows": len(snapshot), "recall": measured}

    def info(self) -> dict[str, Any]:
        """What the collection holds, in plain values."""
        return describe(self.path, self._snapshot)

    # ------------------------------------------------------------ identity

    def check_space(self, encoder: Encoder) -> None:
        """Raises ``StoreError`` where ``encoder``'s vectors are not comparable with this collection's."""
        if encoder.space != self.space or encoder.dim != self.dim:
            raise StoreError(
                f"{self.path}: its vectors are of the space {self.space!r} ({self.dim} wide, made by "
                f"{self.manifest.model.get('name', 'another model')!r}), those of {encoder.name!r} of "
                f"{encoder.space!r} ({encoder.dim} wide): they cannot be compared. Use the model that built the index, "
                "a student distilled into its space, or build another index"
            )


def _filter(where: Filter | str | None, snapshot: Snapshot) -> Filter | None:
    """Checked against the columns of the state that is searched."""
    columns = snapshot.manifest.columns
    if where is None or isinstance(where, str):
        return None if where is None else parse_filter(where, columns)
    unknown = [name for name in where.columns if name not in columns and name not in (*BUILT_IN, BUCKET)]
    if unknown:
        raise ConfigError(f"a filter by the column {unknown[0]!r}, which {snapshot.root} does not have")
    return where


def _checked_queries(queries: Floats, dim: int) -> Floats:
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    if asked.ndim != 2 or asked.shape[1] != dim:
        raise DataError(f"queries of shape {list(asked.shape)}: this index needs [Q, {dim}]")
    if not np.isfinite(asked).all():
        raise DataError("a query vector holds NaN or infinity; check what made it")
    return asked
