"""Encoders without models: vectors looked up by key and by text, failures on demand, calls counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import UnsupportedError
from clipette.types import Encoded, Failure, Floats, ImageInput, Sample


def unit(vectors: np.ndarray) -> Floats:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass
class FakeEncoder:
    """An ``Encoder`` from two dictionaries. ``broken``: keys of images that cannot be read."""

    images: Mapping[str, Floats]
    texts: Mapping[str, Floats] | None = None
    name: str = "fake"
    space: str = "space"
    dim: int = 8
    logit_scale: float = 10.0
    logit_bias: float = 0.0
    broken: frozenset[str] = frozenset()
    can_encode_images: bool = True
    images_encoded: list[str] = field(default_factory=list)
    texts_encoded: list[str] = field(default_factory=list)

    @property
    def can_encode_text(self) -> bool:
        return self.texts is not None

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        raise NotImplementedError

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        self.images_encoded += [sample.key for sample in samples]
        good = [sample.key for sample in samples if sample.key not in self.broken]
        failures = tuple(Failure(s.key, s.key, "truncated") for s in samples if s.key in self.broken)
        vectors = np.stack([self.images[key] for key in good]) if good else np.zeros((0, self.dim), np.float32)
        return Encoded(tuple(good), vectors, failures)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        if self.texts is None:
            raise UnsupportedError("no text side")
        self.texts_encoded += texts
        return np.stack([self.texts[text] for text in texts])


@dataclass
class FakeClassifier:
    """A ``Classifier`` that looks its logits up."""

    class_names: tuple[str, ...]
    logits: Mapping[str, Floats]
    name: str = "classifier"

    def classify_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        keys = tuple(sample.key for sample in samples)
        return Encoded(keys, np.stack([self.logits[key] for key in keys]))


CLASSES = ("cat", "dog", "fox", "owl", "elk")


def classified(count: int = 40, domains: Iterable[str | None] = (None,)) -> Dataset:
    """``count`` samples over ``CLASSES`` in turn, and domains in turn."""
    each = list(domains)
    samples = tuple(
        Sample(
            f"image{i}",
            class_name=CLASSES[i % 5],
            label=i % 5,
            domain=each[(i // 5) % len(each)],
        )
        for i in range(count)
    )
    return Dataset("fake:pets", samples, CLASSES)


def captioned(count: int = 20) -> Dataset:
    """``count`` images with 1, 2 or 3 captions."""
    samples = tuple(
        Sample(f"image{i}", captions=tuple(f"caption {i}.{j}" for j in range(1 + i % 3))) for i in range(count)
    )
    return Dataset("fake:scenes", samples)


def encoder_of(dataset: Dataset, seed: int = 0, noise: float = 0.6, **more: object) -> FakeEncoder:
    """Noisy vectors around each class (prompt ``a photo of a {name}.`` and the bare name) or each image's captions."""
    rng = np.random.default_rng(seed)
    texts: dict[str, Floats] = {}
    for name in dataset.class_names:
        vector = unit(rng.standard_normal(8))
        texts |= {name: vector, f"a photo of a {name}.": vector, f"a photo of a {name}": vector}
    images: dict[str, Floats] = {}
    for sample in dataset.samples:
        base = texts[sample.class_name] if sample.class_name else unit(rng.standard_normal(8))
        images[sample.key] = unit(base + noise * rng.standard_normal(8))
        for caption in sample.captions:
            texts[caption] = unit(images[sample.key] + noise * rng.standard_normal(8))
    return FakeEncoder(images, texts, **more)  # type: ignore[arg-type]
