"""A small world for the server's tests: colours as an embedding space, and a search in plain loops."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from clipette.data.images import decode_image
from clipette.data.refs import FileImage
from clipette.errors import BadImageError
from clipette.index.opening import create
from clipette.serve.adapters import IndexPort
from clipette.serve.app import create_app
from clipette.serve.encoding import QueuedEncoder
from clipette.serve.metrics import Metrics
from clipette.serve.ports import Outcome
from clipette.serve.running import bind, url_of, uvicorn_config
from clipette.serve.schemas import SearchRequest
from clipette.serve.settings import ServeSettings
from clipette.serve.thumbs import Thumbnails
from clipette.types import Encoded, Failure, Floats, ImageInput, Sample

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "white": (255,) * 3}
WRITE_KEY = "write-key-of-the-tests"
READ_KEY = "read-key-of-the-tests"


def unit(rows: Any) -> Floats:
    array = np.asarray(rows, np.float32)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True), np.float32)


def picture(colour: str | tuple[int, int, int], size: tuple[int, int] = (32, 24), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour] if isinstance(colour, str) else colour).save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Colours:
    """``types.Encoder``: a text is the sum of its colour words, an image its mean colour; both with a constant part.

    ``seconds`` of one call; ``gate``: calls wait for it; ``calls``: sizes of the batches that ran.
    """

    seconds: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[int] = field(default_factory=list)
    name: str = "colours"
    space: str = "colours-1"
    dim: int = 4
    logit_scale: float = 50.0
    logit_bias: float = 0.0
    can_encode_text: bool = True
    can_encode_images: bool = True

    def __post_init__(self) -> None:
        self.gate.set()

    def _work(self, count: int) -> None:
        self.gate.wait(30)
        self.calls.append(count)
        time.sleep(self.seconds)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        self._work(len(texts))
        rows = []
        for text in texts:
            if "explode" in text:
                raise RuntimeError("the model exploded")
            found = [COLOURS[word] for word in re.findall(r"\w+", text.lower()) if word in COLOURS]
            rows.append([*np.sum(found or [(9, 9, 9)], axis=0), 30.0])
        return unit(rows)

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        self._work(len(images))
        opened = [image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image)) for image in images]
        return unit([[*np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0), 30.0] for image in opened])

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        self._work(len(samples))
        keys, rows, failures = [], [], []
        for sample in samples:
            try:
                assert sample.image is not None
                image = decode_image(sample.image.read(), location=sample.image.location)
            except BadImageError as error:
                failures.append(Failure(sample.key, "", str(error)))
                continue
            keys.append(sample.key)
            rows.append([*np.asarray(image).reshape(-1, 3).mean(axis=0), 30.0])
        return Encoded(tuple(keys), unit(rows) if rows else np.zeros((0, 4), np.float32), tuple(failures))


@dataclass(frozen=True)
class FoundHit:
    key: str
    score: float
    kind: str
    text: str | None
    meta: Mapping[str, Any]
    duplicates: Sequence[str] = ()
    confidence: float | None = None
    fits: bool | None = None


class PlainSearch:
    """``ports.SearchPort``: the mean of what is asked, compared with every row. ``mmr`` is what takes long."""

    def __init__(self, collection: Any, encoder: Any) -> None:
        self.collection, self.encoder = collection, encoder
        self.calls = 0
        self.slow = 0.0

    def texts(self, request: SearchRequest) -> Sequence[str]:
        return [request.text] if request.text else []

    def expensive(self, request: SearchRequest) -> bool:
        return request.mmr is not None

    def search(self, request: SearchRequest, image: bytes | None, *, quick: bool = False) -> Outcome:
        self.calls += 1
        if not quick:
            time.sleep(self.slow)
        parts = [self.encoder.encode_texts([request.text])] if request.text else []
        parts += [self.encoder.encode_images([image])] if image else []
        keys = [*([request.image_key] if request.image_key else []), *request.liked]
        parts += [self.collection.vectors(keys)] if keys else []
        query = unit(np.concatenate(parts).mean(axis=0, keepdims=True))
        kind = None if request.kind == "any" else request.kind
        found = self.collection.search_vectors(query, request.k, where=request.where, kind=kind)
        rows = self.collection.rows(found.keys[0])
        hits = [FoundHit(r.key, float(s), r.kind, r.text, r.meta) for r, s in zip(rows, found.scores[0], strict=True)]
        return Outcome(hits)


@dataclass
class World:
    """A running application and what it stands on."""

    client: TestClient
    encoder: Colours
    search: PlainSearch
    collection: Any
    app: Any


@contextmanager
def world(folder: Path, encoder: Colours | None = None, **settings: Any) -> Iterator[World]:
    """A server of five coloured images, ``photos/red`` and so on, and a text, in this process."""
    encoder = encoder or Colours()
    app, search, collection = build(folder, encoder, **settings)
    with TestClient(app, base_url="http://localhost") as client:
        yield World(client, encoder, search, collection, app)


def build(folder: Path, encoder: Colours, **settings: Any) -> tuple[Any, PlainSearch, Any]:
    """(application, search, collection)."""
    collection = create(folder / "my.index", space=encoder.space, dim=encoder.dim, model={"name": encoder.name})
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    samples = []
    for year, name in enumerate(COLOURS, 2018):
        path = photos / f"{name}.png"
        path.write_bytes(picture(name))
        meta = {"year": year, "domain": "photo"}
        samples.append(Sample(f"photos/{name}", FileImage(str(path)), (f"a {name} field",), meta=meta))
    samples.append(Sample("note", None, ("a red note",)))
    collection.add(samples, encoder)
    encoder.calls.clear()
    config = ServeSettings(**{"write_keys": (WRITE_KEY,), "batch_wait": 0.0, **settings})
    metrics = Metrics()
    queued = QueuedEncoder(encoder, config, metrics)
    search = PlainSearch(collection, queued)
    app = create_app(
        config,
        encoder=encoder,
        collection=IndexPort(collection, "my.index", encoder),
        search=search,
        thumbnails=Thumbnails(folder / "thumbs"),
        card="# colours",
        writable=True,
        queued=queued,
        metrics=metrics,
    )
    return app, search, collection


@dataclass
class Live:
    """A server on a real socket, in a thread."""

    url: str
    address: tuple[str, int]
    server: uvicorn.Server
    encoder: Colours
    search: PlainSearch
    collection: Any
    app: Any

    def stop(self) -> None:
        self.server.should_exit = True


@contextmanager
def live(folder: Path, encoder: Colours | None = None, **settings: Any) -> Iterator[Live]:
    """``world`` on loopback, as ``clipette serve`` runs it."""
    encoder = encoder or Colours()
    app, search, collection = build(folder, encoder, **settings)
    given = app.state.service.settings
    bound = bind(given.model_copy(update={"port": 0}))
    server = uvicorn.Server(uvicorn_config(app, given))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.02)
        yield Live(url_of(bound).rstrip("/"), bound.getsockname()[:2], server, encoder, search, collection, app)
    finally:
        encoder.gate.set()
        server.should_exit = True
        thread.join(60)
        bound.close()
