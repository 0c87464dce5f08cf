"""Charts as PNG bytes, for one to eight models; the first is the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL.Image import Image

from clipette.evaluate.canvas import FAINT, INK, PLAIN_TICKS, colour, dash, draw, legend, marker, short, small_multiples
from clipette.evaluate.results import CalibrationBins, Figure, RobustnessResult, ZeroShotResult
from clipette.metrics.pareto import front

Cells = Sequence["Figure | None"]
WIDTH = 6.2
"""Inches of a chart that fills its column."""


def bars(groups: Sequence[str], series: Mapping[str, Cells], *, first: int = 0) -> bytes:
    """Horizontal bars, ``series[model][group]``, with 95 % intervals and the value at each bar's end.

    ``first``: the position, and so the colour, of the first of these models among all.
    """
    names = list(series)
    height = 0.8 / len(names)
    inches = 0.9 + max(len(groups) * len(names) * 0.24, len(groups) * 0.42)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        reach = 0.0
        for row, name in enumerate(names):
            places = np.arange(len(groups)) - 0.4 + height * (row + 0.5)
            values = np.array([np.nan if f is None else f.value for f in series[name]])
            errors = np.array([_error(figure) for figure in series[name]]).T
            axes.barh(places, np.nan_to_num(values), height * 0.88, color=colour(first + row), label=short(name, 34))
            axes.errorbar(np.nan_to_num(values), places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
            for place, value, error in zip(places, values, errors[1], strict=True):
                if np.isfinite(value):
                    reach = max(reach, value + error)
                    axes.annotate(
                        f"{value:.3f}",
                        (value + error, place),
                        (4, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=9,
                    )
        axes.set_yticks(np.arange(len(groups)), [short(group, 30) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(0, reach * 1.14 or 1)
        axes.grid(axis="y", visible=False)
        legend(canvas, axes, names)

    return draw((WIDTH, inches), paint)


def _error(figure: Figure | None) -> tuple[float, float]:
    if figure is None or figure.low is None or figure.high is None or not np.isfinite(figure.value):
        return 0.0, 0.0
    return max(0.0, figure.value - figure.low), max(0.0, figure.high - figure.value)


def reliability(bins: Mapping[str, CalibrationBins], ece: Mapping[str, float]) -> bytes:
    """Accuracy against confidence, a panel for each model; grey bars: the share of images in each bin."""
    names = list(bins)
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)

    def paint(canvas: Canvas) -> None:
        for row, (axes, name) in enumerate(zip(small_multiples(canvas, len(names), 3), names, strict=True)):
            own = bins[name]
            filled = own.count > 0
            share = own.count / max(1, int(own.count.sum()))
            middles, widths = (own.edges[:-1] + own.edges[1:]) / 2, np.diff(own.edges)
            axes.bar(middles, share, widths * 0.9, color=FAINT, alpha=0.35)
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
            axes.plot(own.confidence[filled], own.accuracy[filled], color=colour(row), marker=marker(row), markersize=5)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
            axes.set_aspect("equal")
            axes.set_title(f"{short(name, 18)}\nECE {ece[name]:.3f}", fontsize=11)

    return draw((max(4.4, 2.6 * columns), 3.0 * rows), paint)


def confusions(
    result: ZeroShotResult, reference: ZeroShotResult | None = None, *, position: int = 0, shown: int = 12
) -> bytes | None:
    """The commonest mistakes, as shares of the true class; dots: the reference's share. None where there is none."""
    table = result.confusion
    if table is None:
        return None
    wrong = np.array(table, dtype=np.float64)
    totals = wrong.sum(axis=1, keepdims=True)
    np.fill_diagonal(wrong, 0)
    order = [int(i) for i in np.argsort(-wrong, axis=None, kind="stable")[:shown] if wrong.flat[i] > 0]
    if not order:
        return None
    pairs = [divmod(index, len(result.class_names)) for index in order]
    shares = [float(wrong[i, j] / totals[i, 0]) for i, j in pairs]
    labels = [f"{short(result.class_names[i], 20)} → {short(result.class_names[j], 20)}" for i, j in pairs]
    theirs = _shares(reference, pairs) if reference is not None else None

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        place = np.arange(len(pairs))
        axes.barh(place, shares, 0.66, color=colour(position), label=short(result.model))
        if theirs is not None and reference is not None:
            axes.scatter(theirs, place, color=colour(0), marker="D", zorder=3, s=34, label=short(reference.model))
            canvas.legend(loc="outside upper left", ncols=2, fontsize=10)
        axes.set_yticks(place, labels)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlim(0, min(1.0, max([*shares, *(theirs or [])]) * 1.1))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of the true class")

    return draw((WIDTH, 1.1 + 0.3 * len(pairs)), paint)


