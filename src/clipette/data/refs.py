"""Where an image's bytes are: a file, a member of a tar, a cell of a table. Small, lazy, safe to read from threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clipette.errors import BadImageError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
)


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file. ``origin``: the row that names it, for messages (``table.csv row 7``)."""

    path: str
    origin: str = ""

    @property
    def location(self) -> str:
        """The path, and the row that names it."""
        return f"{self.path} ({self.origin})" if self.origin else self.path

    def read(self) -> bytes:
        """The file's bytes. Raises ``BadImageError``."""
        try:
            return Path(self.path).read_bytes()
        except FileNotFoundError:
            raise BadImageError(f"{self.location}: no such file; correct the path or drop the row") from None
        except (OSError, ValueError) as error:
            raise BadImageError(f"{self.location}: cannot be read ({error})") from error


@dataclass(frozen=True, slots=True)
class TarImage:
    """A member of an uncompressed tar, by offset. ``shown``: the archive as the user named it."""

    archive: str
    shown: str
    member: str
    offset: int
    size: int

    @property
    def location(self) -> str:
        """``train.tar:a.jpg``."""
        return f"{self.shown}:{self.member}"

    def read(self) -> bytes:
        """The member's bytes. Raises ``BadImageError``."""
        try:
            # Opened anew each time: about 10 µs, against a limit on open files and a lock between threads.
            with open(self.archive, "rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise BadImageError(f"{self.location}: cannot be read ({error})") from error
        if len(data) != self.size:
            raise BadImageError(
                f"{self.location}: the archive ends after {len(data)} of {self.size} bytes; fetch the archive again"
            )
        return data


class Cell(Protocol):
    """An Arrow scalar."""

    def as_py(self) -> object:
        """Its Python value."""
        ...


class Column(Protocol):
    """An Arrow column: ``column[row].as_py()``."""

    def __getitem__(self, row: int, /) -> Cell: ...


@dataclass(frozen=True, slots=True)
class CellImage:
    """An image inside a table: bytes, or Hugging Face's ``{"bytes": ..., "path": ...}``."""

    column: Column
    row: int
    location: str
    folder: str = ""

    def read(self) -> bytes:
        """The cell's bytes, or those of the file that it names. Raises ``BadImageError``."""
        value = self.column[self.row].as_py()
        path: object = value
        if isinstance(value, Mapping):
            path, value = value.get("path"), value.get("bytes")
        if isinstance(value, bytes):
            return value
        if isinstance(path, str) and path:
            return FileImage(str(Path(self.folder) / path), self.location).read()
        raise BadImageError(f"{self.location}: the cell holds no image (null); drop the row")
