"""The report: one HTML file with everything inside, for one model, for a student and its teacher, or for several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from clipette.data.dataset import Dataset
from clipette.evaluate import plots
from clipette.evaluate.compare import LOWER_IS_BETTER, Comparison, Line
from clipette.evaluate.curves import dev_curves, read_log
from clipette.evaluate.page import origin, render
from clipette.evaluate.pictures import ClassifiedPicture, Search, Thumbnails, classified_pictures, searches
from clipette.evaluate.results import Figure, plain
from clipette.types import Failure

KINDS = {
    "zero_shot": "Zero-shot classification",
    "retrieval": "Image–text retrieval",
    "shift": "Domain shift",
    "robustness": "Robustness to corruptions",
    "agreement": "Agreement with the reference",
}
WORDS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_per_class": "mean per class",
    "base": "base classes",
    "novel": "novel classes",
    "harmonic_mean": "harmonic mean (base, novel)",
    "ece": "calibration error (ECE)",
    "mean_recall": "mean recall",
    "reference": "home domain",
    "mean": "mean",
    "worst": "worst domain",
    "gap": "gap to home domain",
    "clean": "clean images",
    "relative": "share that survives",
    "kl": "KL(reference ‖ model), nats",
    "text_neighbours": "10 nearest class texts shared",
    "text_kl": "KL over the reference's 10 nearest class texts, nats",
    "neighbours": "10 nearest neighbours shared",
    "cka": "CKA",
    "cosine": "cosine",
    "distance": "distance",
    "prediction_entropy": "entropy of predictions",
}
AGREEMENT_WORDS = {"top1": "same first class", "top5": "five best classes shared"}
FAILURES_SHOWN = 50


@dataclass(frozen=True)
class Chart:
    """One picture with its heading and the words that stand for it."""

    title: str
    png: bytes
    about: str = ""


@dataclass(frozen=True)
class Examples:
    """Pictures of one data set, seen by one model."""

    dataset: str
    right: list[ClassifiedPicture]
    wrong: list[ClassifiedPicture]
    searches: list[Search]


def build_report(comparison: Comparison, datasets: Mapping[str, Dataset], *, title: str) -> str:
    """The page: summary, cost, charts, examples, all figures, failures and provenance.

    ``datasets``: by the names that the evaluations use. Examples are the last model's.
    """
    lines = comparison.lines()
    return render(
        "report.html.j2",
        {
            "title": title,
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "names": comparison.names,
            "headline": f"{comparison.names[-1]} at a glance" if len(comparison.names) > 1 else "",
            "tiles": tiles(comparison, lines),
            "groups": grouped(lines),
            "wordings": wordings(comparison),
            "everything": grouped(comparison.lines(headline=False)),
            "costs": [entry.cost for entry in comparison.entries],
            "ratios": comparison.ratios(),
            "charts": charts(comparison),
            "examples": examples(comparison, datasets),
            "failures": failures(comparison, datasets),
            "failures_shown": FAILURES_SHOWN,
            "cards": cards(comparison),
            "settings": pretty(comparison.entries[-1].evaluation.settings),
            "data": [(name, data.reference, len(data), data.fingerprint()) for name, data in datasets.items()],
            "origin": origin(),
            "word": word,
            "lower": LOWER_IS_BETTER,
        },
    )


def tiles(comparison: Comparison, lines: Sequence[Line]) -> list[tuple[str, float, str, str]]:
    """The few numbers to see first: (what, value, how it is written, beneath) of the last model."""
    last = len(comparison.names) - 1
    out: list[tuple[str, float, str, str]] = []
    for kind, measure in (("zero_shot", "top1"), ("retrieval", "mean_recall")):
        line = next((each for each in lines if (each.kind, each.measure) == (kind, measure)), None)
        figure = None if line is None else line.values[last]
        if line is None or figure is None:
            continue
        kept = line.kept[last]
        if kept is None:
            out.append((word(kind, measure), figure.value, "number", line.dataset))
        else:
            beneath = f"{figure.value:.3f} of {_value(line.values[0])} on {line.dataset}"
            out.append((f"of the {word(kind, measure)} kept", kept.value, "number", beneath))
    cost, ratio = comparison.entries[last].cost, comparison.ratios()[last]
    if cost is not None and ratio is not None and last > 0:
        for what, name, unit in (("fewer GMACs", "gmacs", "GMACs"), ("fewer parameters", "compression", "")):
            own = cost.flat()["gmacs" if name == "gmacs" else "params"] or 0.0
            beneath = f"{own:.3g} {unit}, image and text together" if unit else f"{own / 1e6:.3g} M"
            if ratio[name] is not None:
                out.append((what, ratio[name] or 0.0, "times", beneath))
        if ratio["image_speedup"] is not None and cost.image is not None:
            out.append(("faster on one image", ratio["image_speedup"], "times", f"{cost.image.ms:.3g} ms"))
    elif cost is not None:
        out.append(("GMACs", cost.flat()["gmacs"] or 0.0, "number", "both towers, one input each"))
        out.append(("parameters", float(cost.params), "count", "whole model"))
    return out


def _value(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.value:.3f}"


def grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines by (what is measured, data set)."""
    out: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        out.setdefault((KINDS[line.kind], line.dataset), []).append(line)
    return out


