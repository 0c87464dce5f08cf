"""Example pictures for the report: thumbnails as data URIs, drawn by seed and never picked."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings, decode_image
from clipette.errors import BadImageError
from clipette.evaluate.results import RetrievalResult, ZeroShotResult

SIDE = 160


class Thumbnails:
    """Small JPEGs of a data set's images by key, each made once; None for one that cannot be read."""

    def __init__(self, dataset: Dataset) -> None:
        self._samples = {sample.key: sample for sample in dataset.samples}
        self._made: dict[str, str | None] = {}

    def uri(self, key: str) -> str | None:
        """``data:image/jpeg;base64,...``."""
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: str) -> str | None:
        sample = self._samples.get(key)
        if sample is None or sample.image is None:
            return None
        try:
            data = sample.image.read()
            # Shown, not measured: here the faster decoding is allowed.
            settings = DecodeSettings(scaled=True)
            image = decode_image(data, location=sample.image.location, settings=settings, want=(SIDE, SIDE))
        except BadImageError:
            return None
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82)
        return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Bytes as a URI that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class ClassifiedPicture:
    """One image, its class and what was said of it; ``reference``: what the reference model said."""

    uri: str | None
    key: str
    truth: str
    predicted: str
    confidence: float
    reference: str | None

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.truth == self.predicted


@dataclass(frozen=True)
class FoundItem:
    """One search result: a caption, or an image's key with its thumbnail."""

    text: str
    uri: str | None
    relevant: bool


@dataclass(frozen=True)
class Search:
    """One query, by image or by caption, and its results."""

    direction: str
    query: str
    uri: str | None
    results: tuple[FoundItem, ...]


def classified_pictures(
    result: ZeroShotResult, reference: ZeroShotResult | None, pictures: Thumbnails, *, each: int = 8, seed: int = 0
) -> tuple[list[ClassifiedPicture], list[ClassifiedPicture]]:
    """(right, wrong): up to ``each`` images of either kind, drawn by ``seed``."""
    theirs: dict[str, str] = {}
    if reference is not None:
        said = zip(reference.items.keys, reference.predicted.tolist(), strict=True)
        theirs = {key: reference.class_names[predicted] for key, predicted in said}
    order = np.random.default_rng(seed).permutation(len(result.items.keys)).tolist()
    halves: tuple[list[ClassifiedPicture], list[ClassifiedPicture]] = ([], [])
    for row in order:
        half = halves[int(result.labels[row] != result.predicted[row])]
        if len(half) < each:
            key = result.items.keys[row]
            half.append(
                ClassifiedPicture(
                    uri=pictures.uri(key),
                    key=key,
                    truth=result.class_names[int(result.labels[row])],
                    predicted=result.class_names[int(result.predicted[row])],
                    confidence=float(result.confidence[row]),
                    reference=theirs.get(key),
                )
            )
    return halves


def searches(result: RetrievalResult, pictures: Thumbnails, *, each: int = 4) -> list[Search]:
    """The first ``each`` examples of either direction, with thumbnails."""
    shown = []
    for direction in ("i2t", "t2i"):
        for example in [e for e in result.examples if e.direction == direction][:each]:
            by_image = direction == "i2t"
            found = tuple(
                FoundItem(text, None if by_image else pictures.uri(text), relevant)
                for text, relevant in zip(example.results, example.relevant, strict=True)
            )
            shown.append(Search(direction, example.query, pictures.uri(example.query) if by_image else None, found))
    return shown
