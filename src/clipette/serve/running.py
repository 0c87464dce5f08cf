"""The application on a socket: bound before anything slow is loaded, stopped without losing what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from clipette.errors import ConfigError
from clipette.serve.connections import patient_http
from clipette.serve.settings import ServeSettings


def bind(settings: ServeSettings) -> socket.socket:
    """A bound socket. Raises ``ConfigError`` where the port is taken or the host is not this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    host = settings.host.strip("[]")
    # asyncio sets TCP_NODELAY only on sockets that say that they are TCP's. Without it an answer's second packet waits
    # for the client's acknowledgement, which comes 40 ms later.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}, port {settings.port} ({error.strerror or error}); choose another --port (0: any)"
        ) from None
    bound.set_inheritable(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


def run(
    app: FastAPI, settings: ServeSettings, bound: socket.socket, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the address once requests are answered.

    On a signal: no new connections; requests under way have ``stop_timeout`` seconds; every accepted write is done
    before the process ends, however long it takes.
    """
    server = uvicorn.Server(uvicorn_config(app, settings))
    with contextlib.closing(bound):
        asyncio.run(_serve(server, bound, ready))


def uvicorn_config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """uvicorn as we want it: one process, HTTP/1.1 alone, no header that names the software."""
    return uvicorn.Config(
        app,
        # A factory in place of a class: uvicorn only ever calls it.
        http=cast("Any", patient_http(settings)),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout)),
    )


async def _serve(server: uvicorn.Server, bound: socket.socket, ready: Callable[[str], None] | None) -> None:
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started and ready is not None:
        ready(url_of(bound))
    await serving
