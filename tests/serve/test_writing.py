from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from clipette.errors import ConfigError
from clipette.index.clicks import Click, read_clicks
from clipette.serve.clicks import BoundedClicks
from clipette.serve.faults import Overloaded, Stopping
from clipette.serve.writing import Writer


def test_writes_run_one_after_another_and_answer() -> None:
    writer, running, most, done = Writer(100, 100), [0], [0], []

    def write(number: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        done.append(number)
        running[0] -= 1
        return number

    async def main() -> list[int]:
        return await asyncio.gather(*(writer.run(lambda n=n: write(n)) for n in range(20)))  # type: ignore[misc]

    assert asyncio.run(main()) == list(range(20))
    assert done == list(range(20))
    assert most == [1]
    writer.close()


def test_a_full_queue_and_a_stopped_writer_refuse() -> None:
    writer, gate, done = Writer(2, 100), threading.Event(), []

    async def main() -> None:
        def write() -> None:
            gate.wait(10)
            done.append(1)

        first, second = asyncio.create_task(writer.run(write)), asyncio.create_task(writer.run(write))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await writer.run(write)
        closing = asyncio.create_task(asyncio.to_thread(writer.close))
        while not writer._closed:
            await asyncio.sleep(0.01)
        with pytest.raises(Stopping):
            await writer.run(write)
        gate.set()
        await asyncio.gather(first, second, closing)

    asyncio.run(main())
    assert done == [1, 1]
    assert writer.pending == 0


def test_uploads_that_wait_are_bounded_in_bytes_though_their_clients_have_gone() -> None:
    writer, gate = Writer(100, 10), threading.Event()

    async def main() -> None:
        waiting = [asyncio.create_task(writer.run(gate.wait, held)) for held in (11, 0)]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        with pytest.raises(Overloaded):
            await writer.run(lambda: None, 1)
        gate.set()
        while writer.pending:
            await asyncio.sleep(0.01)
        assert await writer.run(lambda: 7, 5) == 7

    asyncio.run(main())
    writer.close()


def test_an_abandoned_write_is_done_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    writer, gate, done = Writer(4, 100), threading.Event(), []

    async def main() -> None:
        def write(number: int) -> None:
            gate.wait(10)
            done.append(number)
            if number == 2:
                raise ValueError("no room")

        tasks = [asyncio.create_task(writer.run(lambda n=n: write(n))) for n in range(3)]  # type: ignore[misc]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.set()
        await asyncio.to_thread(writer.close)

    asyncio.run(main())
    assert done == [0, 1, 2]
    assert "no room" in caplog.text


# ---------------------------------------------------------------- clicks


def test_clicks_are_kept_for_their_owner_alone_within_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "clicks.jsonl"
    log = BoundedClicks(path, 600)
    assert log.append(Click({"text": "zwei\nZeilen"}, "a", 1))
    assert path.stat().st_mode & 0o077 == 0
    written = 1
    while log.append(Click({"text": "b"}, "a" * 20, 2)):
        written += 1
    read = read_clicks(path).clicks
    assert len(read) == written > 2
    assert read[0].query["text"] == "zwei\nZeilen"
    assert path.stat().st_size < 900
    # Continued by the next server, and begun anew where someone moved the file away.
    assert BoundedClicks(path, 10_000).append(Click({}, "b", 1))
    assert len(read_clicks(path).clicks) == written + 1
    path.unlink()
    assert log.append(Click({}, "c", 1))


def test_a_place_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="clicks cannot be logged"):
        BoundedClicks(tmp_path / "file" / "clicks.jsonl", 100)
