"""A small world of meanings: an encoder without a model, whose texts and pictures lie apart as those of CLIP do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipette.index.background import words_of
from clipette.index.collection import Collection
from clipette.index.opening import create
from clipette.index.store import Kind, Row
from clipette.types import Encoded, Floats, ImageInput, Sample

WORDS = ("dog", "cat", "beach", "people", "car", "snow", "tree", "boat")
TEXT_AXIS, IMAGE_AXIS, FIRST_NOISE, DIM = 8, 9, 10, 48


def unit(vectors: Any) -> Floats:
    array = np.asarray(vectors, dtype=np.float64)
    return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True), dtype=np.float32)


def _meant(words: Sequence[str]) -> np.ndarray:
    """The sum of what the words mean; a word outside ``WORDS`` has a direction of its own, which no picture shows."""
    vector = np.zeros(DIM)
    for word in words:
        if word in WORDS:
            vector[WORDS.index(word)] += 1.0
        elif word not in ("a", "of", "photo", "the", "an", "in", "front"):
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
            noise = np.random.default_rng(seed).standard_normal(DIM - FIRST_NOISE)
            vector[FIRST_NOISE:] += noise / np.linalg.norm(noise)
    return vector


def text_vector(text: str) -> Floats:
    vector = _meant(words_of(text))
    vector[TEXT_AXIS] = 2.0
    return unit(vector)


def image_vector(words: str, noise: float = 0.08, seed: int = 0) -> Floats:
    vector = _meant(words.split())
    vector[IMAGE_AXIS] = 2.0
    vector[FIRST_NOISE:] += noise * np.random.default_rng(seed).standard_normal(DIM - FIRST_NOISE)
    return unit(vector)


@dataclass
class Meaning:
    """``types.Encoder``: a picture is bytes that say what it shows. ``texts_encoded``: one list a call."""

    name: str = "meaning"
    space: str = "meanings"
    dim: int = DIM
    logit_scale: float = 50.0
    logit_bias: float = 0.0
    can_encode_text: bool = True
    can_encode_images: bool = True
    texts_encoded: list[list[str]] = field(default_factory=list)
    # Another encoder of the same space: every vector turned a little, always the same way.
    turned: float = 0.0

    def _turn(self, vectors: Floats) -> Floats:
        if not self.turned:
            return vectors
        turn = np.random.default_rng(5).standard_normal((self.dim, self.dim)) / np.sqrt(self.dim)
        return unit(vectors + self.turned * vectors @ turn)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        self.texts_encoded.append(list(texts))
        return self._turn(np.stack([text_vector(text) for text in texts]))

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        shown = [image.decode() if isinstance(image, bytes) else str(image) for image in images]
        return self._turn(np.stack([image_vector(words, seed=999) for words in shown]))

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        vectors = [image_vector(str(sample.meta["shows"]), seed=int(str(sample.meta["seed"]))) for sample in samples]
        return Encoded(tuple(sample.key for sample in samples), self._turn(np.stack(vectors)))


@dataclass(frozen=True)
class Picture:
    """An image of a sample that is never read."""

    location: str = "nowhere"

    def read(self) -> bytes:
        raise AssertionError("these tests read no picture")


def build(
    path: Path,
    shows: Mapping[str, str],
    *,
    kind: Kind = "image",
    captions: bool = False,
    texts: Mapping[str, str] | None = None,
    vectors: Mapping[str, Floats] | None = None,
) -> Collection:
    """A collection of key → what it shows; ``texts``: key → text rows beside them; ``vectors``: some, given."""
    rows, stack = [], []
    for number, (key, words) in enumerate(shows.items()):
        meta = {"shows": words, "seed": number, "first": words.split()[0]}
        rows.append(Row(key, kind, f"{key}.jpg", f"a photo of {words}" if captions else None, meta))
        given = None if vectors is None else vectors.get(key)
        stack.append(image_vector(words, seed=number) if given is None else given)
    for key, text in (texts or {}).items():
        rows.append(Row(key, "text", "", text))
        stack.append(text_vector(text))
    collection = create(path, space="meanings", dim=DIM, model={"name": "meaning"})
    collection.add_rows(rows, np.stack(stack))
    return collection


def samples_of(collection: Collection) -> list[Sample]:
    """The images again, as samples, with one caption each."""
    rows = collection.rows(collection.keys("image"))
    return [Sample(row.key, Picture(), (f"a photo of {row.meta['shows']}",), meta=dict(row.meta)) for row in rows]


SCENES = {
    f"{words.replace(' ', '-')}-{number}": words
    for words in ("dog beach", "dog people beach", "cat tree", "car snow", "boat beach", "people snow", "cat", "dog")
    for number in range(6)
}