def wordings(comparison: Comparison) -> dict[tuple[str, str], str]:
    """By (what is measured, data set): the prompt templates that turned class names into texts, and, where known, the
    protocol: of the one model, or with the names of those that it holds for."""
    out: dict[tuple[str, str], str] = {}
    held: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, entry in zip(comparison.names, comparison.entries, strict=True):
        for dataset, result in entry.evaluation.zero_shot.items():
            place = (KINDS["zero_shot"], dataset)
            out[place] = result.templates
            if result.protocol:
                held.setdefault(place, {}).setdefault(result.protocol, []).append(name)
    several = len(comparison.names) > 1
    for place, protocols in held.items():
        said = [f"{', '.join(names)}: {label}" if several else label for label, names in protocols.items()]
        out[place] += f" · protocol: {'; '.join(said)}"
    return out


def word(kind: str, measure: str) -> str:
    """A measure in words: ``i2t/hit@5`` is ``image → text hit@5``."""
    if kind == "agreement" and measure in AGREEMENT_WORDS:
        return AGREEMENT_WORDS[measure]
    if kind == "retrieval" and "/" in measure:
        way, _, name = measure.partition("/")
        name = name.upper() if name.startswith(("map", "mrr", "ndcg")) else name.replace("_", " ")
        return f"{'image → text' if way == 'i2t' else 'text → image'} {name}"
    if measure.startswith("domain/"):
        return measure.partition("/")[2]
    if kind == "robustness" and "/" in measure:
        return measure.replace("/", ", strength ")
    return WORDS.get(measure, measure)


def charts(comparison: Comparison) -> list[Chart]:
    """Every chart that the figures allow."""
    parts: tuple[Callable[[Comparison], list[Chart]], ...] = (
        _pareto,
        _headline_bars,
        _domains,
        _calibration,
        _confusions,
        _robustness,
        _curves,
    )
    return [chart for part in parts for chart in part(comparison)]


def _headline_bars(comparison: Comparison) -> list[Chart]:
    out = []
    wanted = {"zero_shot": ("top1", "top5", "mean_per_class", "base", "novel"), "retrieval": None, "agreement": None}
    # Bars are shares, of which more is better: errors, divergences and distances have other scales.
    lines = [line for line in comparison.lines() if line.measure not in LOWER_IS_BETTER]
    for (title, dataset), group in grouped(lines).items():
        kind = group[0].kind
        if kind not in wanted:
            continue
        names = wanted[kind]
        shown = [line for line in group if names is None or line.measure in names]
        # A model without this measure (the reference's agreement with itself) gets no empty bars.
        models = [i for i in range(len(comparison.names)) if any(line.values[i] is not None for line in shown)]
        series = {comparison.names[i]: [line.values[i] for line in shown] for i in models}
        png = plots.bars([word(kind, line.measure) for line in shown], series, first=models[0])
        out.append(Chart(f"{title}: {dataset}", png, "Bars with 95 % bootstrap intervals."))
    return out


def _domains(comparison: Comparison) -> list[Chart]:
    out = []
    datasets = dict.fromkeys(d for entry in comparison.entries for d in entry.evaluation.shift)
    for dataset in datasets:
        results = {
            name: entry.evaluation.shift[dataset]
            for name, entry in zip(comparison.names, comparison.entries, strict=True)
            if dataset in entry.evaluation.shift
        }
        domains = list(dict.fromkeys(domain for result in results.values() for domain in result.domains))
        series = {name: [result.domains.get(domain) for domain in domains] for name, result in results.items()}
        out.append(Chart(f"Top-1 by domain: {dataset}", plots.bars(domains, series), "Each domain on its own."))
    return out


