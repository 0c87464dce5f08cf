"""A training run as one HTML file: curves, loss terms, recipe, summary."""

from __future__ import annotations

import json
from pathlib import Path

from clipette.errors import DataError
from clipette.evaluate.curves import RunLog, dev_curves, loss_curve, read_log, term_curves
from clipette.evaluate.page import origin, render
from clipette.evaluate.report import Chart, pretty
from clipette.io import write_atomic


def write_run_report(run: str | Path) -> Path:
    """Write ``run/report.html`` from what the run directory holds; returns its path.

    Reads ``metrics.jsonl``, ``recipe.yaml`` and ``summary.json``; those that are not there yet are left out.
    Raises ``DataError`` where there is no run.
    """
    folder = Path(run)
    log = read_log(folder)
    recipe = folder / "recipe.yaml"
    if not recipe.is_file() and not log.train and not log.dev:
        raise DataError(f"{folder} holds no run: neither recipe.yaml nor metrics.jsonl is there")
    summary = _summary(folder / "summary.json")
    failures = summary.pop("failures", [])
    page = render(
        "run.html.j2",
        {
            "title": f"Run {folder.resolve().name}",
            "tiles": _tiles(log, summary),
            "charts": _charts(log),
            "weights": _weights(log),
            "recipe": recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
            "summary": pretty(summary) if summary else "",
            "failures": failures if isinstance(failures, list) else [],
            "origin": origin(),
        },
    )
    path = folder / "report.html"
    write_atomic(path, page.encode())
    return path


def _summary(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _tiles(log: RunLog, summary: dict[str, object]) -> list[tuple[str, float, str, str]]:
    out: list[tuple[str, float, str, str]] = []
    figure = log.figure()
    if figure is not None:
        lines = [line for line in log.dev if figure in line]
        best = max(lines, key=lambda line: float(line[figure]))
        shown = figure.replace("_", " ")
        out.append((f"dev {shown}, last", float(lines[-1][figure]), "number", f"step {lines[-1]['step']}"))
        out.append((f"dev {shown}, best", float(best[figure]), "number", f"step {best['step']}"))
    if log.train:
        last = log.train[-1]
        out.append(("images seen", float(last["images"]), "count", f"{last['epoch']:.3g} epochs, {last['step']} steps"))
        out.append(("minutes of training", float(last["seconds"]) / 60, "number", "evaluation and saving left out"))
    speed = summary.get("images_per_second")
    if isinstance(speed, int | float):
        out.append(("images a second", float(speed), "number", "in this session"))
    return out


def _charts(log: RunLog) -> list[Chart]:
    figure = log.figure()
    made = {
        "Quality on dev": (None if figure is None else dev_curves({"student": log}, figure), ""),
        "Loss": (loss_curve(log), "Pale: each step."),
        "Loss terms": (term_curves(log), "Each weighted term's share of the sum of their absolute values."),
    }
    return [Chart(title, png, about) for title, (png, about) in made.items() if png is not None]


def _weights(log: RunLog) -> list[tuple[str, float, float, float]]:
    """(term, raw, weighted, effective): means over the last tenth of the steps."""
    lines = [line for line in log.train if "effective" in line]
    tail = lines[-max(1, len(lines) // 10) :]
    names = list(dict.fromkeys(name for line in tail for name in line["effective"]))
    return [
        (
            name,
            *(
                sum(float(line[part].get(name, 0.0)) for line in tail) / len(tail)
                for part in ("raw", "weighted", "effective")
            ),
        )
        for name in names
    ]
