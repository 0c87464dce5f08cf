"""A Milvus server on loopback, from the package ``milvus``, for as long as a test session lasts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STARTED = 60.0  # seconds; a quiet machine needs ten
# In a process of its own: the package starts the server as its child and has no way to say why it failed.
PROGRAM = """
import os, sys
from milvus import MilvusServer
server = MilvusServer(wait_for_started=False)
server.set_base_dir(sys.argv[1])
server.start()
server.wait_started(timeout=float(sys.argv[2]) * 1000)
with open(sys.argv[1] + "/port.tmp", "w") as file:
    file.write(str(server.listen_port))
os.replace(sys.argv[1] + "/port.tmp", sys.argv[1] + "/port")
sys.stdin.read()
server.stop()
"""


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Its address, as ``--store`` takes it. Raises ``OSError`` saying why it cannot run here."""
    try:
        import milvus  # noqa: F401
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise OSError(f"the package {error.name!r} is not installed") from None
    log = folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(STARTED)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that the server it starts can be ended with it
        )
    try:
        yield f"milvus://127.0.0.1:{_port(process, folder / 'port', log)}"
    finally:
        _end(process)


def _port(process: subprocess.Popen[bytes], told: Path, log: Path) -> int:
    end = time.monotonic() + STARTED
    while time.monotonic() < end and process.poll() is None:
        if told.exists():
            return int(told.read_text())
        time.sleep(0.1)
    why = "ended" if process.poll() is not None else f"did not start in {STARTED:.0f} s"
    raise OSError(f"the server {why}: {log.read_text(errors='replace')[-300:].strip()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    # The group is this process' own: nobody else is in it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
