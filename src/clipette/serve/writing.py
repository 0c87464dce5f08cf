"""Writes one after another in a thread of their own: once accepted they run to their end, whoever is still waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from clipette.serve.faults import Overloaded, Stopping

log = logging.getLogger(__name__)
T = TypeVar("T")


class Writer:
    """A queue of at most ``most`` writes of ``most_bytes`` together (a single one may have more).

    A client that goes away, a time limit and a stop of the server do not undo a write.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._pending = 0
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clipette-write")

    @property
    def pending(self) -> int:
        """Writes accepted and not done."""
        return self._pending

    async def run(self, write: Callable[[], T], held: int = 0) -> T:
        """``write()``, which holds so many bytes, in its turn.

        Raises ``Overloaded`` or ``Stopping`` if not accepted, else what ``write`` does.
        """
        with self._lock:
            if self._closed:
                raise Stopping
            if self._pending >= self._most or (self._pending and self._bytes + held > self._most_bytes):
                raise Overloaded(f"{self._pending} writes are waiting", self._pending)
            self._pending += 1
            self._bytes += held
            future = self._pool.submit(write)
        future.add_done_callback(lambda done: self._done(done, held))
        return await asyncio.shield(asyncio.wrap_future(future))

    def _done(self, future: Future[Any], held: int) -> None:
        with self._lock:
            self._pending -= 1
            self._bytes -= held
        error = future.exception()
        if error is not None:
            # Told to the client too, if it still waits: here so that a failure is never silent.
            log.warning("a write failed: %s", error)

    def close(self) -> None:
        """Accept no more, and return when every accepted write is done. Safe to call twice."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True)
