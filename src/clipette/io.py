"""Files written whole or not at all, and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """``write_atomic`` of indented JSON with sorted keys, so that equal values are equal bytes."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def cache_root() -> Path:
    """``CLIPETTE_CACHE``, else ``~/.cache/clipette``: for what can be computed again."""
    return Path(os.environ.get("CLIPETTE_CACHE") or "~/.cache/clipette").expanduser()


def take_lock(path: Path) -> int:
    """The descriptor of the held lock file; the operating system lets go of it when the process ends, however it ends.

    Raises ``BlockingIOError`` where another holds it.
    """
    # Here: bundles are read where there is no fcntl (Windows), and they read this file too.
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def digest(data: bytes) -> str:
    """32 hex digits (BLAKE2b-128): identity of content, not a signature."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_json(value: object) -> str:
    """``digest`` of the canonical JSON of ``value``."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """``digest`` of a file's content, read in pieces."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()
