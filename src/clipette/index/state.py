"""The state of an index in this process: its snapshot, its lock, and the one way in which its manifest is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from clipette.errors import StoreError
from clipette.index.layout import Manifest, read_manifest, version_of, write_manifest
from clipette.index.lock import drop_lock
from clipette.index.snapshot import Snapshot, load_snapshot


class State:
    """Shared by all threads that use one opened index. ``writing`` is held while the manifest is changed."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self.writing = threading.RLock()
        self._lock = lock
        self._version = version_of(path)
        self._snapshot = load_snapshot(path)
        self._next = self._snapshot.manifest.next

    @property
    def snapshot(self) -> Snapshot:
        """The state that is read now; it stays whole while others write."""
        return self._snapshot

    @property
    def manifest(self) -> Manifest:
        """Of the snapshot."""
        return self._snapshot.manifest

    @property
    def writable(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def require_writer(self) -> None:
        """Raises ``StoreError`` where the index was opened for reading only, or is closed."""
        if not self.writable:
            raise StoreError(f"{self.path}: opened for reading only; open it with write=True")

    def number(self) -> int:
        """A file number that nobody else gets."""
        with self.writing:
            self._next += 1
            return self._next - 1

    def change(self, changed: Callable[[Manifest], Manifest]) -> None:
        """Replace the manifest by what ``changed`` makes of the newest one: then it is written, before it is not."""
        with self.writing:
            self.require_writer()
            manifest = changed(self.manifest)
            write_manifest(self.path, manifest)
            self._snapshot = self._snapshot.advance(manifest)
            self._version = version_of(self.path)

    def refresh(self) -> bool:
        """See what another process wrote; whether there was anything. Raises ``StoreError``: another index is there."""
        with self.writing:
            version = version_of(self.path)
            if version == self._version:
                return False
            manifest = read_manifest(self.path)
            if manifest.id != self.manifest.id:
                # Its files have the numbers of ours, and other rows.
                raise StoreError(f"{self.path}: another index has been built here since; open it anew")
            try:
                self._snapshot = self._snapshot.advance(manifest)
            except FileNotFoundError:  # compacted between the two
                self._snapshot = load_snapshot(self.path)
            self._version = version
            return True

    def close(self) -> None:
        """Let the next writer in."""
        with self.writing:
            if self._lock is not None:
                drop_lock(self._lock)
                self._lock = None
