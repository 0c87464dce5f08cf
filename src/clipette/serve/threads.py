"""Work in threads for requests that may be abandoned: what it waits for is cancelled with the request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Executor, Future
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


class Errand:
    """One request's work in a thread: knows what the thread waits for, so that the wait can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: Future[object] | None = None
        self._abandoned = False

    def wait(self, future: Future[T]) -> T:
        """The future's result. Raises ``CancelledError`` when the request is abandoned meanwhile."""
        with self._lock:
            if self._abandoned:
                future.cancel()
                raise CancelledError
            self._awaited = future  # type: ignore[assignment]  # only cancelled, whatever it holds
        try:
            return future.result()
        finally:
            with self._lock:
                self._awaited = None

    def abandon(self) -> None:
        """End the wait under way, and any later one."""
        with self._lock:
            self._abandoned = True
            if self._awaited is not None:
                self._awaited.cancel()


_CURRENT: ContextVar[Errand | None] = ContextVar("errand", default=None)


def wait(future: Future[T]) -> T:
    """The future's result, for the request that this thread works for. Raises ``CancelledError`` if abandoned."""
    errand = _CURRENT.get()
    return future.result() if errand is None else errand.wait(future)


async def run_errand(pool: Executor, function: Callable[[], T]) -> T:
    """``function()`` in a thread of ``pool``. When the caller is cancelled, so is what the thread waits for."""
    errand = Errand()

    def call() -> T:
        token = _CURRENT.set(errand)
        try:
            return function()
        finally:
            _CURRENT.reset(token)

    try:
        return await asyncio.get_running_loop().run_in_executor(pool, call)
    except asyncio.CancelledError:
        errand.abandon()
        raise


async def all_or_none(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order. When one fails, or the caller is cancelled, so are the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # `gather` alone would let them go on: a request that is refused would go on costing.
        for task in tasks:
            task.cancel()
