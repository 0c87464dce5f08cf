"""How much survives blur, noise, JPEG, contrast and occlusion at five strengths."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from clipette.data.corruptions import CORRUPTIONS, STRENGTHS, Corruption
from clipette.data.dataset import Dataset
from clipette.data.images import decode_image
from clipette.data.order import stable_hash
from clipette.errors import ConfigError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.figures import columns, figure_of
from clipette.evaluate.results import Doubles, Figure, Items, RobustnessResult
from clipette.evaluate.retrieval import MEAN_RECALL_KS, retrieval
from clipette.evaluate.zero_shot import Templates, labelled, zero_shot
from clipette.metrics.bootstrap import percentile, replicate_means
from clipette.types import Encoder, Failure, ImageBytes, Sample

Measure: TypeAlias = Literal["top1", "mean_recall"]


@dataclass(frozen=True, slots=True)
class CorruptedImage:
    """An image that is spoilt when it is read: lossless PNG of the corrupted upright original."""

    image: ImageBytes
    name: str
    function: Corruption
    strength: int
    seed: int

    @property
    def location(self) -> str:
        """``photos/a.jpg#blur-3``."""
        return f"{self.image.location}#{self.name}-{self.strength}"

    def read(self) -> bytes:
        """Encoded bytes of the corrupted image. Raises ``BadImageError`` where the original cannot be read."""
        original = decode_image(self.image.read(), location=self.image.location)
        buffer = io.BytesIO()
        self.function(original, self.strength, self.seed).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def corrupt(dataset: Dataset, name: str, function: Corruption, strength: int, seed: int = 0) -> Dataset:
    """``dataset`` with every image corrupted when it is read.

    Chance depends on (seed, key, corruption), not on the strength, so that a curve over strengths is paired. Keys gain
    ``#blur-3``: a folder of stored vectors must not answer with those of the clean image.
    """

    def spoilt(sample: Sample) -> Sample:
        own = stable_hash(seed, sample.key, name) % 2**31
        image = None if sample.image is None else CorruptedImage(sample.image, name, function, strength, own)
        return replace(sample, key=f"{sample.key}#{name}-{strength}", image=image)

    return replace(dataset, samples=tuple(spoilt(sample) for sample in dataset.samples))


def robustness(
    encoder: Encoder,
    dataset: Dataset,
    corruptions: Sequence[str] | Mapping[str, Corruption] | None = None,
    strengths: Sequence[int] = STRENGTHS,
    *,
    measure: Measure | None = None,
    templates: Templates = "single",
    descriptions: Mapping[str, Sequence[str]] | None = None,
    text_encoder: Encoder | None = None,
    seed: int = 0,
    settings: Settings = Settings(),
) -> RobustnessResult:
    """Top-1 (or mean recall) on clean and on corrupted images; ``mean`` over all cells, ``relative`` = mean / clean.

    ``measure`` defaults to ``top1`` where the data set has classes, else ``mean_recall``. Texts are never corrupted.
    The intervals of ``mean`` and ``relative`` resample images, an image's corruptions with it. Cost: one pass over the
    images for each of corruptions x strengths; limit the data set first.
    Raises ``ConfigError`` for an unknown corruption or strength, ``DataError`` past ``settings.max_failures``.
    """
    functions = _functions(corruptions)
    if not functions or not strengths or not set(strengths) <= set(STRENGTHS):
        raise ConfigError(f"strengths {tuple(strengths)}: name one or more of {STRENGTHS}, and one corruption or more")
    chosen = measure or ("top1" if labelled(dataset.samples, dataset.class_names)[0] else "mean_recall")

    def cell(data: Dataset) -> tuple[Figure, Items, tuple[Failure, ...]]:
        if chosen == "top1":
            scores = zero_shot(
                encoder, data, templates, descriptions=descriptions, text_encoder=text_encoder, settings=settings
            )
            return scores.top1, scores.items, scores.failures
        found = retrieval(encoder, data, text_encoder=text_encoder, examples=0, settings=settings)
        return found.mean_recall, found.items, found.failures

    clean, clean_items, lost = cell(dataset)
    failures = list(lost)
    table: dict[str, dict[int, Figure]] = {}
    per_cell = [_aligned(clean_items, clean_items, chosen, "")]
    for name, function in functions.items():
        table[name] = {}
        for strength in strengths:
            table[name][strength], items, lost = cell(corrupt(dataset, name, function, strength, seed))
            failures += lost
            per_cell.append(_aligned(clean_items, items, chosen, f"#{name}-{strength}"))
    mean, relative = _summary(per_cell, clean, table, settings)
    return RobustnessResult(encoder.name, dataset.name, chosen, clean, table, mean, relative, failures=tuple(failures))


def _functions(corruptions: Sequence[str] | Mapping[str, Corruption] | None) -> dict[str, Corruption]:
    if isinstance(corruptions, Mapping):
        return dict(corruptions)
    names = list(CORRUPTIONS) if corruptions is None else list(corruptions)
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown:
        raise ConfigError(f"unknown corruption {unknown[0]!r}; known: {', '.join(CORRUPTIONS)}")
    return {name: CORRUPTIONS[name] for name in names}


def _aligned(clean: Items, items: Items, measure: Measure, suffix: str) -> tuple[Doubles, Doubles]:
    """(sums [N, M], counts [N, M]) of the measure's parts in the order of the clean items; 0 where one was not read."""
    parts = ["top1"] if measure == "top1" else [f"{d}/hit@{k}" for d in ("i2t", "t2i") for k in MEAN_RECALL_KS]
    sums, counts = columns(items, parts)
    row = {key: position for position, key in enumerate(items.keys)}
    rows = np.array([row.get(key + suffix, -1) for key in clean.keys], dtype=np.int64)
    there = (rows >= 0)[:, None]
    return np.where(there, sums[rows], 0.0), np.where(there, counts[rows], 0.0)


def _summary(
    per_cell: list[tuple[Doubles, Doubles]], clean: Figure, table: dict[str, dict[int, Figure]], settings: Settings
) -> tuple[Figure, Figure]:
    parts = per_cell[0][0].shape[1]
    sums = np.concatenate([sums for sums, _ in per_cell], axis=1)
    counts = np.concatenate([counts for _, counts in per_cell], axis=1)
    drawn = replicate_means(sums, counts, settings.bootstrap).reshape(-1, len(per_cell), parts).mean(axis=2)
    means = drawn[:, 1:].mean(axis=1)
    ratios = np.divide(means, drawn[:, 0], out=np.full_like(means, np.nan), where=drawn[:, 0] > 0)
    mean = float(np.mean([figure.value for cells in table.values() for figure in cells.values()]))
    kept = mean / clean.value if clean.value > 0 else float("nan")
    how = settings.bootstrap
    return figure_of(percentile(means, mean, how), len(sums)), figure_of(percentile(ratios, kept, how), len(sums))
