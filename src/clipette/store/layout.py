"""How a store lies on disk: names, identity, and the small records that make a shard exist.

::

    store.json            format, identity, width, facts about the encoder
    commits/000000.json   shard 0 exists because this file does: sizes and digests of its parts, failures
    images/000000.npy     [n, D] float16          images/000000.parquet   hash, key, content
    views/000000.npy      [n K, D] float16        views/000000.parquet    hash, key, content, index, box, flip, colours
    texts/000000.npy      [n, D] float16          texts/000000.parquet    hash, key (the text itself), content
    failures.jsonl        samples that could not be poured (written at the end, from the commits)
    manifest.json         everything above in one file (written at the end, from the commits)
    plan.parquet          only while a pour is unfinished: which keys go into which shard

A row is superseded by a row of the same key in a shard of a higher number; ``compact`` removes superseded rows.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipette.errors import StoreError
from clipette.io import digest_json

FORMAT = "clipette-store"
VERSION = 1
DTYPE = "float16"
TABLES = ("images", "views", "texts")

Identity = Mapping[str, Any]


def folder_key(identity: Identity) -> str:
    """16 hex digits of everything that changes the vectors: the folder's name in a cache of stores."""
    return digest_json(identity)[:16]


def store_path(root: str | Path, identity: Identity) -> Path:
    """Where the store of ``identity`` lives below a cache folder."""
    return Path(root) / folder_key(identity)


def differences(stored: Identity, asked: Identity) -> list[str]:
    """What differs, in words: ``encoder.weights: stored 'a', asked 'b'``.

    A part (top-level entry) that is None or absent on either side says nothing: a store poured without views may
    later get them, and asking only for the encoder does not question the views.
    """
    found: list[str] = []
    for part in sorted({*stored, *asked}):
        if stored.get(part) is not None and asked.get(part) is not None:
            found += _differences(part, stored[part], asked[part])
    return found


def _differences(where: str, stored: Any, asked: Any) -> list[str]:
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        found: list[str] = []
        for name in sorted({*stored, *asked}):
            found += _differences(f"{where}.{name}", stored.get(name), asked.get(name))
        return found
    return [] if stored == asked else [f"{where}: stored {stored!r}, asked {asked!r}"]


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON: tuples are lists."""
    read_back: dict[str, Any] = json.loads(json.dumps(value))
    return read_back


def merge_identity(stored: Identity, asked: Identity) -> dict[str, Any]:
    """The stored identity, completed by parts that only ``asked`` has."""
    return {
        part: stored[part] if stored.get(part) is not None else asked.get(part) for part in sorted({*stored, *asked})
    }


def check_identity(path: Path, stored: Header, identity: Identity, dim: int | None = None) -> None:
    """Raises ``StoreError`` where the store is of another identity or width than asked."""
    found = differences(stored.identity, plain(identity))
    if found:
        shown = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
        raise StoreError(
            f"{path}: this store was poured by something else ({shown}); name another folder, or the encoder and "
            "settings that poured it"
        )
    if dim is not None and dim != stored.dim:
        raise StoreError(f"{path}: this store is {stored.dim} wide, the encoder {dim}; name another folder")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One committed file: its size in bytes and the digest of its content (BLAKE2b-128)."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Part:
    """One table's share of a shard."""

    rows: int
    vectors: FileRecord
    keys: FileRecord


