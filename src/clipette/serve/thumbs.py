"""Thumbnails: small pictures made from untrusted ones, kept on disk within a bound."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipette.data.images import DecodeSettings, decode_image
from clipette.errors import BadImageError, ConfigError
from clipette.io import digest_json

# Part of every name: a change here makes the pictures of older versions unreachable, and eviction removes them.
VERSION = 1
SUFFIX = ".thumb"
DIGEST_BYTES = 16
# Below this many pixels JPEG's blocks would show on a picture that the page enlarges, and PNG is small anyway.
LOSSLESS_PIXELS = 128 * 128
# Eviction goes below the bound, so that a full cache does not list its folder for each new picture.
EVICT_TO = 0.9
# A hit renews a file's time at most this often: eviction needs the order of days, not of requests.
TOUCH_AFTER_S = 3600.0
# Longer than any write takes: a temporary file this old was left by a process that was killed.
STALE_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An encoded picture without any metadata of its source. ``etag`` changes if and only if the bytes do."""

    data: bytes
    media_type: str
    etag: str


class Thumbnails:
    """Makes thumbnails and keeps them in ``folder``; safe for threads and for several processes on one folder.

    What a reader gets is whole: files appear by renaming, and each carries a digest that is checked when it is read.
    Nothing here must survive: a full or read-only disk costs time, never an answer.

    Args:
        folder: made if need be; holds nothing else.
        side: longest side in pixels; a smaller picture keeps its size.
        max_bytes: of all files together; the least recently used go first.
        max_source_bytes: a larger original is refused before it is decoded.
        max_pixels: likewise, by the size its header states.
        quality: of the JPEG, 1 to 95.
        decoders: originals decoded at one time: each may take ``max_pixels`` × 3 bytes.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        side: int = 384,
        max_bytes: int = 256 * 2**20,
        max_source_bytes: int = 64 * 2**20,
        max_pixels: int = 64_000_000,
        quality: int = 84,
        decoders: int = 2,
    ) -> None:
        limits = {"side": side, "max_bytes": max_bytes, "max_source_bytes": max_source_bytes, "decoders": decoders}
        for name, value in {**limits, "max_pixels": max_pixels, "quality": quality}.items():
            if value < 1:
                raise ConfigError(f"thumbnails: {name}={value} must be at least 1")
        if quality > 95:
            raise ConfigError(f"thumbnails: quality={quality} is out of range; give 1 to 95")
        self.folder = Path(folder)
        self.side = side
        self.max_bytes = max_bytes
        self.max_source_bytes = max_source_bytes
        self.quality = quality
        self._settings = DecodeSettings(scaled=True, max_pixels=max_pixels)
        self._decoders = threading.BoundedSemaphore(decoders)
        self._lock = threading.Lock()
        self._making: dict[str, _Turn] = {}
        self._total: int | None = None

    def get(self, key: str, version: str, read: Callable[[], bytes]) -> Thumbnail:
        """The thumbnail of ``key``, from disk or made now.

        Args:
            key: the item's key; any string, it never becomes a path.
            version: changes whenever the picture under ``key`` does.
            read: the original's encoded bytes; called only when there is no thumbnail yet.

        Raises:
            BadImageError: the original is damaged, no image, or over a cap; whatever ``read`` raises.
        """
        name = digest_json([VERSION, key, version, self.side, self.quality])
        kept = self._load(name)
        if kept is not None:
            return kept
        # A page asks for one picture several times at once; the first makes it and the others find it.
        with self._turn(name):
            kept = self._load(name)
            if kept is not None:
                return kept
            data = self._make(key, read)
            self._keep(name, data)
            return _thumbnail(data)

    def path_of(self, name: str) -> Path:
        """Where the file of ``name`` (hexadecimal) is, or would be."""
        return self.folder / name[:2] / (name + SUFFIX)

    def _make(self, key: str, read: Callable[[], bytes]) -> bytes:
        with self._decoders:
            source = read()
            if len(source) > self.max_source_bytes:
                raise BadImageError(
                    f"{key}: {len(source):,} bytes exceed the limit of {self.max_source_bytes:,} bytes for thumbnails; "
                    "shrink the image or raise the limit"
                )
            image = decode_image(source, location=key, settings=self._settings, want=(self.side, self.side))
            return encode_thumbnail(image, self.side, self.quality)

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        with self._lock:
            turn = self._making.setdefault(name, _Turn(threading.Lock()))
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    del self._making[name]

    def _load(self, name: str) -> Thumbnail | None:
        path = self.path_of(name)
        try:
            content = path.read_bytes()
            if time.time() - path.stat().st_mtime > TOUCH_AFTER_S:
                os.utime(path)
        except OSError:
            return None
        stated, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return _thumbnail(data) if data and stated == _digest(data) else None

    def _keep(self, name: str, data: bytes) -> None:
        """Write by renaming, without fsync: after a power cut the digest tells a torn file, which is made again."""
        path = self.path_of(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(data) + data)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            self._bound(DIGEST_BYTES + len(data))
        except OSError:
            return  # not kept: the next request makes it again

    def _bound(self, added: int) -> None:
        """Count ``added`` bytes, and above the bound remove the files that were used least recently."""
        with self._lock:
            self._total = self._sweep() if self._total is None else self._total + added
            if self._total <= self.max_bytes:
                return
            # Other processes write here too: the folder says how much there is.
            files = sorted(self._files(), key=lambda each: each[1])
            self._total = sum(size for _, _, size in files)
            for path, _, size in files:
                if self._total <= EVICT_TO * self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                self._total -= size

    def _sweep(self) -> int:
        """Bytes on disk; temporary files of killed processes are removed on the way."""
        for path in self.folder.glob("*/*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                    path.unlink()
        return sum(size for _, _, size in self._files())

    def _files(self) -> list[tuple[Path, float, int]]:
        found = []
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removed it since
                status = path.stat()
                found.append((path, status.st_mtime, status.st_size))
        return found


@dataclass(slots=True)
class _Turn:
    """Who makes one picture now, and how many threads hold or want the lock."""

    lock: threading.Lock
    waiting: int = 0


def encode_thumbnail(image: Image.Image, side: int, quality: int) -> bytes:
    """An upright RGB image, at most ``side`` pixels long, as JPEG; as PNG where it is tiny. No metadata goes along."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.info = {}  # EXIF may say where a photograph was taken
    buffer = io.BytesIO()
    if small.width * small.height <= LOSSLESS_PIXELS:
        small.save(buffer, format="PNG")
    else:
        small.save(buffer, format="JPEG", quality=quality, progressive=True, optimize=True)
    return buffer.getvalue()


def _thumbnail(data: bytes) -> Thumbnail:
    kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    return Thumbnail(data, kind, f'"{_digest(data).hex()}"')


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
