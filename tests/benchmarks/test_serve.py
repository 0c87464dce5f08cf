from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project / "benchmarks"))


async def against(answer: Callable[[int], Awaitable[int]], work: Callable[[str, int], Awaitable[Any]]) -> Any:
    """``work(host, port)`` while a server answers its n-th request with the status ``answer(n)``."""
    count, writers = 0, []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        writers.append(writer)
        while head := await reader.readline():
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode().partition(":")
                length = int(value) if name == "content-length" else length
            body = await reader.readexactly(length)
            assert head.startswith(b"POST ")
            count += 1
            status = await answer(count)
            content = json.dumps({"echo": json.loads(body)}).encode()
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        return await work(host, port)
    finally:
        await closed(server, writers)


async def closed(server: asyncio.Server, writers: Sequence[asyncio.StreamWriter]) -> None:
    server.close()
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def test_closed_loop_counts_what_was_answered_and_what_was_refused() -> None:
    import load

    async def answer(number: int) -> int:
        await asyncio.sleep(0.02)
        return 429 if number % 4 == 0 else 200

    async def work(host: str, port: int) -> Any:
        bodies = load.cycled([load.post("/x", 1)])
        return await load.closed_loop(host, port, bodies, clients=3, seconds=0.6, items=5, warm=0.1)

    found = asyncio.run(against(answer, work))
    answered, refused = found.statuses["200"], found.statuses["429"]
    assert set(found.statuses) == {"200", "429"}
    assert answered == pytest.approx(3 * refused, abs=4)
    assert found.items == 5 * answered
    assert len(found.latencies) == answered
    summary = found.summary()
    assert summary["p50_ms"] >= 19
    assert summary["items_s"] == pytest.approx(found.items / found.seconds, abs=0.01)


def test_open_loop_does_not_wait_for_the_server_and_counts_from_when_a_request_was_due() -> None:
    import load

    async def work(host: str, port: int) -> Any:
        bodies = load.cycled([load.post("/x", 1)])
        return await load.open_loop(host, port, bodies, rate=50, seconds=1.0)

    stalled = asyncio.Event()

    async def answer(number: int) -> int:
        if number == 1:
            await asyncio.sleep(0.5)
            stalled.set()
        await stalled.wait()
        return 200

    found = asyncio.run(against(answer, work))
    assert 25 <= found.statuses["200"] <= 80
    # All that were due in the first half second waited for its end.
    assert sum(latency > 0.1 for latency in found.latencies) >= 8
    assert max(found.latencies) >= 0.45


def test_a_broken_connection_is_counted_and_opened_anew() -> None:
    import load

    async def main() -> Any:
        writers = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.01)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        bodies = load.cycled([load.post("/x", 1)])
        try:
            return await load.closed_loop(host, port, bodies, clients=1, seconds=0.3, warm=0)
        finally:
            await closed(server, writers)

    found = asyncio.run(main())
    assert set(found.statuses) == {"broken"}
    assert found.statuses["broken"] > 1
    assert "p50_ms" not in found.summary()


def test_all_answers_come_in_order() -> None:
    import load

    async def answer(number: int) -> int:
        await asyncio.sleep(0.01 * (number % 3))
        return 200

    async def work(host: str, port: int) -> Any:
        return await load.ask_all(host, port, [load.post("/x", n) for n in range(20)])

    assert asyncio.run(against(answer, work)) == [{"echo": n} for n in range(20)]


@pytest.mark.bench
def test_every_arm_runs(project: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(project / "src"),
        "CLIPETTE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "benchmarks/serve.py", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for kind in ("text", "image"):
        for arm in ("one_by_one", "unbatched", "idle", "limit", "bulk", "half"):
            assert summary[kind][arm]["items_s"] > 0
            assert set(summary[kind][arm]["requests"]) <= {"200", "429"}
        assert summary[kind]["overload"]["requests"]["200"] > 0
        assert summary[kind]["overload"]["p99_over_half"] > 0
        assert set(summary[kind]["overload"]["requests"]) <= {"200", "429", "client full"}
    assert summary["exactness"]["largest_difference"] == 0
    assert summary["memory"]["rss_end_mib"] > 0
    assert np.isfinite(summary["memory"]["growth_mib_per_minute"])
