"""One writer: a lock that the operating system lets go of when its process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

from clipette.errors import StoreError
from clipette.io import take_lock as hold
from clipette.store.layout import storage_errors

LOCK = "writer.lock"


def take_lock(root: Path) -> int:
    """The descriptor of the held lock. Raises ``StoreError`` naming the process that holds it."""
    try:
        with storage_errors(root):
            descriptor = hold(root / LOCK)
    except BlockingIOError:
        holder = (root / LOCK).read_bytes()[:32].decode("ascii", "replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise StoreError(
            f"{root}: {who} is writing to this index; wait for it, stop it, or send your changes to it "
            "(a server takes them at /v1/items)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def drop_lock(descriptor: int) -> None:
    """Let the next writer in."""
    os.close(descriptor)
