"""Folders written whole or not at all, in place of one of their kind and of nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from clipette.errors import ConfigError
from clipette.io import fsync_folder

IsOurs = Callable[[Path], bool]


def check_target(target: Path, ours: IsOurs, what: str) -> None:
    """Raises ``ConfigError`` where something else than a ``what`` is in the way."""
    if target.exists() and not ours(target):
        raise ConfigError(f"{target}: is there and no {what}; name a new folder")


def write_folder(target: Path, fill: Callable[[Path], object], *, ours: IsOurs, what: str) -> Path:
    """Make a folder, let ``fill`` write into it, and put it at ``target``, where one of its kind may be replaced.

    Raises ``ConfigError`` where ``target`` holds something else, and whatever ``fill`` raises: nothing is left then.
    """
    check_target(target, ours, what)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(made)
        made.chmod(0o755)
        _replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _replace(made: Path, target: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside first."""
    aside = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(aside / "old")
    made.rename(target)
    fsync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
