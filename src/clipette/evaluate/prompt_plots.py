"""The charts of a study of prompts, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

from clipette.evaluate.canvas import FAINT, INK, colour, dash, draw, marker, short
from clipette.evaluate.plots import WIDTH
from clipette.evaluate.prompts import ConfusedPair, PathPoint, Wording

KINDS = {
    "template": "one template",
    "mean": "a plain mean",
    "descriptions": "LLM descriptions",
    "chosen": "chosen on the dev part",
}
# So many templates are drawn: the best, and the worst; sets, descriptions and what was chosen always are.
BEST_SHOWN, WORST_SHOWN = 18, 6


def shown(ranked: Sequence[Wording], baseline: str) -> tuple[list[Wording], int]:
    """(the wordings to draw, best first; how many templates are left out in the middle)."""
    templates = [each for each in ranked if each.kind == "template"]
    if len(templates) <= BEST_SHOWN + WORST_SHOWN:
        return list(ranked), 0
    kept = {each.name for each in (*templates[:BEST_SHOWN], *templates[-WORST_SHOWN:])} | {baseline}
    out = [each for each in ranked if each.kind != "template" or each.name in kept]
    return out, len(ranked) - len(out)


def accuracies(wordings: Sequence[Wording], baseline: Wording) -> bytes:
    """A dot and its 95 % interval for each wording, coloured by kind; the line: the baseline."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        axes.axvline(baseline.test.value, color=FAINT, linewidth=1.2, linestyle="--", zorder=1)
        for place, kind in enumerate(KINDS):
            rows = [row for row, each in enumerate(wordings) if each.kind == kind]
            if not rows:
                continue
            values = np.array([wordings[row].test.value for row in rows])
            errors = np.array([_error(wordings[row]) for row in rows]).T
            axes.errorbar(
                values, rows, xerr=errors, fmt=marker(place), color=colour(place), ecolor=colour(place),
                elinewidth=1.2, capsize=2, markersize=5, label=KINDS[kind], zorder=3,
            )  # fmt: skip
        axes.set_yticks(np.arange(len(wordings)), [short(each.name, 38) for each in wordings], fontsize=9)
        for label, each in zip(axes.get_yticklabels(), wordings, strict=True):
            label.set_fontweight("bold" if each.name == baseline.name else "normal")
        axes.set_ylim(len(wordings) - 0.4, -0.6)
        axes.set_xlabel("top-1 accuracy on the test part")
        axes.grid(axis="y", visible=False)
        canvas.legend(loc="outside upper left", ncols=2, fontsize=9)

    return draw((WIDTH + 0.6, 1.3 + 0.23 * len(wordings)), paint)


def _error(wording: Wording) -> tuple[float, float]:
    figure = wording.test
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return max(0.0, figure.value - low), max(0.0, high - figure.value)


def path(points: Sequence[PathPoint]) -> bytes:
    """Accuracy against the size of the greedy ensemble, on the part that chose and on the other."""
    kept = sum(point.kept for point in points)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        sizes = np.arange(1, len(points) + 1)
        series = {"dev: it was chosen on": [p.dev for p in points], "test: what to expect": [p.test for p in points]}
        for row, (name, values) in enumerate(series.items()):
            axes.plot(
                sizes, values, color=colour(row), linestyle=dash(row), marker=marker(row), markersize=5, label=name
            )
        axes.axvline(kept, color=FAINT, linewidth=1.6, linestyle=":", label=f"kept: {kept}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="wordings in the ensemble", ylabel="top-1 accuracy")
        canvas.legend(loc="outside upper left", ncols=3, fontsize=9)

    return draw((WIDTH, 3.4), paint)


def transfer(wordings: Sequence[Wording]) -> bytes:
    """Test against development accuracy: how far a choice on so few images can be trusted."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        values = [value for each in wordings for value in (each.dev.value, each.test.value)]
        ends = [min(values), max(values)]
        axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle="--", zorder=1)
        for place, kind in enumerate(KINDS):
            own = [each for each in wordings if each.kind == kind]
            if own:
                axes.scatter(
                    [each.dev.value for each in own], [each.test.value for each in own], s=34, alpha=0.85,
                    color=colour(place), marker=marker(place), label=KINDS[kind], zorder=2 + place,
                )  # fmt: skip
        axes.set(xlabel="accuracy on the dev part", ylabel="accuracy on the test part")
        canvas.legend(loc="outside upper left", ncols=2, fontsize=9)

    return draw((WIDTH, 4.2), paint)


def confusions(pairs: Sequence[ConfusedPair], columns: Sequence[str]) -> bytes:
    """Which share of two classes' images is taken for the other, a row for each pair, a column for each wording."""
    table = np.array([[pair.shares[name] for name in columns] for pair in pairs])

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        picture = axes.imshow(table, cmap="YlOrBr", vmin=0, vmax=max(0.05, float(table.max())), aspect="auto")
        for row, column in np.ndindex(table.shape):
            dark = table[row, column] > 0.6 * max(0.05, float(table.max()))
            axes.annotate(
                f"{100 * table[row, column]:.0f}", (column, row), ha="center", va="center", fontsize=9,
                color="white" if dark else INK,
            )  # fmt: skip
        labels = [f"{short(pair.first, 16)} ↔ {short(pair.second, 16)}" for pair in pairs]
        axes.set_yticks(np.arange(len(pairs)), labels, fontsize=9)
        axes.set_xticks(
            np.arange(len(columns)), [short(name, 26) for name in columns], rotation=35, ha="right", fontsize=9
        )
        axes.grid(visible=False)
        bar = canvas.colorbar(picture, ax=axes, shrink=0.8, pad=0.02)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return draw((WIDTH + 0.8, 1.9 + 0.32 * len(pairs)), paint, background="white")
