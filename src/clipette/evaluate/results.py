"""What evaluation returns: frozen records with figures, their intervals, and the per-item values behind them.

Every proportion is a fraction from 0 to 1. Each result offers ``figures()``, a flat ``name -> Figure`` mapping from
which retention, CSV rows and tables are made, and ``to_dict()``, plain JSON values (NaN becomes null). Per-item values
(field ``items``) are left out of ``to_dict()``: they serve paired comparisons while the process lives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from clipette.types import Failure, Floats, Ints

Doubles: TypeAlias = npt.NDArray[np.float64]
Row: TypeAlias = dict[str, "str | float | int | None"]

ROW_COLUMNS = ("model", "kind", "dataset", "measure", "value", "low", "high", "count")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its bootstrap interval. ``low``/``high`` are None where no interval applies; ``count`` items."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


class Result(Protocol):
    """What every result offers to tables, reports and retention."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        ...

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        ...

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class Items:
    """What stands behind the figures, item by item, so that two models can be compared on the same items.

    Item i is ``keys[i]``; ``sums[name][i]`` is the sum of measure ``name`` over its queries and ``counts[name][i]``
    their number (5 for an image with five captions, 0 where the item does not take part): figure = sums.sum() /
    counts.sum().
    """

    keys: tuple[str, ...] = ()
    sums: Mapping[str, Doubles] = field(default_factory=dict)
    counts: Mapping[str, Doubles] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CalibrationBins:
    """A reliability diagram: bin b covers confidences (edges[b], edges[b + 1]]; empty bins have count 0 and zeros."""

    edges: Doubles
    confidence: Doubles
    accuracy: Doubles
    count: Ints


