"""Progress on stderr, with rate and time left: bars where a person watches, now and then a line in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

T = TypeVar("T")
PATIENCE = 1.0  # seconds of work before a bar appears
LINES = 30.0  # seconds between two lines where no terminal is


def wanted() -> bool:
    """Whether bars are shown: CLIPETTE_PROGRESS=1 or 0 decides; else a terminal on stderr; first rank only."""
    if os.environ.get("RANK", "0") != "0":
        return False
    choice = os.environ.get("CLIPETTE_PROGRESS", "")
    return choice == "1" if choice in ("0", "1") else sys.stderr.isatty()


def track(
    iterable: Iterable[T],
    *,
    total: int | None = None,
    description: str,
    unit: str = "images",
    enabled: bool = True,
    size: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yield from ``iterable`` with a bar on stderr (see ``wanted``) once a second has passed; without a terminal with a
    line every half minute. CLIPETTE_PROGRESS=0 silences both.

    ``total`` and the rate are in ``unit``; ``size`` says how many units one item is (a batch), 1 if not given.
    Bars of nested loops share one display.
    """
    if total is None and size is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not (enabled and wanted()):
        silent = os.environ.get("RANK", "0") != "0" or os.environ.get("CLIPETTE_PROGRESS") == "0"
        if enabled and not silent:
            yield from _in_lines(iterable, total, description, unit, size)
        else:
            yield from iterable
        return
    begun, done = time.monotonic(), 0
    task: TaskID | None = None
    try:
        for item in iterable:
            yield item
            done += 1 if size is None else size(item)
            if task is None and time.monotonic() - begun >= PATIENCE:
                task = _DISPLAY.add(description, total, unit, begun)
            if task is not None:
                _DISPLAY.set(task, done)
    finally:
        if task is not None:
            _DISPLAY.remove(task)


def _in_lines(
    iterable: Iterable[T], total: int | None, description: str, unit: str, size: Callable[[T], int] | None
) -> Iterator[T]:
    begun = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1 if size is None else size(item)
        now = time.monotonic()
        if now - last >= LINES:
            last = now
            left = "" if total is None else f", {(total - done) * (now - begun) / done:,.0f} s left"
            of = "" if total is None else f"/{total:,}"
            print(f"{description}: {done:,}{of} {unit}, {_per_second(done, now - begun, unit)}{left}", file=sys.stderr)


def _rate(task: Task) -> str:
    if not task.elapsed or not task.completed:
        return ""
    return _per_second(task.completed, task.elapsed, task.fields["unit"])


def _per_second(done: float, seconds: float, unit: str) -> str:
    rate = done / seconds
    if rate < 0.1:
        return f"{1 / rate:,.0f} s each" if rate else ""
    return f"{rate:,.1f} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"


class _Display:
    """One rich display for all bars alive: starts with the first, stops with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._alive = 0

    def add(self, description: str, total: int | None, unit: str, begun: float) -> TaskID:
        with self._lock:
            if self._progress is None:
                self._progress = _new_progress()
                self._progress.start()
            self._alive += 1
            task = self._progress.add_task(description, total=total, unit=unit, start=False)
            self._progress.start_task(task)
            # The rate counts from the first item, not from when the bar appeared.
            started = self._progress.tasks[-1]
            started.start_time = self._progress.get_time() - (time.monotonic() - begun)
            return task

    def set(self, task: TaskID, done: int) -> None:
        if self._progress is not None:
            self._progress.update(task, completed=done)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            self._alive -= 1
            if self._progress is not None and self._alive == 0:
                self._progress.stop()
                self._progress = None


_DISPLAY = _Display()


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task))

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True),
        refresh_per_second=4,
    )
