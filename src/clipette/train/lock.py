"""One process, or one group of ranks, at a time in a run's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipette.errors import ConfigError
from clipette.io import cache_root, digest, take_lock
from clipette.train.ranks import rank


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder; the operating system lets go of it when the process ends, however it ends.

    The lock's file is in the cache, so that a run's folder holds the run alone: it keeps out processes of this machine.

    Raises ``ConfigError`` where another process is at work there.
    """
    descriptor = _held(folder) if rank() == 0 else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _held(folder: Path) -> int | None:
    name = digest(str(folder.resolve()).encode("utf-8", "surrogateescape"))
    path = cache_root() / "locks" / name
    # Where the cache cannot be written, or its file system has no locks, nothing is held.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return take_lock(path)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is at work here: wait for it, or choose another --out"
            ) from None
    return None
