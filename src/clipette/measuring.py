"""The measuring verbs: evaluate, compare, classify. References and paths in; figures, tables and a report out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipette.data.dataset import Dataset
from clipette.data.images import decode_image
from clipette.data.prompts import read_descriptions
from clipette.data.sources import load_data
from clipette.errors import BadImageError, ConfigError
from clipette.evaluate import classify as picture
from clipette.evaluate.compare import Comparison, Entry
from clipette.evaluate.compare import compare as side_by_side
from clipette.evaluate.cost import Timing, measure_costs
from clipette.evaluate.encoding import CachedEncoder, Settings
from clipette.evaluate.protocol import read_trained_on, with_protocols
from clipette.evaluate.report import build_report
from clipette.evaluate.results import Evaluation, plain
from clipette.evaluate.suite import SuiteSettings
from clipette.evaluate.suite import evaluate as measure
from clipette.evaluate.tables import print_tables
from clipette.evaluate.wording import AUTO, fitting_templates
from clipette.io import write_atomic, write_json
from clipette.resolve import resolve
from clipette.runtime.bundle import is_bundle, open_bundle
from clipette.types import Encoder

TIMING = Timing()


def evaluate(
    model: str,
    data: Sequence[str],
    *,
    out: str | Path,
    teacher: str | None = None,
    templates: str = AUTO,
    descriptions: str | Path | None = None,
    corruptions: bool = False,
    batch_size: int = 64,
    max_failures: float = 0.1,
    device: str | None = None,
) -> dict[str, object]:
    """Measure ``model`` on ``data``, with ``teacher`` also agreement and retention; the teacher's texts serve an
    image-only student of its space.

    ``templates``: a name, a template, or ``auto``: CLIP's eighty, or the wording that stored texts have.
    ``descriptions``: sentences per class in CuPL's format, in place of the templates. Writes ``results.json``,
    ``results.csv``, ``report.html`` and ``summary.json`` into ``out``; returns the summary. Of a run they say whether
    its figures are transductive: the images or the classes were trained on. ``max_failures``: the share of images that
    may be unreadable.
    """
    named = _named_data(data)
    names = _classes_of(named)
    references = ([teacher] if teacher else []) + [model]
    encoders = [resolve(reference, device=device, class_names=names) for reference in references]
    run = Settings(batch_size=batch_size, max_failures=max_failures, progress=True)
    settings = _suite(_wording(templates, encoders, named), descriptions, corruptions, run)
    student = encoders[-1]
    result = measure(student, named, encoders[0] if teacher else None, settings=settings)
    evaluations = [result.teacher, result] if result.teacher is not None else [result]
    comparison = _side_by_side(references, encoders, evaluations, named)
    return _write(comparison, named, Path(out), title=_title(comparison), model=comparison.names[-1])


def compare(
    models: Sequence[str],
    data: Sequence[str],
    *,
    out: str | Path,
    templates: str = AUTO,
    batch_size: int = 64,
    max_failures: float = 0.1,
    device: str | None = None,
) -> dict[str, object]:
    """Put models side by side on ``data``; the first is what the others are measured by.

    Writes what ``evaluate`` writes; returns the summary. Raises ``ConfigError`` for no model.
    """
    return compare_on(
        models,
        _named_data(data),
        out=out,
        templates=templates,
        batch_size=batch_size,
        max_failures=max_failures,
        device=device,
    )


def compare_on(
    models: Sequence[str],
    named: Mapping[str, Dataset],
    *,
    out: str | Path,
    templates: str = AUTO,
    batch_size: int = 64,
    max_failures: float = 0.1,
    device: str | None = None,
) -> dict[str, object]:
    """``compare`` on data sets that are open already, by the names that tables shall show."""
    if not models:
        raise ConfigError("no model to compare: name two or more")
    encoders = [resolve(reference, device=device, class_names=_classes_of(named)) for reference in models]
    run = Settings(batch_size=batch_size, max_failures=max_failures, progress=True)
    settings = _suite(_wording(templates, encoders, named), None, False, run)
    # Cached: the first is measured beside each of the others, and encodes once.
    first = CachedEncoder(encoders[0])
    evaluations = [measure(first, named, settings=settings)]
    evaluations += [measure(encoder, named, first, settings=settings) for encoder in encoders[1:]]
    comparison = _side_by_side(models, encoders, evaluations, named)
    return _write(comparison, named, Path(out), title=_title(comparison))


def classify(
    model: str,
    image: str | Path,
    *,
    labels: Sequence[str] = (),
    question: str | None = None,
    answers: Sequence[str] = (),
    templates: str = AUTO,
    out: str | Path | None = None,
    device: str | None = None,
) -> dict[str, object]:
    """Which of ``labels``, or of ``answers`` to ``question``, fits a picture; ``out``: a PNG of bars beside it.

    A bundle of stored classes has its own labels, where none are given. Raises ``ConfigError`` unless either labels or
    a question with answers are there.
    """
    labels = labels or (_stored_classes(model) if question is None else ())
    if bool(labels) == (question is not None) or bool(answers) != (question is not None):
        raise ConfigError("give either --labels, or --question with --answers")
    try:
        content = decode_image(Path(image).read_bytes(), location=str(image))
    except OSError as error:
        raise BadImageError(f"{image}: cannot be read ({error.strerror or error})") from error
    encoder = resolve(model, device=device, class_names=labels)
    if question is None:
        wording = fitting_templates([encoder], labels) if templates == AUTO else templates
        found = picture.classify(encoder, content, labels, wording)
    else:
        found = picture.answer(encoder, content, question, answers)
    summary = found.to_dict() | {"image": str(image)}
    if out is not None:
        write_atomic(Path(out), picture.chart(content, found))
        summary["chart"] = str(out)
    return summary


def _stored_classes(model: str) -> tuple[str, ...]:
    path = Path(model).expanduser()
    content = open_bundle(path).files.get("classes.json") if path.is_dir() and is_bundle(path) else None
    return () if content is None else tuple(json.loads(content))


def _named_data(references: Sequence[str]) -> dict[str, Dataset]:
    """Data sets by their short names, or by their whole references where two short names are alike."""
    if not references:
        raise ConfigError("no data: name a data set with --data")
    if len(set(references)) < len(references):
        raise ConfigError(f"data {list(references)}: name each data set once")
    sets = [load_data(reference) for reference in references]
    names = [data.name for data in sets]
    return {
        name if names.count(name) == 1 else reference: data
        for name, reference, data in zip(names, references, sets, strict=True)
    }


def _classes_of(named: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Every class of every data set: what a classifier is asked for. Zero-shot then takes each set's own of them."""
    return tuple(dict.fromkeys(name for data in named.values() for name in data.class_names))


