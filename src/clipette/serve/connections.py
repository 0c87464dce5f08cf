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
    """Connections that are open on one server."""

    open = 0


class PatientConnection:
    """An ``asyncio.Protocol`` around uvicorn's: what arrives goes to it, unless nothing useful arrives for too long.

    While no request is being answered, a head must be complete ``seconds`` after its first byte (the first head: after
    the connection was made); so must the rest of a body whose answer was given before it was read. A body under way is
    the guard's matter, a silent connection between requests uvicorn's.
    """

    def __init__(self, inner: H11Protocol, count: _Count, *, seconds: float, most: int) -> None:
        self._inner, self._count, self._seconds, self._most = inner, count, seconds, most
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Of ``asyncio.Protocol``."""
        self._transport = transport
        self._count.open += 1
        if self._count.open > self._most:
            self._refused = True
            transport.write(TOO_MANY)
            transport.close()
            return
        self._inner.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Of ``asyncio.Protocol``."""
        if self._refused:
            return
        self._inner.data_received(data)
        if self._answering():
            self._waiting_since = None
        elif self._waiting_since is None:
            self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        """Of ``asyncio.Protocol``."""
        self._count.open -= 1
        if self._timer is not None:
            self._timer.cancel()
        if not self._refused:
            self._inner.connection_lost(error)

    def eof_received(self) -> bool | None:
        """Of ``asyncio.Protocol``."""
        if not self._refused:
            self._inner.eof_received()
        return None

    def pause_writing(self) -> None:
        """Of ``asyncio.Protocol``."""
        if not self._refused:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Of ``asyncio.Protocol``."""
        if not self._refused:
            self._inner.resume_writing()

    def _answering(self) -> bool:
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        self._waiting_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiting_since is None or self._transport is None or self._answering():
            return
        remaining = self._waiting_since + self._seconds - self._loop.time()
        if remaining > 0:
            self._timer = self._loop.call_later(remaining, self._look)
        else:
            # Not close(): a client that reads nothing either would keep the connection.
            self._transport.abort()


def patient_http(settings: ServeSettings) -> Callable[..., Any]:
    """What ``uvicorn.Config(http=...)`` makes its protocols with."""
    count = _Count()

    def make(**given: Any) -> PatientConnection:
        inner = H11Protocol(**given)
        return PatientConnection(inner, count, seconds=settings.header_timeout, most=settings.max_connections)

    return make
