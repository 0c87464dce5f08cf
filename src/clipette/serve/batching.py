"""Dynamic batching: items of many requests in one call of the model, behind a queue bounded in size and in wait."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from clipette.serve.faults import Overloaded, Stopping
from clipette.types import Floats

log = logging.getLogger(__name__)
T = TypeVar("T")
# Weight of the newest batch in the running mean of a batch's seconds.
NEWEST = 0.2


class BatchWatcher(Protocol):
    """Told of every call of the model, and of every request that was turned away."""

    def batch(self, queue: str, items: int, seconds: float) -> None: ...

    def refused(self, queue: str, why: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    """One request's items; ``done`` rows are in ``rows`` already."""

    items: Sequence[T]
    future: Future[Floats]
    since: float
    taken: int = 0
    rows: list[Floats] = field(default_factory=list)
    done: int = 0


class Batcher(Generic[T]):
    """One thread that calls ``run`` with up to ``size`` items, of as many requests as have them.

    A lone request is run at once. While a batch runs, others gather and form the next one; when there have been others
    lately, a batch that could be larger waits for them, at most ``wait`` seconds. Requests share a batch fairly: a
    large one is cut over several and holds up no small one. A request whose future was cancelled is dropped before it
    costs anything more. An error of a batch of several requests is told only to the one that causes it.

    Args:
        run: items to rows [N, D], in order. Called by one thread only.
        size: items of one call, at most.
        wait: seconds, see above.
        queue: items that may wait; a request that finds no room is refused, unless nothing else waits.
        patience: seconds; a request that would probably wait longer is refused, one that did is too: accepted requests
            answer in bounded time, whatever is asked.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Floats],
        *,
        name: str,
        size: int,
        wait: float,
        queue: int,
        patience: float,
        watcher: BatchWatcher | None = None,
    ) -> None:
        self.name, self.size, self.wait, self.queue, self.patience = name, size, wait, queue, patience
        self._run, self._watcher = run, watcher
        self._entries: deque[_Entry[T]] = deque()
        self._waiting = 0
        self._closed = False
        self._last = 1
        self._seconds = 0.0
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"clipette-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def submit(self, items: Sequence[T]) -> Future[Floats]:
        """The future rows [N, D] of ``items``; cancel it to abandon them. Raises ``Overloaded``, ``Stopping``."""
        future: Future[Floats] = Future()
        if not items:
            future.set_result(np.zeros((0, 0), np.float32))
            return future
        with self._condition:
            if self._closed:
                raise Stopping
            expected = self._expected_wait()
            if self._waiting and self._waiting + len(items) > self.queue:
                self._refuse("queue full")
                raise Overloaded(f"the queue of the {self.name} encoder is full", expected)
            if expected > self.patience:
                self._refuse("long wait")
                raise Overloaded(f"the {self.name} encoder is busy", expected)
            entry = _Entry(items, future, time.monotonic())
            self._entries.append(entry)
            self._waiting += len(items)
            self._condition.notify()
        # Its room in the queue is free at once, not when the model is.
        future.add_done_callback(lambda ended: self._forget(entry) if ended.cancelled() else None)
        return future

    def close(self) -> None:
        """Finish what was accepted, then stop. Safe to call twice."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _expected_wait(self) -> float:
        """Seconds until what is asked for now would begin: whole batches of others' turns, each as long as lately."""
        return len(self._entries) // self.size * self._seconds

    def _forget(self, entry: _Entry[T]) -> None:
        with self._condition:
            if entry in self._entries:
                self._entries.remove(entry)
                self._waiting -= len(entry.items) - entry.taken

    def _refuse(self, why: str) -> None:
        if self._watcher is not None:
            self._watcher.refused(self.name, why)

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._entries and not self._closed:
                    self._condition.wait()
                if not self._entries:
                    return
                self._gather()
                parts = self._take()
            if parts:
                self._answer(parts)

    def _gather(self) -> None:
        """Let a batch fill up while requests like those of the last batch are about to come."""
        target = min(self.size, self._last)
        until = self._entries[0].since + self.wait
        while self._waiting < target and not self._closed:
            remaining = until - time.monotonic()
            if remaining <= 0 or not self._condition.wait(remaining):
                return

    def _take(self) -> list[tuple[_Entry[T], Sequence[T]]]:
        """The next batch: (request, its items in this batch)."""
        self._drop_ended()
        # The requests whose turn it is, first an equal share each, then what room is left in their order.
        turns = [self._entries.popleft() for _ in range(min(self.size, len(self._entries)))]
        counts = [min(len(entry.items) - entry.taken, self.size // len(turns)) for entry in turns]
        room = self.size - sum(counts)
        parts: list[tuple[_Entry[T], Sequence[T]]] = []
        for entry, count in zip(turns, counts, strict=True):
            more = min(room, len(entry.items) - entry.taken - count)
            room -= more
            piece = entry.items[entry.taken : entry.taken + count + more]
            parts.append((entry, piece))
            entry.taken += len(piece)
            self._waiting -= len(piece)
            if entry.taken < len(entry.items):
                self._entries.append(entry)
        return parts

    def _drop_ended(self) -> None:
        """Failed and overdue requests leave the queue."""
        now = time.monotonic()
        kept: deque[_Entry[T]] = deque()
        for entry in self._entries:
            if not entry.future.done():
                if entry.taken or now - entry.since <= self.patience:
                    kept.append(entry)
                    continue
                self._refuse("long wait")
                _fail(entry.future, Overloaded(f"the {self.name} encoder is busy", self.patience))
            self._waiting -= len(entry.items) - entry.taken
        self._entries = kept

    def _answer(self, parts: Sequence[tuple[_Entry[T], Sequence[T]]]) -> None:
        items = [item for _, piece in parts for item in piece]
        begun = time.monotonic()
        try:
            rows = self._run(items)
            if len(rows) != len(items):
                raise RuntimeError(f"the {self.name} encoder gave {len(rows)} vectors for {len(items)} items")
        except Exception as error:
            if len(parts) == 1:
                _fail(parts[0][0].future, error)
            else:
                for part in parts:
                    self._answer([part])
            return
        seconds = time.monotonic() - begun
        self._last = len(items)
        self._seconds = seconds if not self._seconds else (1 - NEWEST) * self._seconds + NEWEST * seconds
        if self._watcher is not None:
            self._watcher.batch(self.name, len(items), seconds)
        start = 0
        for entry, piece in parts:
            self._deliver(entry, rows[start : start + len(piece)])
            start += len(piece)

    def _deliver(self, entry: _Entry[T], rows: Floats) -> None:
        entry.rows.append(rows)
        entry.done += len(rows)
        if entry.done == len(entry.items):
            whole = entry.rows[0] if len(entry.rows) == 1 else np.concatenate(entry.rows)
            # Abandoned in this very moment: nobody waits any more.
            with contextlib.suppress(InvalidStateError):
                entry.future.set_result(whole)


def _fail(future: Future[Floats], error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
