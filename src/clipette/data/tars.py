"""WebDataset tars (``key.jpg`` + ``key.json``, ``.txt``, ``.cls``) as map-style data: offsets, no extraction."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clipette.data.dataset import Listing
from clipette.data.fields import sample_of
from clipette.data.paths import expand
from clipette.data.refs import IMAGE_SUFFIXES, TarImage
from clipette.errors import DataError
from clipette.io import cache_root, digest_json
from clipette.types import Failure, Sample

OPTIONS = {"prefix": "1: put the archive's name before each key (for shards that use the same keys)"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
SIDE_SUFFIXES = (".json", ".txt", ".cls")


@dataclass
class _Entry:
    """The members of one key: the image's place, and the side files' content."""

    image: TarImage | None = None
    sides: dict[str, bytes] = field(default_factory=dict)


def list_tars(rest: str, options: Mapping[str, str]) -> Listing:
    """``wds:``: one tar, a brace or glob pattern, or a folder of tars."""
    whole = Listing()
    for path in expand(rest, TAR_SUFFIXES):
        listing = _listed(path)
        prefix = _archive_stem(path) + "/" if options.get("prefix", "0") not in ("0", "false") else ""
        whole.samples += [_prefixed(sample, prefix) for sample in listing.samples] if prefix else listing.samples
        whole.failures += listing.failures
    return whole


def uncompressed(path: Path) -> Path:
    """The tar itself, or its decompressed copy in the cache (``CLIPETTE_CACHE``, else ``~/.cache/clipette``).

    The copy is named by the archive's path, size and time of change, and is written whole or not at all.
    """
    if path.suffix not in (".gz", ".tgz", ".xz", ".bz2"):
        return path
    status = path.stat()
    identity = digest_json([str(path.resolve()), status.st_size, status.st_mtime_ns])
    folder = cache_root() / "tars"
    copy = folder / f"{_archive_stem(path)}-{identity[:16]}.tar"
    if copy.exists():
        return copy
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            _decompressing(path) as source,
            tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as target,
        ):
            temporary = Path(target.name)
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, copy)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed archive is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be decompressed into {folder} ({error}); set CLIPETTE_CACHE to a folder "
                        "with room, or decompress it yourself") from error  # fmt: skip
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return copy


def _decompressing(path: Path) -> gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return bz2.open(path, "rb") if path.suffix == ".bz2" else gzip.open(path, "rb")


def _listed(path: Path) -> Listing:
    status = path.stat()
    return _listed_version(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _listed_version(path: Path, size: int, changed: int) -> Listing:
    """Listing of one version of a tar (the size and time of change are there for the cache). Do not modify it."""
    listing = Listing()
    entries = _indexed(path, uncompressed(path), listing.failures)
    for key, entry in entries.items():
        sample = _sample(path, key, entry, listing.failures)
        if sample is not None:
            listing.samples.append(sample)
    return listing


def _indexed(shown: Path, archive: Path, failures: list[Failure]) -> dict[str, _Entry]:
    """Entries by key (the member's path without its suffix), in the order of the archive."""
    entries: dict[str, _Entry] = {}
    try:
        with tarfile.open(archive, "r:") as tar, archive.open("rb") as file:
            for member in tar:
                suffix = PurePosixPath(member.name).suffix.lower()
                if not member.isreg() or not (suffix in IMAGE_SUFFIXES or suffix in SIDE_SUFFIXES):
                    continue
                key = member.name[: -len(suffix)].removeprefix("./")
                entry = entries.setdefault(key, _Entry())
                place = f"{shown}:{member.name}"
                if suffix in IMAGE_SUFFIXES:
                    if entry.image is not None:
                        reason = f"the key '{key}' already has the image {entry.image.location}; rename one of them"
                        failures.append(Failure(key, place, reason))
                        continue
                    entry.image = TarImage(str(archive), str(shown), member.name, member.offset_data, member.size)
                else:
                    file.seek(member.offset_data)
                    entry.sides[suffix] = file.read(member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        if not entries:
            raise DataError(f"{shown}: not a readable tar archive ({error}); fetch it again") from error
        reason = f"the archive is cut off after {len(entries)} keys ({error}); fetch it again"
        failures.append(Failure(str(shown), str(shown), reason))
    return entries


def _sample(path: Path, key: str, entry: _Entry, failures: list[Failure]) -> Sample | None:
    place = f"{path}:{key}"
    if entry.image is None:
        failures.append(Failure(key, place, f"no image beside {sorted(entry.sides)}"))
        return None
    record: dict[str, object] = {}
    captions: list[str] = []
    try:
        for suffix, data in entry.sides.items():
            text = data.decode("utf-8-sig")
            if suffix == ".json":
                parsed = json.loads(text)
                if not isinstance(parsed, dict):
                    raise ValueError("expected a JSON object")
                record |= parsed
            elif suffix == ".cls":
                record.setdefault("cls", text.strip())
            else:
                captions = text.splitlines() or [""]
    except ValueError as error:
        failures.append(Failure(key, f"{place}{suffix}", f"the side file cannot be read: {error}"))
        return None
    return sample_of(key, entry.image, record, failures, captions=captions)


def _prefixed(sample: Sample, prefix: str) -> Sample:
    return Sample(
        prefix + sample.key, sample.image, sample.captions, sample.class_name, sample.label, sample.domain,
        sample.split, sample.meta,
    )  # fmt: skip


def _archive_stem(path: Path) -> str:
    for suffix in sorted(TAR_SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
