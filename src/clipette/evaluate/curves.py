"""Curves of training runs from ``metrics.jsonl``, as PNG bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from clipette.evaluate.canvas import PLAIN_TICKS, colour, dash, draw, legend, marker, short, small_multiples

# Names of dev figures that a run is judged by, in this order, where it does not say.
DEV_FIGURES = ("mean_recall", "top1")


@dataclass(frozen=True)
class RunLog:
    """The lines of a run's ``metrics.jsonl``, by kind."""

    train: tuple[Mapping[str, Any], ...]
    dev: tuple[Mapping[str, Any], ...]

    def figure(self) -> str | None:
        """The dev figure to show: ``mean_recall`` or ``top1``."""
        return next((name for name in DEV_FIGURES if any(name in line for line in self.dev)), None)


def read_log(run: Path) -> RunLog:
    """A run's log; empty where there is none. A line that a kill cut short is left out."""
    kinds: dict[str, list[Mapping[str, Any]]] = {"train": [], "dev": []}
    path = run / "metrics.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("kind") in kinds:
            kinds[str(line["kind"])].append(line)
    return RunLog(tuple(kinds["train"]), tuple(kinds["dev"]))


def dev_curves(logs: Mapping[str, RunLog], figure: str, positions: Mapping[str, int] | None = None) -> bytes | None:
    """``figure`` on dev against images seen and against seconds of training. None where no run measured it.

    ``positions``: of the models among all, for their colours.
    """
    found = {name: [line for line in log.dev if figure in line] for name, log in logs.items()}
    found = {name: lines for name, lines in found.items() if lines}
    if not found:
        return None

    def paint(canvas: Canvas) -> None:
        panels = small_multiples(canvas, 2, 2, sharey=True)
        for axes, key, label in zip(panels, ("images", "seconds"), ("images seen", "seconds"), strict=True):
            for order, (name, lines) in enumerate(found.items()):
                row = (positions or {}).get(name, order)
                x, y = [line[key] for line in lines], [line[figure] for line in lines]
                axes.plot(
                    x,
                    y,
                    color=colour(row),
                    linestyle=dash(row),
                    marker=marker(row),
                    markersize=5,
                    label=short(name, 34),
                )
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(PLAIN_TICKS)
        panels[0].set_ylabel(f"dev {figure.replace('_', ' ')}")
        legend(canvas, panels[0], list(found))

    return draw((6.2, 3.2), paint)


def loss_curve(log: RunLog) -> bytes | None:
    """The loss and the gradient's norm by step, smoothed; pale: each step."""
    if not log.train:
        return None
    steps = np.array([line["step"] for line in log.train], dtype=np.float64)
    panels = {"loss": "loss", "gradient_norm": "gradient norm", "rate_factor": "rate / peak"}
    shown = {key: label for key, label in panels.items() if all(key in line for line in log.train)}

    def paint(canvas: Canvas) -> None:
        for position, (axes, key) in enumerate(zip(small_multiples(canvas, len(shown), 3), shown, strict=True)):
            values = np.array([line[key] for line in log.train], dtype=np.float64)
            if key != "rate_factor":
                axes.plot(steps, values, color=colour(position), alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values) if key != "rate_factor" else values, color=colour(position))
            axes.set_title(shown[key], fontsize=10)
            axes.set_xlabel("step")
            axes.set_xlim(left=0)

    return draw((2.3 * len(shown) + 0.4, 2.6), paint)


def term_curves(log: RunLog) -> bytes | None:
    """Each loss term's share of the weighted sum of absolute values, stacked; None for fewer than two terms."""
    names = list(dict.fromkeys(name for line in log.train for name in line.get("effective", {})))
    if len(names) < 2:
        return None
    steps = [line["step"] for line in log.train]
    shares = [smooth(np.array([float(line["effective"].get(name, 0.0)) for line in log.train])) for name in names]

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        axes.stackplot(steps, *shares, colors=[colour(i) for i in range(len(names))], labels=[short(n) for n in names])
        axes.set(
            xlim=(min(steps), max(max(steps), min(steps) + 1)), ylim=(0, 1), xlabel="step", ylabel="share of the loss"
        )
        legend(canvas, axes, names)

    return draw((6.2, 3.0), paint)


def smooth(values: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], parts: int = 50) -> Any:
    """A centred moving mean over 1/``parts`` of the values."""
    array = np.asarray(values, dtype=np.float64)
    window = max(1, len(array) // parts) | 1
    if window == 1:
        return array
    padded = np.pad(array, window // 2, mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")