@dataclass(frozen=True, slots=True)
class StoredFailure:
    """A sample that could not be poured, with the tables it is missing from.

    ``content`` is the digest of its bytes ("" where even those could not be read), so that it is tried again
    only when its bytes have changed.
    """

    key: str
    location: str
    reason: str
    content: str
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """What makes shard ``number`` exist, in all its tables at once."""

    number: int
    parts: Mapping[str, Part]
    failures: tuple[StoredFailure, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As ``commits/NNNNNN.json`` and the manifest hold it."""
        return {
            "number": self.number,
            "parts": {
                table: {
                    "rows": part.rows,
                    "vectors": {"size": part.vectors.size, "digest": part.vectors.digest},
                    "keys": {"size": part.keys.size, "digest": part.keys.digest},
                }
                for table, part in self.parts.items()
            },
            "failures": [
                {
                    "key": failure.key,
                    "location": failure.location,
                    "reason": failure.reason,
                    "content": failure.content,
                    "tables": list(failure.tables),
                }
                for failure in self.failures
            ],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Commit:
        """The inverse of ``to_json``."""
        return Commit(
            number=int(value["number"]),
            parts={
                table: Part(int(part["rows"]), FileRecord(**part["vectors"]), FileRecord(**part["keys"]))
                for table, part in value["parts"].items()
            },
            failures=tuple(
                StoredFailure(**{**failure, "tables": tuple(failure["tables"])}) for failure in value["failures"]
            ),
        )


@dataclass(frozen=True, slots=True)
class Header:
    """``store.json``. ``info`` holds facts that do not question identity: name, scale, bias, licence, class names."""

    identity: Mapping[str, Any]
    dim: int
    info: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As ``store.json`` holds it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": DTYPE,
            "dim": self.dim,
            "identity": dict(self.identity),
            "info": dict(self.info),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], where: Path) -> Header:
        """Raises ``StoreError`` where it is no header of this version."""
        if value.get("format") != FORMAT:
            raise StoreError(f"{where}: not a store of Clipette (its format is {value.get('format')!r})")
        if value.get("version") != VERSION:
            raise StoreError(
                f"{where}: written in version {value.get('version')!r} of the format, this Clipette reads {VERSION}; "
                "pour again or use the Clipette that wrote it"
            )
        return Header(identity=value["identity"], dim=int(value["dim"]), info=value["info"])


def shard_name(number: int) -> str:
    """``000042``: six digits sort as numbers do up to a million shards, and are read as numbers beyond."""
    return f"{number:06d}"


def vectors_path(root: Path, table: str, number: int) -> Path:
    """The ``.npy`` file of one shard of one table."""
    return root / table / f"{shard_name(number)}.npy"


def keys_path(root: Path, table: str, number: int) -> Path:
    """The ``.parquet`` file of one shard of one table."""
    return root / table / f"{shard_name(number)}.parquet"


def files_of(root: Path, commit: Commit) -> Iterator[tuple[Path, FileRecord]]:
    """Every file of one shard with what is known of it."""
    for table, part in commit.parts.items():
        yield vectors_path(root, table, commit.number), part.vectors
        yield keys_path(root, table, commit.number), part.keys


def commit_path(root: Path, number: int) -> Path:
    """The record that makes a shard exist."""
    return root / "commits" / f"{shard_name(number)}.json"


def read_json(path: Path, advice: str = "pour again into a new folder") -> Any:
    """Raises ``StoreError`` where the file is missing or is no JSON; ``advice``: what to do then."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; the folder is no store, or the store is damaged") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); {advice}") from error


def read_header(root: Path) -> Header | None:
    """The header, or None where there is no store at all."""
    path = root / "store.json"
    return Header.from_json(read_json(path), path) if path.exists() else None


def read_commits(root: Path) -> list[Commit]:
    """All committed shards in their order: what exists, whether or not the pour has finished."""
    folder = root / "commits"
    if not folder.is_dir():
        return []
    commits: list[Commit] = []
    for path in folder.glob("[0-9]*.json"):
        try:
            commits.append(Commit.from_json(read_json(path)))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a shard's record ({error!r}); the store is damaged") from error
    return sorted(commits, key=lambda commit: commit.number)


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, becomes a ``StoreError`` in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"{root}: no space left on the device; every committed shard is safe: "
                "free some space and run the same command again to go on"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StoreError(f"{root}: cannot be written ({error.strerror}); choose another folder") from error
        raise
