"""Models side by side: cost and figures of each, measured against the first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipette.errors import ConfigError
from clipette.evaluate.cost import ModelCost, ratios
from clipette.evaluate.results import ROW_COLUMNS, Evaluation, Figure, Row, plain

# What tables and charts show first, by kind; everything else stands in the CSV and in the report's full list.
HEADLINES: dict[str, tuple[str, ...]] = {
    "zero_shot": ("top1", "top5", "mean_per_class", "base", "novel", "harmonic_mean", "ece"),
    "retrieval": (
        "mean_recall",
        *(f"{way}/hit@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)),
        "i2t/map",
        "t2i/mrr",
    ),
    "shift": ("reference", "mean", "worst", "gap"),
    "robustness": ("clean", "mean", "relative"),
    "agreement": ("top1", "top5", "kl", "text_neighbours", "text_kl", "neighbours", "cka", "cosine", "distance"),
}
LOWER_IS_BETTER = frozenset({"ece", "gap", "kl", "text_kl", "distance"})


@dataclass(frozen=True)
class Entry:
    """One model of a comparison. ``card``: what its maker recorded; ``run``: its run directory, if it has one."""

    evaluation: Evaluation
    cost: ModelCost | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    run: Path | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.evaluation.model


@dataclass(frozen=True)
class Line:
    """One measure of all models: ``values[i]`` and ``kept[i]`` (share of the first model's value) of model i."""

    kind: str
    dataset: str
    measure: str
    values: tuple[Figure | None, ...]
    kept: tuple[Figure | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Any number of models; the first is what the others are measured by. Names are made unique."""

    entries: tuple[Entry, ...]
    names: tuple[str, ...]

    def lines(self, *, headline: bool = True) -> list[Line]:
        """Measure by measure, in the order of kinds and data sets; only ``HEADLINES``, or everything."""
        found: dict[tuple[str, str, str], None] = {}
        for kind, wanted in HEADLINES.items():
            for dataset in _unique(d for e in self.entries for d in e.evaluation.by_kind().get(kind, {})):
                measures = _unique(name for entry in self.entries for name in _figures(entry.evaluation, kind, dataset))
                shown = [name for name in wanted if name in measures]
                shown += [] if headline else [name for name in measures if name not in wanted]
                found.update(dict.fromkeys((kind, dataset, name) for name in shown))
        return [self._line(*key) for key in found]

    def _line(self, kind: str, dataset: str, measure: str) -> Line:
        values = tuple(_figures(entry.evaluation, kind, dataset).get(measure) for entry in self.entries)
        return Line(
            kind, dataset, measure, values, tuple(_kept(e.evaluation, kind, dataset, measure) for e in self.entries)
        )

    def ratios(self) -> list[dict[str, float | None] | None]:
        """``cost.ratios`` of each model to the first; None where either has no cost."""
        first = self.entries[0].cost
        return [None if first is None or e.cost is None else ratios(first, e.cost) for e in self.entries]

    def rows(self) -> list[Row]:
        """Long-form rows with ``results.ROW_COLUMNS``: figures, retention, cost and ratios of each model."""
        rows: list[Row] = []
        for entry, name, ratio in zip(self.entries, self.names, self.ratios(), strict=True):
            rows += [{**row, "model": name} for row in entry.evaluation.rows() if row["model"] == entry.name]
            costs = {} if entry.cost is None else entry.cost.flat()
            for kind, values in (("cost", costs), ("ratio", ratio or {})):
                for measure, value in values.items():
                    row = (name, kind, "", measure, value, None, None, 1)
                    rows.append(dict(zip(ROW_COLUMNS, row, strict=True)))
        return rows

    def to_csv(self) -> str:
        """``rows()`` as CSV."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ROW_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return buffer.getvalue()

    def to_json(self) -> dict[str, object]:
        """Plain values: every model's evaluation, cost, ratios and card."""
        models = []
        for entry, name, ratio in zip(self.entries, self.names, self.ratios(), strict=True):
            cost = None if entry.cost is None else entry.cost.to_dict()
            evaluation = entry.evaluation.to_json()
            evaluation["teacher"] = None if entry.evaluation.teacher is None else entry.evaluation.teacher.model
            value = {"name": name, "evaluation": evaluation, "cost": cost, "ratios": ratio, "card": dict(entry.card)}
            models.append(value)
        return {"reference": self.names[0], "models": [plain(model) for model in models]}

    def summary(self) -> dict[str, object]:
        """The headline numbers: ``{name: {"figures": {dataset: {kind: {measure: value}}}, "retention": …, …}}``.

        ``protocol``, by data set, where it is known: ``transductive`` or ``inductive``, and why.
        """
        out: dict[str, dict[str, object]] = {name: {} for name in self.names}
        for line in self.lines():
            for name, figure, kept in zip(self.names, line.values, line.kept, strict=True):
                if figure is None:
                    continue
                own = out[name].setdefault("figures", {})
                assert isinstance(own, dict)
                group = own.setdefault(line.dataset, {}).setdefault(line.kind, {})
                group[line.measure] = plain(figure.value)
                if kept is not None:
                    retained = out[name].setdefault("retention", {})
                    assert isinstance(retained, dict)
                    retained.setdefault(line.dataset, {})[f"{line.kind}/{line.measure}"] = plain(kept.value)
        for name, entry, ratio in zip(self.names, self.entries, self.ratios(), strict=True):
            protocols = {data: each.protocol for data, each in entry.evaluation.zero_shot.items() if each.protocol}
            if protocols:
                out[name]["protocol"] = protocols
            if entry.cost is not None:
                out[name]["cost"] = plain(entry.cost.flat())
            if ratio is not None and name != self.names[0]:
                out[name]["ratios"] = plain(ratio)
        return dict(out)


def compare(entries: Sequence[Entry]) -> Comparison:
    """Put models side by side. Raises ``ConfigError`` for none. Two of one name become ``name (1)``, ``name (2)``."""
    if not entries:
        raise ConfigError("no model to compare: name one or more")
    names = [entry.name for entry in entries]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return Comparison(tuple(entries), tuple(unique))


def _figures(evaluation: Evaluation, kind: str, dataset: str) -> dict[str, Figure]:
    result = evaluation.by_kind().get(kind, {}).get(dataset)
    return {} if result is None else result.figures()


def _kept(evaluation: Evaluation, kind: str, dataset: str, measure: str) -> Figure | None:
    if evaluation.retention is None:
        return None
    try:
        return evaluation.retention.get(kind, dataset, measure).ratio
    except KeyError:
        return None


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
