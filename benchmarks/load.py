"""Load on an HTTP server with little work of its own: raw requests on kept connections, closed and open loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Connections of an open loop: more requests than this under way are told apart by nobody.
MOST_CONNECTIONS = 400


@dataclass
class Load:
    """What a run of requests met. ``latencies`` (seconds) are of requests answered with 200."""

    seconds: float
    items: int = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Items a second, latency in ms, and how often each status came."""
        found: dict[str, Any] = {
            "items_s": round(self.items / self.seconds, 2),
            "requests": dict(sorted(self.statuses.items())),
        }
        if self.latencies:
            p50, p99 = np.percentile(np.array(self.latencies) * 1000, [50, 99])
            found |= {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}
        return found


def post(path: str, body: Any) -> bytes:
    """A whole POST request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def cycled(bodies: Sequence[bytes]) -> Iterator[bytes]:
    """Requests without end."""
    return itertools.cycle(bodies)


class Connection:
    """One kept connection; opened anew when the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises ``OSError`` or ``EOFError`` where the connection broke."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(*self._address, limit=2**22)
        assert self._reader is not None
        try:
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            lower = head.lower()
            place = lower.index(b"content-length: ") + 16
            body = await self._reader.readexactly(int(lower[place : lower.index(b"\r\n", place)]))
        except BaseException:
            await self.close()
            raise
        if b"connection: close" in lower:
            await self.close()
        return status, body

    async def close(self) -> None:
        """Let go of it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def closed_loop(
    host: str, port: int, requests: Iterator[bytes], *, clients: int, seconds: float, items: int = 1, warm: float = 0.5
) -> Load:
    """``clients`` that each send their next request when the last is answered; the first ``warm`` seconds are left out.

    ``items``: in each request.
    """
    load = Load(seconds)
    begun = time.perf_counter() + warm

    async def client() -> None:
        connection = Connection(host, port)
        while (sent := time.perf_counter()) < begun + seconds:
            await _one(connection, next(requests), load, sent, begun, items)
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = max(seconds, time.perf_counter() - begun)
    return load


async def open_loop(
    host: str, port: int, requests: Iterator[bytes], *, rate: float, seconds: float, items: int = 1, seed: int = 0
) -> Load:
    """Requests at random times (Poisson) at ``rate`` a second, whether or not the server keeps up.

    Latency counts from when a request was due, so that waiting in the client is not hidden.
    """
    load = Load(seconds)
    drawn = random.Random(seed)
    free: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()
    begun = time.perf_counter()
    due = begun

    async def one(due: float) -> None:
        connection = free.pop() if free else Connection(host, port)
        await _one(connection, next(requests), load, due, begun, items)
        free.append(connection)

    while (due := due + drawn.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(under_way) >= MOST_CONNECTIONS:
            load.statuses["client full"] += 1
            continue
        task = asyncio.create_task(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    load.seconds = max(seconds, time.perf_counter() - begun)
    for connection in free:
        await connection.close()
    return load


async def _one(connection: Connection, request: bytes, load: Load, since: float, begun: float, items: int) -> None:
    status = "broken"
    with suppress(OSError, EOFError):
        status = str((await connection.ask(request))[0])
    if since < begun:
        return
    load.statuses[status] += 1
    if status == "200":
        load.items += items
        load.latencies.append(time.perf_counter() - since)


async def ask_all(host: str, port: int, requests: Sequence[bytes], *, clients: int = 4) -> list[Any]:
    """The JSON answers, in order. Raises ``RuntimeError`` where one is not 200."""
    answers: list[Any] = [None] * len(requests)
    waiting = iter(range(len(requests)))

    async def client() -> None:
        connection = Connection(host, port)
        for place in waiting:
            status, body = await connection.ask(requests[place])
            if status != 200:
                raise RuntimeError(f"request {place}: {status} {body[:200]!r}")
            answers[place] = json.loads(body)
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


Sampler = Callable[[], float]


async def sampled(every: float, read: Sampler, into: list[float]) -> None:
    """Read a gauge again and again until cancelled."""
    while True:
        into.append(read())
        await asyncio.sleep(every)
