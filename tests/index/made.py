"""Small indexes and encoders for tests: vectors by rule, failures on demand, calls counted."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from clipette.data.refs import FileImage
from clipette.errors import BadImageError
from clipette.index import Row
from clipette.types import Encoded, Failure, Floats, ImageInput, Sample

DIM = 16


def unit(vectors: np.ndarray) -> Floats:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def drawn(count: int, dim: int = DIM, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def vector_of(content: bytes, dim: int = DIM) -> Floats:
    """One vector by a hash of ``content``: equal content has equal vectors, other content has others."""
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return unit(np.random.default_rng(seed).normal(size=dim))


def rows(count: int, start: int = 0) -> list[Row]:
    """Rows with an int, a text, a bool and a sparse float column."""
    made = []
    for i in range(start, start + count):
        meta = {"year": 2000 + i % 30, "domain": ("photo", "art", "it's")[i % 3], "kept": i % 2 == 0}
        if i % 5 == 0:
            meta["score"] = i / 8
        made.append(Row(f"k{i:05d}", "text" if i % 4 == 3 else "image", meta=meta, text=f"number {i}"))
    return made


@dataclass(frozen=True)
class Held:
    """An image whose bytes are held in memory: an upload."""

    data: bytes
    location: str = "upload"

    def read(self) -> bytes:
        if not self.data:
            raise BadImageError(f"{self.location}: empty")
        return self.data


@dataclass
class HashEncoder:
    """Images and texts to vectors by a hash of their bytes. A picture of the bytes b"broken" cannot be read."""

    name: str = "hash"
    space: str = "hash-space"
    dim: int = DIM
    logit_scale: float = 10.0
    logit_bias: float = 0.0
    can_encode_text: bool = True
    can_encode_images: bool = True
    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        return np.stack([vector_of(image if isinstance(image, bytes) else Path(str(image)).read_bytes(), self.dim)
                         for image in images])  # fmt: skip

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        keys, vectors, failures = [], [], []
        for sample in samples:
            assert sample.image is not None
            self.images.append(sample.key)
            data = sample.image.read()
            if data == b"broken":
                failures.append(Failure(sample.key, sample.image.location, "damaged"))
                continue
            keys.append(sample.key)
            vectors.append(vector_of(data, self.dim))
        stacked = np.stack(vectors) if vectors else np.zeros((0, self.dim), np.float32)
        return Encoded(tuple(keys), stacked, tuple(failures))

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        self.texts += texts
        return np.stack([vector_of(text.encode(), self.dim) for text in texts])


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def photos(folder: Path, count: int, start: int = 0) -> list[Sample]:
    """Picture files and their samples, each with two captions."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i in range(start, start + count):
        path = folder / f"p{i}.png"
        path.write_bytes(png(i))
        samples.append(Sample(f"p{i}", FileImage(str(path)), (f"picture {i}", f"number {i}"), meta={"n": i}))
    return samples
