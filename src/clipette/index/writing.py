"""Writes: files first, each synced; then the manifest. What the manifest names is written, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipette.errors import DataError
from clipette.index.drafting import Drafted, Texts, draft_samples, merged_columns
from clipette.index.filters import Filter, In
from clipette.index.layout import appended, blob_path
from clipette.index.places import BLOB, NOWHERE
from clipette.index.shards import Draft, check_draft, rows_table, write_entry
from clipette.index.state import State
from clipette.index.store import KINDS, Row
from clipette.index.tidying import Tidier
from clipette.io import digest, write_atomic
from clipette.store.layout import FileRecord, storage_errors
from clipette.types import Encoder, Failure, Floats, Sample


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an add did. ``unchanged`` rows were neither encoded nor written; ``deleted``: captions that are no more."""

    added: int
    updated: int
    unchanged: int
    deleted: int
    failures: tuple[Failure, ...]
    generation: int


class Writer:
    """The writing half of a collection, whose methods say what these do.

    Tidying comes after the lock has been let go of: who tidies takes the locks in the other order.
    """

    def __init__(self, state: State, tidier: Tidier) -> None:
        self._state = state
        self._tidier = tidier

    def add(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        *,
        texts: Texts,
        replace: bool,
        batch_size: int,
        progress: bool,
    ) -> AddReport:
        """See ``Collection.add``."""
        with self._state.writing:
            self._state.require_writer()
            drafted = draft_samples(
                self._state.snapshot,
                samples,
                encoder,
                texts=texts,
                replace=replace,
                batch_size=batch_size,
                progress=progress,
            )
            found = self._state.snapshot.find(drafted.gone)
            gone = [key for key, row in zip(drafted.gone, found.tolist(), strict=True) if row >= 0]
            self._commit(drafted, gone)
            report = AddReport(
                drafted.added,
                drafted.updated,
                drafted.unchanged,
                len(gone),
                tuple(drafted.failures),
                self._state.manifest.generation,
            )
        self._tidier.after_write()
        return report

    def add_rows(self, rows: Sequence[Row], vectors: Floats) -> AddReport:
        """See ``Collection.add_rows``."""
        with self._state.writing:
            self._state.require_writer()
            old = self._state.snapshot.find([row.key for row in rows])
            stamps = ["" if row.text is None else digest(row.text.encode("utf-8", "replace")) for row in rows]
            draft = Draft(list(rows), vectors, [NOWHERE] * len(rows), stamps)
            self._commit(Drafted(draft, self._state.manifest.roots), [])
            updated = int((old >= 0).sum())
            report = AddReport(len(rows) - updated, updated, 0, 0, (), self._state.manifest.generation)
        self._tidier.after_write()
        return report

    def delete(self, keys: Sequence[str]) -> int:
        """See ``Collection.delete``."""
        with self._state.writing:
            self._state.require_writer()
            snapshot = self._state.snapshot
            found = snapshot.find(keys)
            there = found >= 0
            gone = dict.fromkeys(key for key, known in zip(keys, there.tolist(), strict=True) if known)
            if snapshot.count("text") and (snapshot.kinds[found[there]] == KINDS.index("image")).any():
                gone |= dict.fromkeys(snapshot.keys(snapshot.mask(Filter(In("of", tuple(gone))), "text")[0]))
            if gone:
                empty = Draft([], np.zeros((0, snapshot.manifest.dim), np.float32), [], [])
                self._commit(Drafted(empty, snapshot.manifest.roots), list(gone))
        self._tidier.after_write()
        return len(gone)

    def _commit(self, drafted: Drafted, gone: Sequence[str]) -> None:
        path, manifest = self._state.path, self._state.manifest
        vectors = check_draft(drafted.rows, manifest.dim)
        if not len(vectors) and not gone:
            return
        columns = merged_columns(manifest.columns, drafted.rows.rows)
        _check_names(columns, drafted.roots)
        number, generation, blobs = self._state.number(), manifest.generation + 1, dict(manifest.blobs)
        table = rows_table(_with_blob(drafted.rows, number), columns)
        with storage_errors(path):
            if drafted.blob:
                write_atomic(blob_path(path, str(number)), drafted.blob)
                blobs[str(number)] = FileRecord(len(drafted.blob), digest(drafted.blob))
            entry = write_entry(path, number, generation, table, vectors, gone)
        changes = {"blobs": blobs, "roots": drafted.roots, "columns": columns}
        self._state.change(
            lambda newest: appended(
                newest, [entry], generation=generation, next=max(newest.next, number + 1), **changes
            )
        )


def _check_names(columns: Iterable[str], roots: Iterable[str]) -> None:
    """Raises ``DataError`` where the manifest could not be written."""
    for what, names in (("column", columns), ("folder", roots)):
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"the name of the {what} {name!r} is not valid Unicode; rename it") from None


def _with_blob(draft: Draft, number: int) -> Draft:
    """Places in the blob of this write get its number."""
    places = [
        replace(place, path=str(number)) if place.root == BLOB and not place.path else place for place in draft.places
    ]
    return Draft(draft.rows, draft.vectors, places, draft.stamps)
