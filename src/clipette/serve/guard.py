"""The gate in front of every route: names, keys, caps, time limits, and an end to work nobody waits for any more.

It reads the whole body itself, so that a cap holds whatever a client states, and routes find it in memory.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any, TypeAlias

import anyio
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipette.serve.faults import HttpFault, Overloaded, fault_of, respond
from clipette.serve.metrics import Metrics
from clipette.serve.security import WRITE, Hosts, Keys, scope_of
from clipette.serve.settings import ServeSettings

Header: TypeAlias = "tuple[bytes, bytes]"
ITEMS = "/v1/items/"
# Answered however busy the server is.
PROBES = frozenset(("/healthz", "/readyz", "/metrics"))
# uvicorn bounds a head that comes in pieces, not one that comes at once.
MOST_HEADER_BYTES = 32_768
# A route may state its own; these hold elsewhere. Nothing here is for other sites, nor to be run.
DEFAULT_HEADERS: dict[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}


class Disconnected(Exception):
    """The client went away before its request was complete."""


class Guard:
    """ASGI middleware, see the file's first lines. Every refusal is JSON."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._keys = Keys(settings.read_keys, settings.write_keys)
        self._hosts = Hosts(settings)
        self._in_flight = 0
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        scope = _routable(scope)
        answer = _Answer(send)
        try:
            await self._admitted(scope, receive, answer)
        except Disconnected:
            self._metrics.abandoned("disconnect")
        except Exception as error:
            # A response that has begun cannot be changed into an error: the server then closes the connection.
            fault = fault_of(error)
            if not answer.started:
                await respond(fault)(scope, receive, answer)
        if answer.status:
            self._metrics.request(_route_of(scope), _method_of(scope), answer.status, time.monotonic() - begun)

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise HttpFault(431, "too_large", f"the headers exceed the limit of {MOST_HEADER_BYTES:,} bytes")
        self._hosts.check(headers.get("host"))
        needed = scope_of(scope["method"], scope["path"])
        self._keys.check(needed, headers.get("authorization"))
        length = self._stated_length(headers)
        probe = scope["path"] in PROBES
        if not probe:
            self._check_room()
        if self._held + length > self._settings.max_held_bytes:
            raise self._too_much_held()
        body = await self._read(receive)
        try:
            # Only now does it take a place: clients whose bodies come slowly must not keep others out. Probes take
            # none: a monitor that asks every second must not turn a user away.
            if not probe:
                self._check_room()
                self._count(+1)
            try:
                limit = self._settings.write_timeout if needed == WRITE else self._settings.timeout
                await self._run(scope, body, receive, answer, limit)
            finally:
                if not probe:
                    self._count(-1)
        finally:
            self._held -= len(body)

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)

    def _check_room(self) -> None:
        if self._in_flight >= self._settings.max_in_flight:
            self._metrics.refused("http", "in flight")
            raise Overloaded(f"{self._settings.max_in_flight} requests are being worked on", 1)

    def _too_much_held(self) -> Overloaded:
        self._metrics.refused("http", "bytes held")
        return Overloaded("too many bytes of other requests are being worked on", 1)

    def _stated_length(self, headers: Headers) -> int:
        stated = headers.get("content-length", "0")
        length = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else 0
        if length > self._settings.max_body_bytes:
            raise self._too_large()
        return length

    def _too_large(self) -> HttpFault:
        limit = self._settings.max_body_bytes
        return HttpFault(413, "too_large", f"the body exceeds the limit of {limit:,} bytes")

    async def _read(self, receive: Receive) -> bytes:
        """The whole body, counted in ``_held`` as it comes and from then on; what a client states is not believed."""
        body = bytearray()
        try:
            with anyio.fail_after(self._settings.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > self._settings.max_body_bytes:
                        raise self._too_large()
                    if self._held + len(piece) > self._settings.max_held_bytes:
                        raise self._too_much_held()
                    body += piece
                    self._held += len(piece)
                    more = message.get("more_body", False)
            return bytes(body)
        except BaseException as error:
            self._held -= len(body)
            if not isinstance(error, TimeoutError):
                raise
            self._metrics.abandoned("slow body")
            message_ = f"the body did not arrive within {self._settings.body_timeout:g} s"
            raise HttpFault(408, "timeout", message_, headers={"Connection": "close"}) from None

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer, limit: float) -> None:
        """The application, until it has answered, its time is up or the client has gone."""
        gone = anyio.Event()
        error: Exception | None = None
        in_time = False
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                gone.set()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            with anyio.move_on_after(limit):
                try:
                    await self._app(scope, _replay(body, gone), answer)
                except Exception as raised:  # a task group would wrap it
                    error = raised
                in_time = True
            group.cancel_scope.cancel()
        if gone.is_set() and not answer.complete:
            raise Disconnected
        if error is not None:
            raise error
        if not in_time:
            self._metrics.abandoned("timeout")
            raise HttpFault(504, "timeout", f"no answer within {limit:g} s")


class _Answer:
    """``send`` that notes how far the response is, and adds the headers that all responses have."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.complete = False

    @property
    def started(self) -> bool:
        return self.status != 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            stated: list[Header] = list(message.get("headers", []))
            names = {name.lower() for name, _ in stated}
            message["headers"] = stated + [(n, v) for n, v in DEFAULT_HEADERS.items() if n not in names]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True


def _replay(body: bytes, gone: anyio.Event) -> Receive:
    """``receive`` for the application: the body once, then silence until the client goes."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _routable(scope: Scope) -> Scope:
    """An item's path stays percent-encoded: a key may hold slashes (``%2F``), and its route decodes it once."""
    scope = dict(scope)
    if scope["path"].startswith(ITEMS):
        scope["path"] = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    return scope


def _route_of(scope: Scope) -> str:
    route = scope.get("route")
    return route.path if isinstance(route, APIRoute) else "unknown"


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def _method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"