@dataclass(frozen=True, slots=True)
class ZeroShotResult:
    """Classification of one data set by one model.

    ``confusion[i, j]`` counts items of class i predicted as j (an exact tie is split evenly, so entries may be
    fractions); None above 200 classes. ``predicted[i]`` and ``confidence[i]`` belong to ``items.keys[i]`` (first class
    among exact ties; softmax probability). ``base``/``novel``/``harmonic_mean``: base images among base classes, novel
    among novel (CoOp's protocol), or None. ``prediction_entropy``: entropy of the predicted-class histogram /
    ln(classes); near 0 = collapsed onto few classes. ``protocol``: whether the model was trained on these images or
    classes (``evaluate/protocol.py``); empty where nobody knows.
    """

    model: str
    dataset: str
    templates: str
    count: int
    class_names: tuple[str, ...]
    top1: Figure
    top5: Figure
    mean_per_class: Figure
    ece: Figure
    prediction_entropy: Figure
    per_class: dict[str, float | None]
    by_domain: dict[str, Figure]
    confusion: Doubles | None
    calibration: CalibrationBins
    labels: Ints
    predicted: Ints
    confidence: Floats
    base: Figure | None = None
    novel: Figure | None = None
    harmonic_mean: Figure | None = None
    protocol: str = ""
    unlabelled: int = 0
    failures: tuple[Failure, ...] = ()
    items: Items = Items()

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        out = {
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "ece": self.ece,
            "prediction_entropy": self.prediction_entropy,
        }
        for name, figure in (("base", self.base), ("novel", self.novel), ("harmonic_mean", self.harmonic_mean)):
            if figure is not None:
                out[name] = figure
        out.update({f"domain/{name}": figure for name, figure in self.by_domain.items()})
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class RetrievalExample:
    """One query and what came back, best first: texts for an image query, image keys for a text query."""

    direction: str  # "i2t" or "t2i"
    query: str  # an image key (i2t) or a caption (t2i)
    results: tuple[str, ...]
    relevant: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Image-text retrieval in both directions.

    ``i2t`` and ``t2i`` map ``hit@k`` (any relevant item among the first k: the "R@k" of the literature), ``recall@k``
    (true recall), ``precision@k``, ``ndcg@k``, ``mrr``, ``map``, and ``result_entropy``/``coverage`` (diversity of the
    top 10) to figures. ``mean_recall``: mean of hit@1, hit@5, hit@10 over both directions, the name the field gives
    that mean.
    """

    model: str
    dataset: str
    images: int
    texts: int
    i2t: dict[str, Figure]
    t2i: dict[str, Figure]
    mean_recall: Figure
    examples: tuple[RetrievalExample, ...] = ()
    without_captions: int = 0
    failures: tuple[Failure, ...] = ()
    items: Items = Items()

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        out = {"mean_recall": self.mean_recall}
        out.update({f"i2t/{name}": figure for name, figure in self.i2t.items()})
        out.update({f"t2i/{name}": figure for name, figure in self.t2i.items()})
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class ShiftResult:
    """Top-1 per domain. ``reference``: the unshifted domain's top-1, if one was named; ``gap`` = reference - mean.

    ``mean`` is the plain mean of the domains (each counts once, whatever its size), the reference apart.
    """

    model: str
    dataset: str
    domains: dict[str, Figure]
    mean: Figure
    worst: Figure
    worst_domain: str
    reference_domain: str | None = None
    reference: Figure | None = None
    gap: Figure | None = None

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        out = {"mean": self.mean, "worst": self.worst}
        if self.reference is not None and self.gap is not None:
            out.update(reference=self.reference, gap=self.gap)
        out.update({f"domain/{name}": figure for name, figure in self.domains.items()})
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class RobustnessResult:
    """``measure`` (``top1`` or ``mean_recall``) under ``table[corruption][strength]``; ``mean`` over all cells.

    ``relative`` = mean / clean: the share of quality that survives.
    """

    model: str
    dataset: str
    measure: str
    clean: Figure
    table: dict[str, dict[int, Figure]]
    mean: Figure
    relative: Figure
    failures: tuple[Failure, ...] = ()

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        out = {"clean": self.clean, "mean": self.mean, "relative": self.relative}
        for corruption, cells in self.table.items():
            out.update({f"{corruption}/{strength}": figure for strength, figure in cells.items()})
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class AgreementResult:
    """How alike student and teacher behave on the same images; each uses its own class vectors and its own scale.

    ``top1``: same first class. ``top5``: share of the five best classes in common. ``kl``: KL(teacher || student) in
    nats per image. ``neighbours``: share of the 10 nearest images in common. ``cka``: linear CKA of the image vectors.
    ``cosine``, ``distance``: mean cosine, and mean length of the difference, of the two vectors of an image; None where
    the spaces differ. ``text_neighbours``: share of the 10 class texts nearest to an image in common; ``text_kl``:
    ``kl`` over the teacher's 10 nearest alone; None up to 10 classes. ``top1``, ``top5``, ``kl`` are None for a data
    set without class names.
    """

    model: str
    teacher: str
    dataset: str
    count: int
    neighbours: Figure
    cka: Figure
    top1: Figure | None = None
    top5: Figure | None = None
    kl: Figure | None = None
    cosine: Figure | None = None
    distance: Figure | None = None
    text_neighbours: Figure | None = None
    text_kl: Figure | None = None
    failures: tuple[Failure, ...] = ()

    def figures(self) -> dict[str, Figure]:
        """Flat ``name -> Figure``."""
        named = {
            "top1": self.top1,
            "top5": self.top5,
            "kl": self.kl,
            "text_neighbours": self.text_neighbours,
            "text_kl": self.text_kl,
            "cosine": self.cosine,
            "distance": self.distance,
        }
        out = {name: figure for name, figure in named.items() if figure is not None}
        return out | {"neighbours": self.neighbours, "cka": self.cka}

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class RetentionRow:
    """One figure kept: ``ratio`` = student / teacher (1 = all kept); the interval is paired where items could be."""

    kind: str
    dataset: str
    measure: str
    teacher: float
    student: float
    ratio: Figure


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """Student over teacher for every figure where more is better."""

    model: str
    teacher: str
    rows: tuple[RetentionRow, ...]

    def get(self, kind: str, dataset: str, measure: str) -> RetentionRow:
        """The row of one figure. Raises ``KeyError`` naming it where it was not measured."""
        for row in self.rows:
            if (row.kind, row.dataset, row.measure) == (kind, dataset, measure):
                return row
        raise KeyError(f"no retention of {kind} {measure!r} on {dataset!r}")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, without per-item values."""
        return _record(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured of one model, and of its teacher if one was given. Mappings are by data set name."""

    model: str
    space: str
    zero_shot: dict[str, ZeroShotResult] = field(default_factory=dict)
    retrieval: dict[str, RetrievalResult] = field(default_factory=dict)
    shift: dict[str, ShiftResult] = field(default_factory=dict)
    robustness: dict[str, RobustnessResult] = field(default_factory=dict)
    agreement: dict[str, AgreementResult] = field(default_factory=dict)
    retention: RetentionResult | None = None
    teacher: Evaluation | None = None
    settings: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    def by_kind(self) -> dict[str, Mapping[str, Result]]:
        """``{"zero_shot": {dataset: result}, ...}``, empty kinds left out."""
        kinds: dict[str, Mapping[str, Result]] = {
            "zero_shot": self.zero_shot,
            "retrieval": self.retrieval,
            "shift": self.shift,
            "robustness": self.robustness,
            "agreement": self.agreement,
        }
        return {kind: results for kind, results in kinds.items() if results}

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dump``: nested as the dataclasses are, without per-item values."""
        return _record(self)

    def rows(self) -> list[Row]:
        """Long-form rows with ``ROW_COLUMNS``, the teacher's after the student's, for CSV."""
        rows: list[Row] = []
        for kind, results in self.by_kind().items():
            for dataset, result in results.items():
                for measure, figure in result.figures().items():
                    rows.append(_row(self.model, kind, dataset, measure, figure))
        if self.retention is not None:
            for kept in self.retention.rows:
                rows.append(_row(self.model, "retention", kept.dataset, f"{kept.kind}/{kept.measure}", kept.ratio))
        return rows + (self.teacher.rows() if self.teacher is not None else [])


def _row(model: str, kind: str, dataset: str, measure: str, figure: Figure) -> Row:
    values = (model, kind, dataset, measure, plain(figure.value), plain(figure.low), plain(figure.high), figure.count)
    return dict(zip(ROW_COLUMNS, values, strict=True))  # type: ignore[arg-type]


_LIVE_ONLY = frozenset({"items", "labels", "predicted", "confidence"})


def _record(value: object) -> dict[str, object]:
    if not is_dataclass(value):
        raise TypeError(f"not a record: {type(value).__name__}")
    live = _LIVE_ONLY if isinstance(value, ZeroShotResult | RetrievalResult) else frozenset()
    return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name not in live}


def plain(value: object) -> object:
    """JSON values of ``value``: arrays become lists, NaN and infinities null, keys strings, records mappings."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"cannot be written as JSON: {type(value).__name__}")
