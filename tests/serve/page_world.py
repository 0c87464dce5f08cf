"""What the browser tests look at: the real application over pictures of the sample world, told apart by colour."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from clipette.data.dataset import Dataset
from clipette.data.world import WorldSpec, world_sample
from clipette.data.world_scene import COLOURS
from clipette.index.build import build_index
from clipette.serve.running import bind, url_of, uvicorn_config
from clipette.serve.settings import ServeSettings
from clipette.serving import application
from clipette.types import Encoded, Floats, ImageInput, Sample

PALETTE = np.asarray(list(COLOURS.values()), np.float32)
NAMES = tuple(COLOURS)
SIZE = 72
COUNT = 40
OWN = 8
# What a page that builds HTML from strings would run.
EVIL_KEY = "evil/<img src=x onerror=window.hacked=1>&?#%.png"
EVIL_CAPTION = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
EVIL_COLOUR = 'it\'s "<b>so</b>" y,ellow'
CARD = "# colours\n\nA **card** with `code`.\n\n| | |\n|---|---|\n| width | 7 |\n\n<script>window.hacked=1</script>\n"


def picture(colour: str, size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    """One colour of the sample world."""
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Hues:
    """``types.Encoder``: an image is how much of each of the world's colours it shows, a text the colours it names.

    All have a part in common, and a text a part of its own that no image has: what names no colour fits nothing.
    """

    name: str = "hues"
    space: str = "hues-1"
    dim: int = len(NAMES) + 1 + OWN
    logit_scale: float = 12.0
    logit_bias: float = 0.0
    can_encode_text: bool = True
    can_encode_images: bool = True

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        own = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=OWN) for text in texts])
        named = [[*(float(name in re.findall(r"\w+", text.lower())) for name in NAMES), 0.2] for text in texts]
        return _unit(np.concatenate([named, 0.3 * np.asarray(_unit(own))], axis=1))

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        opened = [image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image)) for image in images]
        return _unit([_shares(image.convert("RGB")) for image in opened])

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        read = [sample.image.read() for sample in samples if sample.image is not None]
        return Encoded(tuple(sample.key for sample in samples), self.encode_images(read))


def _unit(rows: Any) -> Floats:
    array = np.asarray(rows, np.float32)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True), np.float32)


def _shares(image: Image.Image) -> list[float]:
    pixels = np.asarray(image.resize((24, 24)), np.float32).reshape(-1, 3)
    vivid = pixels[pixels.max(axis=1) - pixels.min(axis=1) > 90]
    if not len(vivid):
        return [0.0] * len(NAMES) + [0.2] + [0.0] * OWN
    nearest = np.argmin(((vivid[:, None] - PALETTE) ** 2).sum(axis=2), axis=1)
    return [*(np.bincount(nearest, minlength=len(NAMES)) / len(vivid)).tolist(), 0.2, *[0.0] * OWN]


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
        found.append(Sample(drawn.key, drawn.image, (f"a {texture} {colour} {shape}",), meta=meta))
    evil = replace(found[0], key=EVIL_KEY, captions=(EVIL_CAPTION,), meta={**found[0].meta, "colour": EVIL_COLOUR})
    return [*found, evil, Sample("note", None, ("a purple note, in words only",))]


@contextlib.contextmanager
def served(folder: Path, encoder: Hues | None = None, **settings: Any) -> Iterator[str]:
    """The address of a running server over ``samples``: index, calibration and application are the real ones."""
    encoder, config = encoder or Hues(), ServeSettings(**settings)
    known = [sample for sample in samples() if sample.image is not None or encoder.can_encode_text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPETTE_CACHE", str(folder / "cache"))
        collection = build_index(Dataset("the sample world", tuple(known)), encoder, folder / "my.index")
        app = application(collection, folder / "my.index", encoder, config)
    app.state.service.card = CARD
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
