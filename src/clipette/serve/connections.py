"""Connections with an end to patience: uvicorn itself waits for ever for a request's head, and accepts any number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from clipette.serve.settings import ServeSettings

TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: 89\r\n\r\n"
    b'{"error": {"message": "too many open connections", "type": "overloaded", "param": null}}\n'
)


class _Count:
    """Connections that are open on one server, and bytes of answers that their clients have not taken yet."""

    open = 0
    unsent = 0


class PatientConnection:
    """An ``asyncio.Protocol`` around uvicorn's: what arrives goes to it, unless nothing useful happens for too long.

    Cut off after about ``seconds``: a head that is not complete (while no request is being answered, from its first
    byte; the first one from the connection on), a body that goes on after its answer was given, a client that takes
    nothing of what it asked for, and a connection that was closed and cannot be flushed. Cut off at once: whoever
    would make it more than ``most_unsent`` bytes that all slow clients together leave lying here. A body under way is
    the guard's matter, a silent connection between requests uvicorn's.
    """

    def __init__(self, inner: H11Protocol, count: _Count, *, seconds: float, most: int, most_unsent: int) -> None:
        self._inner, self._count, self._seconds, self._most = inner, count, seconds, most
        self._most_unsent = most_unsent
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._refused = False
        # Since when, in the loop's time, for what could last for ever.
        self._head_since: float | None = None
        self._stalled_since: float | None = None
        self._unsent = 0
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Of ``asyncio.Protocol``."""
        self._transport = transport
        self._count.open += 1
        self._head_since = self._loop.time()
        self._look()
        if self._count.open > self._most:
            self._refused = True
            transport.write(TOO_MANY)
            transport.close()
        else:
            self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Of ``asyncio.Protocol``."""
        if self._refused:
            return
        self._inner.data_received(data)
        if self._answering():
            self._head_since = None
        elif self._head_since is None:
            self._head_since = self._loop.time()

    def connection_lost(self, error: Exception | None) -> None:
        """Of ``asyncio.Protocol``."""
        self._count.open -= 1
        self._note_unsent(0)
        if self._beat is not None:
            self._beat.cancel()
        if not self._refused:
            self._inner.connection_lost(error)

    def eof_received(self) -> bool | None:
        """Of ``asyncio.Protocol``."""
        if not self._refused:
            self._inner.eof_received()
        return None

    def pause_writing(self) -> None:
        """Of ``asyncio.Protocol``."""
        assert self._transport is not None
        self._stalled_since = self._loop.time()
        self._note_unsent(self._transport.get_write_buffer_size())
        if self._count.unsent > self._most_unsent:
            # Soon, not now: the transport is in the middle of a write.
            self._loop.call_soon(self._transport.abort)
        if not self._refused:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Of ``asyncio.Protocol``."""
        self._stalled_since = None
        self._note_unsent(0)
        if not self._refused:
            self._inner.resume_writing()

    def _answering(self) -> bool:
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _note_unsent(self, unsent: int) -> None:
        self._count.unsent += unsent - self._unsent
        self._unsent = unsent

    def _look(self) -> None:
        """Twice in ``seconds``: one timer a connection, whatever its requests do."""
        assert self._transport is not None
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if self._transport.is_closing() and self._closing_since is None:
            self._closing_since = now
        if unsent < self._unsent:
            # Slowly, but it takes what was sent: patience begins anew.
            self._stalled_since = now if self._stalled_since is not None else None
            self._closing_since = now if self._closing_since is not None else None
        self._note_unsent(unsent)
        since = [self._stalled_since, self._closing_since, None if self._answering() else self._head_since]
        if any(begun is not None and now - begun >= self._seconds for begun in since):
            # Not close(): a client that reads nothing would keep the connection.
            self._transport.abort()
        else:
            self._beat = self._loop.call_later(self._seconds / 2, self._look)


def patient_http(settings: ServeSettings) -> Callable[..., Any]:
    """What ``uvicorn.Config(http=...)`` makes its protocols with."""
    count = _Count()

    def make(**given: Any) -> PatientConnection:
        inner = H11Protocol(**given)
        return PatientConnection(
            inner,
            count,
            seconds=settings.header_timeout,
            most=settings.max_connections,
            most_unsent=settings.max_held_bytes,
        )

    return make