def _shares(result: ZeroShotResult, pairs: Sequence[tuple[int, int]]) -> list[float] | None:
    if result.confusion is None:
        return None
    totals = np.maximum(result.confusion.sum(axis=1), 1e-12)
    return [float(result.confusion[i, j] / totals[i]) for i, j in pairs]


def robustness_curves(results: Mapping[str, RobustnessResult], measure: str) -> bytes:
    """Quality against a corruption's strength, a panel for each corruption; strength 0 is the clean image."""
    names = list(results)
    kinds = list(dict.fromkeys(kind for result in results.values() for kind in result.table))
    columns = min(len(kinds), 3)
    rows = -(-len(kinds) // columns)

    def paint(canvas: Canvas) -> None:
        panels = small_multiples(canvas, len(kinds), 3, sharey=True)
        for axes, kind in zip(panels, kinds, strict=True):
            for row, name in enumerate(names):
                cells = {0: results[name].clean, **results[name].table.get(kind, {})}
                strengths = sorted(cells)
                figures = [cells[s] for s in strengths]
                _band(axes, strengths, figures, row, name)
            axes.set_title(kind)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("strength")
            axes.set_ylim(bottom=0)
        for axes in panels[::columns]:
            axes.set_ylabel(measure)
        legend(canvas, panels[0], names)

    return draw((2.2 * columns + 0.6, 2.2 * rows + 0.5), paint)


def _band(axes: Axes, x: Sequence[float], figures: Sequence[Figure], row: int, name: str) -> None:
    values = [figure.value for figure in figures]
    axes.plot(x, values, color=colour(row), linestyle=dash(row), marker=marker(row), markersize=5, label=short(name))
    low = [figure.value if figure.low is None else figure.low for figure in figures]
    high = [figure.value if figure.high is None else figure.high for figure in figures]
    axes.fill_between(x, low, high, color=colour(row), alpha=0.15, linewidth=0)


def pareto(points: Mapping[str, tuple[float, Figure]], *, x: str, y: str) -> bytes:
    """Quality against cost (log scale), with intervals; the line joins the models that no other beats in both."""
    names = list(points)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for row, name in enumerate(names):
            cost, figure = points[name]
            error = np.array([_error(figure)]).T
            axes.errorbar(cost, figure.value, yerr=error, color=colour(row), elinewidth=1.4, capsize=3, zorder=2)
            axes.scatter(
                cost, figure.value, s=80, color=colour(row), marker=marker(row), zorder=3, label=short(name, 34)
            )
        costs, values = zip(*((cost, figure.value) for cost, figure in points.values()), strict=True)
        marked = front(costs, values)
        line = sorted((cost, value) for cost, value, best in zip(costs, values, marked, strict=True) if best)
        axes.plot([cost for cost, _ in line], [value for _, value in line], color=FAINT, lw=1.2, ls="--", zorder=1)
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(PLAIN_TICKS)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=x, ylabel=y)
        legend(canvas, axes, names)

    return draw((WIDTH, 3.6 + 0.2 * len(names)), paint)


def picture_bars(
    image: Image, labels: Sequence[str], shares: Sequence[float], *, title: str = "", note: str = ""
) -> bytes:
    """The picture on the left, and bars of the labels' probabilities, best on top, on the right."""
    inches = max(3.2, 0.7 + 0.4 * len(labels))

    def paint(canvas: Canvas) -> None:
        left, right = canvas.subplots(1, 2, width_ratios=(1, 1.25))
        left.imshow(image.convert("RGB"))
        left.set_axis_off()
        place = np.arange(len(labels))
        right.barh(place, shares, 0.68, color=[colour(0), *[colour(5)] * (len(labels) - 1)])
        for position, share in enumerate(shares):
            right.annotate(
                f"{share:.3f}", (share, position), (4, 0), textcoords="offset points", va="center", fontsize=10
            )
        right.set_yticks(place, [short(label, 26) for label in labels])
        right.set_ylim(len(labels) - 0.5, -0.5)
        right.set_xlim(0, 1.16)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1])
        right.grid(axis="y", visible=False)
        right.set_xlabel(f"probability · {short(note, 30)}" if note else "probability")
        if title:
            canvas.suptitle(short(title, 70), x=0.02, ha="left", fontweight="bold")

    return draw((9.0, inches), paint, background="white")
