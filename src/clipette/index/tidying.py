"""Keeping an index fast while it is written to: the vector store brought up to date, small entries merged."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

from clipette.errors import StoreError
from clipette.index.derived import LANCE, discard, make_derived, update_derived
from clipette.index.layout import Derived, Entry, Manifest, blob_path, entry_path
from clipette.index.merging import merge_run, runs, unused_blobs
from clipette.index.snapshot import Snapshot
from clipette.index.state import State

log = logging.getLogger(__name__)

# Rows that are not in the vector store are compared exactly: a few thousand cost less than a millisecond.
TAIL_ROWS, TAIL_SHARE = 5_000, 0.05


class Tidier:
    """Tidies one index, one thing at a time, beside the writes. ``background``: in a thread of its own."""

    def __init__(self, state: State, *, background: bool) -> None:
        self._state = state
        self._background = background
        self._tidying = threading.RLock()
        self._thread: threading.Thread | None = None

    def after_write(self) -> None:
        """Do what has become due. Whatever fails is logged: the write itself is on disk."""
        if not self._due():
            return
        if not self._background:
            self._quietly()
        elif self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._quietly, name="clipette-index-tidy", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Finish what is being tidied, then let the next writer in: its file numbers must not be ours any more."""
        if self._thread is not None:
            self._thread.join()
        with self._tidying:
            self._state.close()

    def _due(self) -> bool:
        snapshot = self._state.snapshot
        return needs_store(snapshot) or bool(runs(snapshot))

    def _quietly(self) -> None:
        try:
            with self._tidying:
                while self._due() and self._state.writable:
                    self.merge()
                    self._drop_blobs()
                    if needs_store(self._state.snapshot):
                        self.sync()
        except Exception as error:  # a server away, a full disk: the next write tries again
            log.warning("%s: could not be tidied now (%s)", self._state.path, error)

    def optimize(self, *, progress: bool = False) -> None:
        """Everything that tidying can do, now. Raises ``StoreError`` where a server does not answer."""
        with self._tidying:
            self.sync(progress=progress)
            self.merge(everything=True)
            self._drop_blobs()

    def sync(self, *, progress: bool = False) -> None:
        """Bring the vector store up to date, or make it where there are rows enough for one."""
        with self._tidying:
            snapshot = self._state.snapshot
            if not wants_store(snapshot.manifest, len(snapshot)):
                if snapshot.manifest.derived is not None:
                    self._adopt(None)
                return
            derived = snapshot.manifest.derived
            if derived is None or derived.synced < snapshot.manifest.generation:
                self._adopt(update_derived(self._state.path, snapshot, progress=progress))

    def remake(self, *, progress: bool = False) -> None:
        """Make the vector store anew from the rows, whatever state the old one is in."""
        with self._tidying:
            snapshot = self._state.snapshot
            wanted = wants_store(snapshot.manifest, len(snapshot))
            self._adopt(make_derived(self._state.path, snapshot, progress=progress) if wanted else None)

    def _adopt(self, derived: Derived | None) -> None:
        before = self._state.manifest.derived

        def changed(manifest: Manifest) -> Manifest:
            old = manifest.derived
            effort = None if old is None else old.effort
            return replace(manifest, derived=None if derived is None else replace(derived, effort=effort))

        self._state.change(changed)
        if before is not None and (derived is None or _name(before) != _name(derived)):
            try:
                discard(self._state.path, self._state.manifest, before.place)
            except StoreError as error:
                log.warning("an old vector store could not be removed: %s", error)

    def merge(self, *, everything: bool = False) -> None:
        """Merge entries (see ``merging.runs``) while writes go on."""
        with self._tidying:
            self._state.require_writer()
            snapshot = self._state.snapshot
            path = self._state.path
            merged = {
                run: merge_run(path, snapshot, run, self._state.number) for run in runs(snapshot, everything=everything)
            }
            if not merged:
                return
            old = snapshot.manifest.entries
            entries = list(old)
            for run in sorted(merged, key=lambda run: -run.start):
                entries[run.start : run.stop] = merged[run]

            def changed(manifest: Manifest) -> Manifest:
                # Writes since then have only put entries after those that were merged.
                later = manifest.entries[len(old) :]
                number = max([manifest.next, *(entry.number + 1 for entry in entries)])
                return replace(manifest, entries=(*entries, *later), next=number)

            self._state.change(changed)
            _delete_entries(path, [old[i] for run in merged for i in run])

    def _drop_blobs(self) -> None:
        with self._tidying:
            snapshot = self._state.snapshot
            unused = unused_blobs(snapshot) if snapshot.manifest.blobs else set()
            if unused:

                def changed(manifest: Manifest) -> Manifest:
                    kept = {name: record for name, record in manifest.blobs.items() if name not in unused}
                    return replace(manifest, blobs=kept)

                self._state.change(changed)
                for name in unused:
                    blob_path(self._state.path, name).unlink(missing_ok=True)


def _name(derived: Derived) -> object:
    return derived.place.get("folder") or derived.place.get("name")


def _delete_entries(root: Path, entries: list[Entry]) -> None:
    """Readers have mapped what they use; one that opens the index just now reads the new manifest and tries again."""
    for entry in entries:
        for part in entry.files:
            entry_path(root, entry.number, part).unlink(missing_ok=True)


def wants_store(manifest: Manifest, rows: int) -> bool:
    """Whether an index of this many rows has a vector store: LanceDB where exact search is slow, a server always."""
    return rows > manifest.exact_rows or (manifest.store != LANCE and rows > 0)


def needs_store(snapshot: Snapshot) -> bool:
    """Whether the vector store is missing, or far behind."""
    manifest = snapshot.manifest
    if not manifest.ready or not wants_store(manifest, len(snapshot)):
        return False
    if manifest.derived is None:
        return True
    synced = manifest.derived.synced
    behind = sum(len(shard) + len(shard.gone) for shard in snapshot.shards if shard.entry.seq > synced)
    return behind > max(TAIL_ROWS, TAIL_SHARE * len(snapshot))
