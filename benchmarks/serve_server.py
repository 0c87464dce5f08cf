"""``clipette serve`` in a process of its own, and the requests that its benchmarks send."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipette.data.dataset import Dataset
from clipette.types import Sample
from common import PROJECT
from load import closed_loop, cycled, post

# The default of the server.
BATCH = 32
PICTURES, TEXTS = 256, 2000
# No memory of what was computed: the model is measured, not the cache.
UNCACHED = ("query_cache_entries=0", "result_cache_bytes=0")
# While memory is watched, caches are at work, and full so soon that they do not look like growth.
SMALL_CACHES = ("query_cache_entries=500", "result_cache_bytes=1000000")


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[Any]
    host: str
    port: int

    def rss(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def served(index: Path, model: Path, *settings: str) -> Iterator[Server]:
    """``clipette serve`` in a process of its own."""
    command = [sys.executable, "-m", "clipette", "serve", str(index), "--model", str(model), "--port", "0"]
    for setting in (*UNCACHED, *settings):
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        while not (line := process.stderr.readline()).startswith("open http"):
            said.append(line)
            if not line:
                raise RuntimeError("the server did not start: " + "".join(said))
        found = urlsplit(line.split()[1])
        assert found.hostname is not None
        assert found.port is not None
        yield Server(process, found.hostname, found.port)
    finally:
        process.terminate()
        process.wait(120)
        if process.stderr is not None:
            process.stderr.close()


def embedding_requests(data: Dataset, each: int, *, model: str | None = None) -> dict[str, list[bytes]]:
    """``/v1/embeddings`` requests of ``each`` inputs: texts, images (as data URIs, which infinity-emb asks for too)."""
    captions = [caption for sample in data.samples for caption in sample.captions]
    texts = [f"{captions[n % len(captions)]} {n}" for n in range(TEXTS)]
    pictures = [_data_uri(sample) for sample in data.samples[:PICTURES]]
    inputs = {"text": texts, "image": pictures}
    named = {} if model is None else {"model": model}
    return {
        name: [
            post(
                "/v1/embeddings", {**named, "input": many[n : n + each], "modality": name, "encoding_format": "base64"}
            )
            for n in range(0, len(many) - each + 1, each)
        ]
        for name, many in inputs.items()
    }


def _data_uri(sample: Sample) -> str:
    assert sample.image is not None
    return f"data:image/jpeg;base64,{base64.b64encode(sample.image.read()).decode()}"


async def throughput(server: Server, bodies: Sequence[bytes], clients: int, seconds: float, items: int) -> Any:
    load = await closed_loop(server.host, server.port, cycled(bodies), clients=clients, seconds=seconds, items=items)
    return load.summary()
