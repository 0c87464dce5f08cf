"""Does the student behave like its teacher? Choices, probabilities, neighbours, geometry; no labels needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import DataError
from clipette.evaluate.encoding import ReadSamples, Settings, encode_dataset, text_side
from clipette.evaluate.figures import figures_of
from clipette.evaluate.results import AgreementResult, Doubles, Figure, Items
from clipette.evaluate.zero_shot import Templates, class_vectors
from clipette.metrics import agreement as measures
from clipette.metrics.similarity import cosines, row_blocks
from clipette.types import Encoder, Failure, Floats

NEIGHBOURS = 10  # nearest images, and nearest class texts
NEIGHBOUR_QUERIES = 2000


def agreement(
    teacher: Encoder,
    student: Encoder,
    dataset: Dataset,
    *,
    class_names: Sequence[str] | None = None,
    templates: Templates = "single",
    descriptions: Mapping[str, Sequence[str]] | None = None,
    teacher_text: Encoder | None = None,
    student_text: Encoder | None = None,
    settings: Settings = Settings(),
) -> AgreementResult:
    """Compare two encoders on the images both can read; each with its own class vectors, scale and bias.

    ``class_names``: what to choose from (default: the data set's; any list will do, images need no labels). The spaces
    may differ; ``cosine`` and ``distance`` are given only where they are equal. Neighbourhoods: the 10 nearest of all
    images, asked for at most 2,000 images drawn by the bootstrap's seed; and, where there are more than 10 classes, the
    10 class texts nearest to each image. ``teacher_text``/``student_text``: see ``zero_shot``.
    Raises ``DataError`` past ``settings.max_failures``, or where the two read no image in common.
    """
    sides = [encode_dataset(encoder, dataset, dataset.samples, settings) for encoder in (teacher, student)]
    keys, vectors = _common(dataset, sides)
    values: dict[str, Doubles] = {}
    names = tuple(class_names) if class_names is not None else dataset.class_names
    if names:
        size = settings.text_batch_size
        texts = [
            class_vectors(text_side(encoder, text), names, templates, descriptions, batch_size=size)
            for encoder, text in ((teacher, teacher_text), (student, student_text))
        ]
        values |= _choices((teacher, student), vectors, texts)
    if teacher.space == student.space and teacher.dim == student.dim:
        values["cosine"] = measures.cosine(vectors[0], vectors[1])
        values["distance"] = measures.distance(vectors[0], vectors[1])
    ones = np.ones(len(keys))
    items = Items(keys, values, dict.fromkeys(values, ones))
    figures = figures_of(items, settings.bootstrap)[0] if values else {}
    return AgreementResult(
        model=student.name,
        teacher=teacher.name,
        dataset=dataset.name,
        count=len(keys),
        neighbours=_neighbours(vectors, settings),
        cka=Figure(measures.linear_cka(vectors[0], vectors[1]), count=len(keys)),
        top1=figures.get("top1"),
        top5=figures.get("top5"),
        kl=figures.get("kl"),
        cosine=figures.get("cosine"),
        distance=figures.get("distance"),
        text_neighbours=figures.get("text_neighbours"),
        text_kl=figures.get("text_kl"),
        failures=_failures(sides),
    )


def _common(dataset: Dataset, sides: Sequence[ReadSamples]) -> tuple[tuple[str, ...], list[Floats]]:
    rows = [{sample.key: row for row, sample in enumerate(side.samples)} for side in sides]
    keys = tuple(sample.key for sample in dataset.samples if all(sample.key in each for each in rows))
    if len(keys) < 2:
        raise DataError(f"{dataset.reference}: agreement needs two images that both models read, got {len(keys)}")
    return keys, [side.vectors[[each[key] for key in keys]] for side, each in zip(sides, rows, strict=True)]


def _choices(
    encoders: tuple[Encoder, Encoder], vectors: Sequence[Floats], texts: Sequence[Floats]
) -> dict[str, Doubles]:
    count, classes = len(vectors[0]), len(texts[0])
    # Of 10 classes or fewer all are among the 10 nearest: there is no neighbourhood to compare.
    near = ("text_neighbours", "text_kl") if classes > NEIGHBOURS else ()
    out = {name: np.zeros(count) for name in ("top1", "top5", "kl", *near)}
    for rows in row_blocks(count, classes, 16 << 20):
        logits = []
        for encoder, own, text in zip(encoders, vectors, texts, strict=True):
            scaled = cosines(own[rows], text) * np.float32(encoder.logit_scale)
            logits.append(scaled + np.float32(encoder.logit_bias))
        out["top1"][rows] = measures.overlap_at(logits[0], logits[1], 1)
        out["top5"][rows] = measures.overlap_at(logits[0], logits[1], 5)
        out["kl"][rows] = measures.kl_divergence(logits[0], logits[1])
        if near:
            out["text_neighbours"][rows] = measures.overlap_at(logits[0], logits[1], NEIGHBOURS)
            out["text_kl"][rows] = measures.top_k_kl(logits[0], logits[1], NEIGHBOURS)
    return out


def _neighbours(vectors: Sequence[Floats], settings: Settings) -> Figure:
    count = len(vectors[0])
    asked = np.arange(count)
    if count > NEIGHBOUR_QUERIES:
        asked = np.sort(np.random.default_rng(settings.bootstrap.seed).permutation(count)[:NEIGHBOUR_QUERIES])
    shares = measures.neighbour_overlap(vectors[0], vectors[1], NEIGHBOURS, rows=asked)
    items = Items(tuple(map(str, asked)), {"neighbours": shares}, {"neighbours": np.ones(len(asked))})
    return figures_of(items, settings.bootstrap)[0]["neighbours"]


def _failures(sides: Sequence[ReadSamples]) -> tuple[Failure, ...]:
    """Each image once, though both may have failed on it."""
    return tuple({failure.key: failure for side in sides for failure in side.failures}.values())
