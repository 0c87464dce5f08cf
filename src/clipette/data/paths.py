"""Paths in references: ``{000..005}``, ``{a,b}``, ``*`` and ``~``; stable keys from relative paths."""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path, PurePosixPath

from clipette.errors import DataError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_braces(pattern: str) -> list[str]:
    """``x-{08..10}.tar`` -> x-08.tar, x-09.tar, x-10.tar; ``{a,b}`` -> a, b; several groups multiply."""
    pieces = BRACES.split(pattern)
    # Odd positions are what stood between braces.
    choices = [_choices(piece) if position % 2 else [piece] for position, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def expand(pattern: str, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The existing paths a pattern names, in order; a folder stands for its files that end in ``suffixes``.

    Raises:
        DataError: nothing matches, or a path of a brace pattern is missing.
    """
    found: list[Path] = []
    for name in expand_braces(os.path.expanduser(pattern)):
        path = Path(name)
        if not path.exists() and glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
            if not matches:
                raise DataError(f"{name}: nothing matches this pattern (working folder: {Path.cwd()})")
            found += matches
        elif not path.exists():
            raise DataError(f"{name}: no such file or folder (working folder: {Path.cwd()})")
        elif path.is_dir() and suffixes:
            inside = [entry for entry in sorted(path.iterdir()) if entry.name.endswith(suffixes)]
            if not inside:
                raise DataError(f"{name}: the folder has no file ending in {' or '.join(suffixes)}")
            found += inside
        else:
            found.append(path)
    return found


def key_of(path: str, root: str = "") -> str:
    """A stable key: the path relative to ``root`` (if inside it), without its last suffix, with forward slashes."""
    if root:
        full = os.path.normpath(os.path.join(root, path))
        inside = os.path.relpath(full, root)
        path = full if inside.startswith("..") else inside
    posix = PurePosixPath(os.path.normpath(path).replace(os.sep, "/"))
    return str(posix.with_suffix("") if posix.name else posix).lstrip("/")


def _choices(inner: str) -> list[str]:
    span = RANGE.match(inner)
    if span is None:
        return inner.split(",")
    first, last = span.groups()
    if int(first) > int(last):
        raise DataError(f"{{{inner}}}: the range runs backwards")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