def _wording(templates: str, encoders: Sequence[Encoder], named: Mapping[str, Dataset]) -> str:
    if templates != AUTO:
        return templates
    return fitting_templates(encoders, [name for data in named.values() for name in data.class_names])


def _suite(templates: str, descriptions: str | Path | None, corruptions: bool, run: Settings) -> SuiteSettings:
    from clipette.data.corruptions import CORRUPTIONS

    return SuiteSettings(
        templates=templates if descriptions is None else (),
        descriptions=None if descriptions is None else read_descriptions(descriptions),
        base_novel=True,
        corruptions=tuple(CORRUPTIONS) if corruptions else (),
        run=run,
    )


def _side_by_side(
    references: Sequence[str],
    encoders: Sequence[Encoder],
    evaluations: Sequence[Evaluation],
    named: Mapping[str, Dataset],
) -> Comparison:
    costs = measure_costs(encoders, TIMING)
    told = [with_protocols(each, read_trained_on(r), named) for each, r in zip(evaluations, references, strict=True)]
    return side_by_side(
        [
            Entry(evaluation, cost, recorded_card(reference), _run_of(reference))
            for reference, evaluation, cost in zip(references, told, costs, strict=True)
        ]
    )


def _run_of(reference: str) -> Path | None:
    """The run directory behind a reference, where it has a log of training."""
    folder = Path(reference.removeprefix("run:")).expanduser()
    return folder if (folder / "metrics.jsonl").is_file() else None


def recorded_card(reference: str) -> Mapping[str, object]:
    """Where a model comes from: what its run recorded, or the reference itself."""
    folder = Path(reference.removeprefix("run:")).expanduser()
    for path in (
        folder / "model" / "model.json",
        folder / "model" / "adapter.json",
        folder / "model.json",
        folder / "adapter.json",
        folder / "manifest.json",
    ):
        if path.is_file():
            try:
                card = json.loads(path.read_text(encoding="utf-8")).get("card")
            except (OSError, json.JSONDecodeError):
                continue
            return {"reference": reference, **(card if isinstance(card, dict) else {})}
    return {"reference": reference}


def _title(comparison: Comparison) -> str:
    first, *others = comparison.names
    if not others:
        return first
    return f"{' and '.join(others) if len(others) < 4 else f'{len(others)} models'} against {first}"


def _write(
    comparison: Comparison, named: Mapping[str, Dataset], out: Path, *, title: str, model: str | None = None
) -> dict[str, object]:
    summary: dict[str, object] = {
        "reference": comparison.names[0],
        "models": comparison.summary(),
        "seconds": plain(sum(entry.evaluation.seconds for entry in comparison.entries)),
        "report": str(out / "report.html"),
    }
    if model is not None:
        summary["model"] = model
    write_json(out / "results.json", comparison.to_json())
    write_atomic(out / "results.csv", comparison.to_csv().encode())
    write_atomic(out / "report.html", build_report(comparison, named, title=title).encode())
    write_json(out / "summary.json", summary)
    print_tables(comparison)
    return summary
