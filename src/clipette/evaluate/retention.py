"""What was kept: student over teacher, figure by figure, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipette.errors import DataError
from clipette.evaluate.figures import figure_of, paired_columns
from clipette.evaluate.results import (
    Evaluation,
    Figure,
    Items,
    Result,
    RetentionResult,
    RetentionRow,
    RetrievalResult,
    ZeroShotResult,
)
from clipette.evaluate.retrieval import MEAN_RECALL_KS
from clipette.metrics.bootstrap import Bootstrap, percentile, replicate_means

# Of these, less is better or neither is: a ratio would say nothing.
NOT_RETAINED = frozenset({"ece", "gap", "kl", "prediction_entropy", "result_entropy", "coverage"})
_PARTS = {"mean_recall": tuple(f"{d}/hit@{k}" for d in ("i2t", "t2i") for k in MEAN_RECALL_KS)}


def retention(teacher: Evaluation, student: Evaluation, how: Bootstrap = Bootstrap()) -> RetentionResult:
    """student / teacher of every figure both have where more is better; NaN where the teacher has 0.

    Intervals are paired: each replicate draws the same images for both. Figures without per-item values have none.
    Agreement is left out: a teacher has none with itself. Raises ``DataError`` where no figure is shared.
    """
    rows: list[RetentionRow] = []
    theirs = teacher.by_kind()
    for kind, results in student.by_kind().items():
        if kind == "agreement":
            continue
        for dataset, result in results.items():
            other = theirs.get(kind, {}).get(dataset)
            if other is not None:
                rows += _rows(kind, dataset, other, result, how)
    if not rows:
        raise DataError(f"{teacher.model} and {student.model} share no figure: evaluate both on the same data sets")
    return RetentionResult(student.model, teacher.model, tuple(rows))


def _rows(kind: str, dataset: str, teacher: Result, student: Result, how: Bootstrap) -> list[RetentionRow]:
    theirs = teacher.figures()
    kept = {
        name: figure
        for name, figure in student.figures().items()
        if name in theirs and name.rsplit("/", 1)[-1] not in NOT_RETAINED
    }
    left, right = _items_of(student), _items_of(teacher)
    intervals = _paired_ratios(left, right, list(kept), how) if left is not None and right is not None else {}
    rows = []
    for name, figure in kept.items():
        ratio = figure.value / theirs[name].value if theirs[name].value > 0 else float("nan")
        found = Figure(ratio, count=figure.count)
        if name in intervals:
            # The value is the ratio of the two reported figures, also where each model failed on other images.
            found = Figure(ratio, intervals[name].low, intervals[name].high, figure.count)
        rows.append(RetentionRow(kind, dataset, name, theirs[name].value, figure.value, found))
    return rows


def _items_of(result: Result) -> Items | None:
    return result.items if isinstance(result, ZeroShotResult | RetrievalResult) else None


def _paired_ratios(left: Items, right: Items, names: list[str], how: Bootstrap) -> Mapping[str, Figure]:
    parts = {name: _PARTS.get(name, (name,)) for name in names}
    parts = {name: own for name, own in parts.items() if all(p in left.sums and p in right.sums for p in own)}
    flat = list(dict.fromkeys(part for own in parts.values() for part in own))
    if not flat or not set(left.keys) & set(right.keys):
        return {}
    pairs = [paired_columns(left, right, part) for part in flat]
    drawn = replicate_means(np.concatenate([s for s, _ in pairs], 1), np.concatenate([c for _, c in pairs], 1), how)
    column = {part: 2 * position for position, part in enumerate(flat)}
    out = {}
    for name, own in parts.items():
        student = np.mean([drawn[:, column[part]] for part in own], axis=0)
        teacher = np.mean([drawn[:, column[part] + 1] for part in own], axis=0)
        ratios = np.divide(student, teacher, out=np.full_like(student, np.nan), where=teacher > 0)
        out[name] = figure_of(percentile(ratios, float("nan"), how), len(drawn))
    return out
