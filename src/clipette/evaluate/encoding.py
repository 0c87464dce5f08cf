"""Encode once: vectors of images and texts remembered per encoder and shared between all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit
from clipette.errors import DataError, ModelError, UnsupportedError
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Encoded, Encoder, Failure, Floats, ImageInput, Sample


@dataclass(frozen=True, slots=True)
class Settings:
    """What every measure is run with.

    ``max_failures``: share of images that may be unreadable; they are skipped, counted and listed, and more than this
    share fails the run. ``bootstrap``: resampling of the intervals.
    """

    batch_size: int = 64
    text_batch_size: int = 256
    max_failures: float = 0.1
    progress: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


class CachedEncoder:
    """An ``Encoder`` that remembers what it encoded; wrapping one twice changes nothing.

    An image is remembered by its sample's key and location, a text by itself. Failures are remembered too. Memory: 4 D
    bytes an item for as long as the object lives.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder: Encoder = encoder.encoder if isinstance(encoder, CachedEncoder) else encoder
        shared = encoder if isinstance(encoder, CachedEncoder) else None
        self._images: dict[tuple[str, str], Floats | Failure] = shared._images if shared else {}
        self._texts: dict[str, Floats] = shared._texts if shared else {}

    @property
    def name(self) -> str:
        """As the wrapped encoder."""
        return self.encoder.name

    @property
    def space(self) -> str:
        """As the wrapped encoder."""
        return self.encoder.space

    @property
    def dim(self) -> int:
        """As the wrapped encoder."""
        return self.encoder.dim

    @property
    def logit_scale(self) -> float:
        """As the wrapped encoder."""
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> float:
        """As the wrapped encoder."""
        return self.encoder.logit_bias

    @property
    def can_encode_text(self) -> bool:
        """As the wrapped encoder."""
        return self.encoder.can_encode_text

    @property
    def can_encode_images(self) -> bool:
        """As the wrapped encoder."""
        return self.encoder.can_encode_images

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        """As the wrapped encoder; ad-hoc images have no key and are not remembered."""
        return self.encoder.encode_images(images, batch_size=batch_size)

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        """As the wrapped encoder; only samples not seen before are encoded."""
        new = {_identity(sample): sample for sample in samples if _identity(sample) not in self._images}
        if new:
            encoded = self.encoder.encode_samples(list(new.values()), batch_size=batch_size, progress=progress)
            self._remember(list(new.values()), encoded)
        found = [(sample.key, self._images[_identity(sample)]) for sample in samples]
        good = [(key, value) for key, value in found if not isinstance(value, Failure)]
        failures = tuple(value for _, value in found if isinstance(value, Failure))
        vectors = np.stack([vector for _, vector in good]) if good else np.zeros((0, self.dim), np.float32)
        return Encoded(tuple(key for key, _ in good), vectors, failures)

    def _remember(self, samples: Sequence[Sample], encoded: Encoded) -> None:
        if len({sample.key for sample in samples}) != len(samples):
            raise DataError("two samples of one data set share a key: keys must be unique to be paired with vectors")
        by_key: dict[str, Floats | Failure] = {failure.key: failure for failure in encoded.failures}
        by_key.update(zip(encoded.keys, encoded.vectors, strict=True))
        for sample in samples:
            lost = Failure(sample.key, _identity(sample)[1], f"{self.name} returned neither a vector nor a failure")
            self._images[_identity(sample)] = by_key.get(sample.key, lost)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        """As the wrapped encoder; each distinct text is encoded once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            vectors = self.encoder.encode_texts(new, batch_size=batch_size)
            self._texts.update(zip(new, vectors, strict=True))
        return np.stack([self._texts[text] for text in texts]) if texts else np.zeros((0, self.dim), np.float32)


def _identity(sample: Sample) -> tuple[str, str]:
    return sample.key, sample.image.location if sample.image is not None else ""


@dataclass(frozen=True, slots=True)
class ReadSamples:
    """The samples that could be encoded, their vectors [N, D] in the same order, and the others."""

    samples: tuple[Sample, ...]
    vectors: Floats
    failures: tuple[Failure, ...]


def encode_dataset(encoder: Encoder, dataset: Dataset, samples: Sequence[Sample], settings: Settings) -> ReadSamples:
    """Encode ``samples`` of ``dataset``. Raises ``DataError`` past ``settings.max_failures`` or if none was read."""
    if not encoder.can_encode_images:
        raise UnsupportedError(f"{encoder.name} has no image side: evaluate a model that encodes images")
    encoded = encoder.encode_samples(samples, batch_size=settings.batch_size, progress=settings.progress)
    return pair_samples(encoded, encoder.name, dataset, samples, settings)


def pair_samples(
    encoded: Encoded, model: str, dataset: Dataset, samples: Sequence[Sample], settings: Settings
) -> ReadSamples:
    """Join what came back to its samples by key, whatever its order, and hold it to the failure limit."""
    what = f"images of {dataset.reference} for {model}"
    FailureLimit(settings.max_failures).check(encoded.failures, len(samples), what=what)
    if not encoded.keys:
        raise DataError(f"no image of {dataset.reference} could be encoded by {model}: the data set is empty")
    row = {key: position for position, key in enumerate(encoded.keys)}
    kept = tuple(sample for sample in samples if sample.key in row)
    vectors = encoded.vectors[[row[sample.key] for sample in kept]]
    return ReadSamples(kept, np.asarray(vectors, dtype=np.float32), tuple(encoded.failures))


def text_side(encoder: Encoder, text_encoder: Encoder | None) -> Encoder:
    """Who encodes the texts for ``encoder``'s images: itself, or a ``text_encoder`` of the same space.

    Raises ``UnsupportedError`` where nobody can, ``ModelError`` where the spaces differ.
    """
    chosen = text_encoder or encoder
    if chosen.space != encoder.space or chosen.dim != encoder.dim:
        raise ModelError(
            f"texts of {chosen.name} (space {chosen.space}, width {chosen.dim}) cannot be compared with images of "
            f"{encoder.name} (space {encoder.space}, width {encoder.dim}): use a text encoder of the same space"
        )
    if not chosen.can_encode_text:
        raise UnsupportedError(
            f"{chosen.name} has no text side: give text_encoder, a model of its space ({encoder.space}) that has one"
        )
    return chosen
