from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipette.serve.encoding import QueuedEncoder
from clipette.serve.faults import HttpFault
from clipette.serve.metrics import Metrics
from clipette.serve.settings import ServeSettings

from .small import Colours, picture

LONG = "red " * 2500


class Prepared:
    """Preprocessing that waits for ``gate`` and counts."""

    def __init__(self, encoder: Colours) -> None:
        self.encoder, self.gate, self.count = encoder, threading.Event(), 0

    def one(self, image: Image.Image) -> Any:
        self.gate.wait(20)
        self.count += 1
        return image


@pytest.fixture
def prepared() -> Iterator[Prepared]:
    made = Prepared(Colours())
    yield made
    made.gate.set()


def queued(prepared: Prepared, **settings: Any) -> QueuedEncoder:
    stages = (prepared.one, prepared.encoder.encode_images)
    return QueuedEncoder(prepared.encoder, ServeSettings(batch_wait=0.0, **settings), Metrics(), stages=stages)


def test_a_bad_picture_leaves_nothing_of_its_request_behind(prepared: Prepared) -> None:
    """Its other pictures are not decoded for nobody: a refusal would cost more than an answer."""
    made = queued(prepared, decode_threads=2)
    many = [picture((n, 0, 0)) for n in range(40)]

    async def main() -> None:
        with pytest.raises(HttpFault):
            await made.images([b"no picture", *many])
        # A server goes on, and its loop cancels what waits; those that wait at the gate are through it faster.
        await asyncio.sleep(0.2)
        prepared.gate.set()
        while made._decoders._work_queue.qsize() and prepared.count <= 4:
            await asyncio.sleep(0.05)

    asyncio.run(main())
    made.close()  # waits for what is being decoded
    assert prepared.count <= 4


def test_a_memory_of_entries_is_a_bound_in_bytes_too(prepared: Prepared) -> None:
    made = queued(prepared)
    vectors = made.encode_texts([LONG, "blue", LONG])
    assert np.array_equal(vectors[0], vectors[2])
    assert prepared.encoder.calls == [2]
    assert max(sys.getsizeof(part) for key in made._memory._held for part in key) < 200
    # And found again by the same words, not by those that begin alike.
    assert np.array_equal(made.encode_texts([LONG])[0], vectors[0])
    assert prepared.encoder.calls == [2]
    made.encode_texts([LONG + "blue"])
    assert prepared.encoder.calls == [2, 1]
    assert np.array_equal(asyncio.run(made.texts([LONG]))[0], vectors[0])
    made.close()
