"""What the browser tests look at: the real application over pictures of the sample world, told apart by colour."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from clipette.data.world import WorldSpec, world_sample
from clipette.data.world_scene import COLOURS
from clipette.index.collection import create
from clipette.serve.adapters import IndexPort
from clipette.serve.app import create_app
from clipette.serve.encoding import QueuedEncoder
from clipette.serve.metrics import Metrics
from clipette.serve.ports import Outcome
from clipette.serve.running import bind, url_of, uvicorn_config
from clipette.serve.schemas import SearchRequest
from clipette.serve.settings import ServeSettings
from clipette.serve.thumbs import Thumbnails
from clipette.types import Encoded, Floats, ImageInput, Sample

from .small import PlainSearch

PALETTE = np.asarray(list(COLOURS.values()), np.float32)
NAMES = tuple(COLOURS)
SIZE = 72
COUNT = 40
FITS = 0.6  # the cosine from which a picture holds the colour that was asked for
# What a page that builds HTML from strings would run.
EVIL_KEY = "evil/<img src=x onerror=window.hacked=1>&?#%.png"
EVIL_CAPTION = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
EVIL_COLOUR = 'it\'s "<b>so</b>" y,ellow'
CARD = "# colours\n\nA **card** with `code`.\n\n| | |\n|---|---|\n| width | 7 |\n\n<script>window.hacked=1</script>\n"
RECALL = {"all": 0.998, "10%": 0.991, "1%": 0.984}


def picture(colour: str, size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """One colour of the sample world."""
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Hues:
    """``types.Encoder``: an image is how much of each of the world's colours it shows, a text the colours it names."""

    name: str = "hues"
    space: str = "hues-1"
    dim: int = len(NAMES) + 1
    logit_scale: float = 12.0
    logit_bias: float = 0.0
    can_encode_text: bool = True
    can_encode_images: bool = True

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        return _unit([[*(float(name in text.lower().split()) for name in NAMES), 0.2] for text in texts])

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        opened = [image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image)) for image in images]
        return _unit([_shares(image.convert("RGB")) for image in opened])

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        read = [sample.image.read() for sample in samples if sample.image is not None]
        return Encoded(tuple(sample.key for sample in samples), self.encode_images(read))


def _unit(rows: Sequence[Sequence[float]]) -> Floats:
    array = np.asarray(rows, np.float32)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True), np.float32)


def _shares(image: Image.Image) -> list[float]:
    pixels = np.asarray(image.resize((24, 24)), np.float32).reshape(-1, 3)
    vivid = pixels[pixels.max(axis=1) - pixels.min(axis=1) > 90]
    if not len(vivid):
        return [0.0] * len(NAMES) + [0.2]
    nearest = np.argmin(((vivid[:, None] - PALETTE) ** 2).sum(axis=2), axis=1)
    return [*(np.bincount(nearest, minlength=len(NAMES)) / len(vivid)).tolist(), 0.2]


class ColourSearch:
    """``ports.SearchPort``: the plain search of these tests, and ``auto`` as a threshold."""

    def __init__(self, collection: Any, encoder: Any) -> None:
        self._plain = PlainSearch(collection, encoder)

    def texts(self, request: SearchRequest) -> Sequence[str]:
        return self._plain.texts(request)

    def expensive(self, request: SearchRequest) -> bool:
        return self._plain.expensive(request)

    def search(self, request: SearchRequest, image: bytes | None, *, quick: bool = False) -> Outcome:
        outcome = self._plain.search(request, image, quick=quick)
        if request.threshold != "auto":
            return outcome
        far = not outcome.hits or outcome.hits[0].score < FITS
        return replace(outcome, below_threshold=far, threshold=FITS, calibrated=True)


class Calibrated:
    """``ports.CollectionPort`` that says what measuring and calibrating would have found."""

    def __init__(self, inner: IndexPort) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def info(self) -> dict[str, Any]:
        return {**self._inner.info(), "calibrated": True, "recall": RECALL}


def samples() -> list[Sample]:
    """``COUNT`` pictures with columns of every type, and one whose words are hostile."""
    found = []
    for index in range(COUNT):
        drawn = world_sample(WorldSpec("test", size=SIZE), index)
        texture, colour, shape = str(drawn.class_name).split()
        meta = {
            "colour": colour,
            "shape": shape,
            "year": 2000 + index,
            "price": index / 4,
            "striped": texture == "striped",
        }
        found.append(Sample(drawn.key, drawn.image, drawn.captions[:1], meta=meta))
    evil = replace(found[0], key=EVIL_KEY, captions=(EVIL_CAPTION,), meta={**found[0].meta, "colour": EVIL_COLOUR})
    return [*found, evil, Sample("note", None, ("a purple note, in words only",))]


@contextlib.contextmanager
def served(folder: Path, **settings: Any) -> Iterator[str]:
    """The address of a running server over ``samples``."""
    encoder = Hues()
    collection = create(folder / "my.index", space=encoder.space, dim=encoder.dim, model={"name": encoder.name})
    collection.add(samples(), encoder)
    config = ServeSettings(**settings)
    metrics = Metrics()
    queued = QueuedEncoder(encoder, config, metrics)
    app = create_app(
        config,
        encoder=encoder,
        collection=Calibrated(IndexPort(collection, "my.index", encoder)),
        search=ColourSearch(collection, queued),
        thumbnails=Thumbnails(folder / "thumbs"),
        card=CARD,
        queued=queued,
        metrics=metrics,
    )
    bound = bind(config.model_copy(update={"port": 0}))
    server = uvicorn.Server(uvicorn_config(app, config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield url_of(bound).rstrip("/")
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
