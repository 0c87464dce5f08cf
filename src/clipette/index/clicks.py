"""Clicks in a local file, one JSON object a line: only where a path is given, and never sent anywhere."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clipette.errors import DataError
from clipette.io import fsync_folder

VERSION = 1
# What a user can do with a hit; False: it was not what was wanted.
ACTIONS: Mapping[str, bool] = {"open": True, "more_like_this": True, "like": True, "dislike": False}


@dataclass(frozen=True, slots=True)
class Click:
    """What a user did with one hit.

    ``query``: ``Query.describe()``, so texts and keys but never pixels. ``rank`` counts from 1. ``shown``: the keys of
    the list it was in, best first, where known. ``generation``: of the collection. ``time``: UTC, ISO 8601.
    """

    query: Mapping[str, Any]
    key: str
    rank: int
    action: str = "open"
    shown: tuple[str, ...] = ()
    generation: int | None = None
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise DataError(f"click: no action {self.action!r}; there are {', '.join(ACTIONS)}")
        if self.rank < 1 or not self.key:
            raise DataError(
                f"click: rank {self.rank} of key {self.key!r}; ranks count from 1, and the key is not empty"
            )


class ClickLog:
    """Appends clicks to a file that its owner alone can read. Safe from several threads and processes.

    A click is one ``write`` in append mode and is on disk when ``append`` returns. A line cut by a crash stays by
    itself: the next click starts a new line, and readers skip and count the cut one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    def append(self, click: Click) -> None:
        """Write one click. Raises ``DataError`` where the file cannot be written."""
        record = {"v": VERSION, **{name: getattr(click, name) for name in Click.__slots__}}
        line = json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            with self._lock:
                self._write(line)
        except OSError as error:
            raise DataError(f"{self.path}: the click log cannot be written ({error.strerror})") from error

    def _write(self, line: bytes) -> None:
        fresh = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + line if cut else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            fsync_folder(self.path.parent)


@dataclass(frozen=True, slots=True)
class Clicks:
    """A click log, read. ``skipped``: the numbers of lines that hold no click (cut by a crash, or of others)."""

    clicks: tuple[Click, ...]
    skipped: tuple[int, ...] = ()


def read_clicks(path: str | Path) -> Clicks:
    """Every click of a log, in order. Raises ``DataError`` where there is no such file."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: no click log that can be read ({error.strerror})") from error
    clicks, skipped = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            clicks.append(_click(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, DataError):
            skipped.append(number)
    return Clicks(tuple(clicks), tuple(skipped))


def _click(record: Any) -> Click:
    if record["v"] != VERSION:
        raise ValueError(f"version {record['v']}")
    generation = record["generation"]
    return Click(
        query=dict(record["query"]),
        key=str(record["key"]),
        rank=int(record["rank"]),
        action=str(record["action"]),
        shown=tuple(map(str, record["shown"])),
        generation=None if generation is None else int(generation),
        time=str(record["time"]),
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """One distinct query with the keys that users chose for it, and the best rank any of them was clicked at."""

    query: Mapping[str, Any]
    chosen: tuple[str, ...]
    best_rank: int
    clicks: int


def judged(clicks: Sequence[Click]) -> list[Judged]:
    """Clicks gathered by query, in order of first appearance.

    A key is chosen where the last that was done with it for that query was no dislike. Queries with pictures or vectors
    cannot be asked again, and are left out.
    """
    gathered: dict[str, list[Click]] = {}
    for click in clicks:
        if click.query.get("image") or click.query.get("vector"):
            continue
        gathered.setdefault(json.dumps(click.query, sort_keys=True), []).append(click)
    return list(_judge(gathered.values()))


def _judge(gathered: Iterable[list[Click]]) -> Iterator[Judged]:
    for clicks in gathered:
        last = {click.key: ACTIONS[click.action] for click in clicks}
        chosen = tuple(key for key, wanted in last.items() if wanted)
        if chosen:
            best = min(click.rank for click in clicks if click.key in chosen)
            yield Judged(clicks[0].query, chosen, best, len(clicks))