def _calibration(comparison: Comparison) -> list[Chart]:
    out = []
    for dataset in dict.fromkeys(d for entry in comparison.entries for d in entry.evaluation.zero_shot):
        results = {
            name: entry.evaluation.zero_shot[dataset]
            for name, entry in zip(comparison.names, comparison.entries, strict=True)
            if dataset in entry.evaluation.zero_shot
        }
        bins = {name: result.calibration for name, result in results.items()}
        png = plots.reliability(bins, {name: result.ece.value for name, result in results.items()})
        about = "On the dashed line a confidence of 0.8 is right 8 times in 10. Grey: share of images."
        out.append(Chart(f"Calibration: {dataset}", png, about))
    return out


def _confusions(comparison: Comparison) -> list[Chart]:
    out = []
    first, last = comparison.entries[0].evaluation, comparison.entries[-1].evaluation
    for dataset, result in last.zero_shot.items():
        reference = first.zero_shot.get(dataset) if len(comparison.entries) > 1 else None
        png = plots.confusions(result, reference, position=len(comparison.names) - 1)
        if png is not None:
            out.append(Chart(f"Commonest mistakes: {dataset}", png, f"Of {comparison.names[-1]}."))
    return out


def _robustness(comparison: Comparison) -> list[Chart]:
    out = []
    for dataset in dict.fromkeys(d for entry in comparison.entries for d in entry.evaluation.robustness):
        results = {
            name: entry.evaluation.robustness[dataset]
            for name, entry in zip(comparison.names, comparison.entries, strict=True)
            if dataset in entry.evaluation.robustness
        }
        measure = word("robustness", next(iter(results.values())).measure)
        png = plots.robustness_curves(results, measure)
        out.append(Chart(f"Robustness: {dataset}", png, "Bands: 95 % intervals. Strength 0: clean."))
    return out


def _pareto(comparison: Comparison) -> list[Chart]:
    out = []
    costs = [entry.cost for entry in comparison.entries]
    if len(costs) < 2:
        return []
    for line in comparison.lines():
        if (line.kind, line.measure) not in (("zero_shot", "top1"), ("retrieval", "mean_recall")):
            continue
        points = {
            name: (cost.image.gmacs, figure)
            for name, cost, figure in zip(comparison.names, costs, line.values, strict=True)
            if cost is not None and cost.image is not None and cost.image.gmacs > 0 and figure is not None
        }
        if len(points) > 1:
            png = plots.pareto(points, x="GMACs of the image tower (log scale)", y=word(line.kind, line.measure))
            out.append(Chart(f"Quality against cost: {line.dataset}", png, "Up and to the left is better."))
    return out


def _curves(comparison: Comparison) -> list[Chart]:
    runs = zip(comparison.names, comparison.entries, strict=True)
    logs = {name: read_log(entry.run) for name, entry in runs if entry.run is not None}
    positions = {name: position for position, name in enumerate(comparison.names)}
    out = []
    for figure in dict.fromkeys(log.figure() for log in logs.values()):
        png = None if figure is None else dev_curves(logs, figure, positions)
        if png is not None:
            out.append(Chart("Training", png, "On the dev split, as the runs measured it while they trained."))
    return out


def examples(comparison: Comparison, datasets: Mapping[str, Dataset]) -> list[Examples]:
    """Pictures seen by the last model, data set by data set."""
    last, first = comparison.entries[-1].evaluation, comparison.entries[0].evaluation
    out = []
    for name, data in datasets.items():
        pictures = Thumbnails(data)
        right: list[ClassifiedPicture] = []
        wrong: list[ClassifiedPicture] = []
        if name in last.zero_shot:
            reference = first.zero_shot.get(name) if len(comparison.entries) > 1 else None
            right, wrong = classified_pictures(last.zero_shot[name], reference, pictures)
        found = searches(last.retrieval[name], pictures) if name in last.retrieval else []
        if right or wrong or found:
            out.append(Examples(name, right, wrong, found))
    return out


def failures(comparison: Comparison, datasets: Mapping[str, Dataset]) -> list[Failure]:
    """Every sample that was skipped, while listing or while encoding, once."""
    found: dict[tuple[str, str], Failure] = {}
    for data in datasets.values():
        found.update({(f.location, f.reason): f for f in data.failures})
    for entry in comparison.entries:
        evaluation = entry.evaluation
        for zero_shot in evaluation.zero_shot.values():
            found.update({(f.location, f.reason): f for f in zero_shot.failures})
        for retrieval in evaluation.retrieval.values():
            found.update({(f.location, f.reason): f for f in retrieval.failures})
    return list(found.values())


def cards(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(name, space, what its maker recorded) of each model."""
    entries = zip(comparison.names, comparison.entries, strict=True)
    return [(name, entry.evaluation.space, pretty(entry.card) if entry.card else "") for name, entry in entries]


def pretty(value: object) -> str:
    """A value as indented JSON, for people."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False)
