"""From logits and labels to a ``ZeroShotResult``, by blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipette.data.dataset import Dataset
from clipette.errors import DataError
from clipette.evaluate.encoding import ReadSamples, Settings
from clipette.evaluate.figures import figure_of, figures_of
from clipette.evaluate.results import CalibrationBins, Doubles, Figure, Items, ZeroShotResult
from clipette.metrics import calibration, classification
from clipette.metrics.bootstrap import Bootstrap, Interval, percentile, replicate_means, statistic_interval
from clipette.metrics.diversity import normalised_entropy
from clipette.metrics.similarity import row_blocks
from clipette.types import Floats, Ints

CONFUSION_UP_TO = 200
BINS = 15


@dataclass(frozen=True, slots=True)
class Scored:
    """Per-item outcome of a classification, in the order of the items.

    ``halves``: for ``base`` and ``novel``, (correct among the classes of its own half [N], takes part [N]).
    """

    labels: Ints
    top1: Doubles
    top5: Doubles
    predicted: Ints
    confidence: Doubles
    confusion: Doubles | None
    halves: dict[str, tuple[Doubles, Doubles]]


def score_blocks(logits: Callable[[slice], Floats], labels: Ints, classes: int, base_novel: bool = False) -> Scored:
    """Score rows [n, C] of ``logits`` block by block: the full [N, C] matrix is never held.

    Raises ``DataError`` where base and novel are asked of fewer than two classes.
    """
    if base_novel and classes < 2:
        raise DataError(f"base and novel need two classes or more, there are {classes}")
    count = len(labels)
    middle = classification.base_count(classes)
    ranges = {"base": (0, middle), "novel": (middle, classes)} if base_novel else {}
    halves = {name: (np.zeros(count), np.zeros(count)) for name in ranges}
    top1, top5, confidence = np.zeros(count), np.zeros(count), np.zeros(count)
    predicted = np.zeros(count, dtype=np.int64)
    confusion = np.zeros((classes, classes)) if classes <= CONFUSION_UP_TO else None
    for rows in row_blocks(count, classes, 16 << 20):
        block, own = logits(rows), labels[rows]
        top1[rows] = classification.correct_at(block, own, 1)
        top5[rows] = classification.correct_at(block, own, 5)
        predicted[rows] = block.argmax(axis=1)
        confidence[rows] = calibration.softmax(block).max(axis=1)
        if confusion is not None:
            confusion += classification.confusion(block, own)
        for name, (first, end) in ranges.items():
            correct, takes_part = halves[name]
            inside = np.flatnonzero((own >= first) & (own < end))
            correct[inside + rows.start] = classification.correct_at(block[inside, first:end], own[inside] - first, 1)
            takes_part[inside + rows.start] = 1.0
    return Scored(labels, top1, top5, predicted, confidence, confusion, halves)


def scored_result(
    model: str,
    dataset: Dataset,
    templates: str,
    names: tuple[str, ...],
    read: ReadSamples,
    scored: Scored,
    settings: Settings,
) -> ZeroShotResult:
    """All figures of a classification with their intervals."""
    how = settings.bootstrap
    items, domains = _items(read, scored)
    figures, replicates = figures_of(items, how)
    per_class = classification.per_class_accuracy(scored.top1, scored.labels, len(names))
    bins = calibration.reliability(scored.confidence, scored.top1, BINS)
    histogram = np.bincount(scored.predicted, minlength=len(names))
    return ZeroShotResult(
        model=model,
        dataset=dataset.name,
        templates=templates,
        count=len(read.samples),
        class_names=names,
        top1=figures["top1"],
        top5=figures["top5"],
        mean_per_class=_mean_per_class(scored, len(names), how),
        ece=_ece(scored, how),
        prediction_entropy=Figure(normalised_entropy(histogram), count=len(read.samples)),
        per_class={name: None if np.isnan(a) else float(a) for name, a in zip(names, per_class, strict=True)},
        by_domain={name: figures[f"domain/{name}"] for name in domains},
        confusion=scored.confusion,
        calibration=CalibrationBins(bins.edges, bins.confidence, bins.accuracy, bins.count),
        labels=scored.labels,
        predicted=scored.predicted,
        confidence=scored.confidence.astype(np.float32),
        base=figures.get("base"),
        novel=figures.get("novel"),
        harmonic_mean=_harmonic(figures, replicates, how) if scored.halves else None,
        unlabelled=len(dataset.samples) - len(read.samples) - len(read.failures),
        failures=read.failures,
        items=items,
    )


def _items(read: ReadSamples, scored: Scored) -> tuple[Items, list[str]]:
    ones = np.ones(len(read.samples))
    sums = {"top1": scored.top1, "top5": scored.top5}
    counts = {"top1": ones, "top5": ones}
    for name, (correct, takes_part) in scored.halves.items():
        sums[name], counts[name] = correct, takes_part
    domains = sorted({sample.domain for sample in read.samples if sample.domain is not None})
    for domain in domains:
        inside = np.array([sample.domain == domain for sample in read.samples], dtype=np.float64)
        sums[f"domain/{domain}"], counts[f"domain/{domain}"] = scored.top1 * inside, inside
    return Items(tuple(sample.key for sample in read.samples), sums, counts), domains


def _harmonic(figures: dict[str, Figure], replicates: dict[str, Doubles], how: Bootstrap) -> Figure:
    base, novel = figures["base"], figures["novel"]
    if np.isnan(base.value) or np.isnan(novel.value):
        raise DataError("base and novel were asked for, but one half of the classes has no images here")
    pairs = zip(replicates["base"].tolist(), replicates["novel"].tolist(), strict=True)
    drawn = np.array([classification.harmonic_mean(b, n) for b, n in pairs])
    value = classification.harmonic_mean(base.value, novel.value)
    return figure_of(percentile(drawn, value, how), base.count + novel.count)


def _ece(scored: Scored, how: Bootstrap) -> Figure:
    # N * ECE is the sum over bins of |sum of (correct - confidence)|: each inner sum is linear in the items.
    count = len(scored.top1)
    edges = np.linspace(0.0, 1.0, BINS + 1)
    index = np.clip(np.searchsorted(edges, scored.confidence, "left") - 1, 0, BINS - 1)
    gaps = np.zeros((count, BINS))
    gaps[np.arange(count), index] = scored.top1 - scored.confidence
    drawn = np.abs(replicate_means(gaps, np.ones_like(gaps), how)).sum(axis=1)
    value = calibration.expected_calibration_error(scored.confidence, scored.top1, BINS)
    # A resample adds noise to each bin, and |noise| only ever adds: its ECE lies above the sample's, as the sample's
    # does above the truth. Without this shift the interval of a well calibrated model excludes its own figure.
    centred = np.maximum(drawn - drawn.mean() + value, 0.0)
    return figure_of(percentile(centred, value, how), count)


def _mean_per_class(scored: Scored, classes: int, how: Bootstrap) -> Figure:
    def statistic(index: Ints) -> float:
        return classification.mean_per_class(scored.top1[index], scored.labels[index], classes)

    interval: Interval = statistic_interval(statistic, len(scored.top1), how)
    return figure_of(interval, len(scored.top1))
