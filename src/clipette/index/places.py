"""Where an image's bytes are, as the index remembers it: a file or tar member below a root, or a blob of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipette.data.refs import FileImage, TarImage
from clipette.errors import BadImageError
from clipette.index.layout import blob_path
from clipette.types import ImageBytes

BLOB = -2


@dataclass(frozen=True, slots=True)
class Place:
    """``root``: position in the manifest's roots, -1 for nowhere, -2 for a blob (``path`` is its number).

    ``path``: below the root. ``member``, ``offset`` and ``size``: within a tar or blob (size -1: the whole file).
    """

    root: int
    path: str = ""
    member: str = ""
    offset: int = 0
    size: int = -1

    @property
    def shown(self) -> str:
        """For people: ``photos/a.jpg``, ``train.tar:a.jpg``, the name of an upload."""
        if self.root == BLOB:
            return self.member
        return f"{self.path}:{self.member}" if self.member else self.path


NOWHERE = Place(-1)


def file_of(image: ImageBytes | None) -> str | None:
    """The real path of the file that an image is in, or None where it is in none that can be read again by itself."""
    if isinstance(image, FileImage):
        return os.path.realpath(image.path)
    if isinstance(image, TarImage):
        return os.path.realpath(image.archive)
    return None


def stamp_of(image: ImageBytes) -> str:
    """What changes when a file does, without reading it: its size and time, and the member's offset."""
    path = file_of(image)
    if path is None:
        return ""
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadImageError(f"{image.location}: cannot be read ({error.strerror})") from error
    member = f":{image.offset}:{image.size}" if isinstance(image, TarImage) else ""
    return f"{status.st_size}:{status.st_mtime_ns}{member}"


def with_roots(roots: Sequence[str], files: Sequence[str]) -> tuple[str, ...]:
    """``roots``, and for files in none of them their common folder (per top folder, where they share no other).

    A file that is not there (a dangling link) opens no folder, and none opens the whole disk.
    """
    known = list(roots)
    there = (path for path in files if _root_of(known, path) is None and os.path.isfile(path))
    outside = {folder for folder in map(os.path.dirname, there) if folder != os.path.dirname(folder)}
    groups: dict[str, list[str]] = {}
    for folder in sorted(outside):
        parts = Path(folder).parts
        groups.setdefault(parts[1], []).append(folder)
    return (*known, *(os.path.commonpath(folders) for folders in groups.values()))


def _root_of(roots: Sequence[str], path: str) -> int | None:
    for position, root in enumerate(roots):
        if path == root or path.startswith(root.rstrip(os.sep) + os.sep):
            return position
    return None


def place_of(image: ImageBytes, roots: Sequence[str]) -> Place:
    """The place of a file's or tar's image below one of ``roots``."""
    path = file_of(image)
    position = None if path is None else _root_of(roots, path)
    if path is None or position is None:
        return NOWHERE
    inside = os.path.relpath(path, roots[position])
    if isinstance(image, TarImage):
        return Place(position, inside, image.member, image.offset, image.size)
    return Place(position, inside)


def read_place(folder: Path, place: Place, roots: Sequence[str]) -> bytes:
    """The image's bytes. Nothing outside ``roots`` and the index's own blobs is read, whatever links may say.

    Raises ``BadImageError``: no image, outside its root, gone, or changed in size.
    """
    if place.root == BLOB:
        path = blob_path(folder, place.path)
    elif 0 <= place.root < len(roots):
        root = os.path.realpath(roots[place.root])
        path = Path(os.path.realpath(os.path.join(root, place.path)))
        if not path.is_relative_to(root):
            raise BadImageError(f"{place.shown}: outside the folder that was indexed; refused")
    else:
        raise BadImageError(f"{place.shown or 'this row'}: the index knows no image of it")
    try:
        with open(path, "rb") as file:
            file.seek(place.offset)
            data = file.read() if place.size < 0 else file.read(place.size)
    except OSError as error:
        raise BadImageError(f"{place.shown}: cannot be read any more ({error.strerror})") from error
    if place.size >= 0 and len(data) != place.size:
        raise BadImageError(f"{place.shown}: the file ends after {len(data)} of {place.size} bytes")
    return data
