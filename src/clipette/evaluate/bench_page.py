"""The page and the table of ``clipette bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.table import Table

from clipette.evaluate import plots
from clipette.evaluate.page import figures as digits
from clipette.evaluate.page import origin, render
from clipette.evaluate.report import Chart
from clipette.evaluate.results import Figure

# Figure of a model → how it is headed, and whether less is better.
COLUMNS = {
    "images_s": ("images a second", False),
    "images_core_s": ("images per second of one core", False),
    "ms_1": ("one image, ms (median)", True),
    "ms_1_p99": ("one image, ms (99 %)", True),
    "texts_s": ("texts a second", False),
    "text_ms_1": ("one text, ms (median)", True),
    "mb": ("size, MB", True),
    "peak_mb": ("peak memory, MB", True),
    "load_s": ("start, s", True),
}
Flat = Mapping[str, float | None]


def front(costs: Sequence[float | None], values: Sequence[float]) -> list[bool]:
    """Which models no other beats: none is at least as good at less cost, or better at the same cost."""
    marked = []
    for cost, value in zip(costs, values, strict=True):
        others = [(c, v) for c, v in zip(costs, values, strict=True) if c is not None]
        beaten = cost is None or any((c < cost and v >= value) or (c <= cost and v > value) for c, v in others)
        marked.append(not beaten)
    return marked


def bench_page(
    names: Sequence[str], flat: Sequence[Flat], what: str, figures: Sequence[Figure] | None, *, data: str, threads: int
) -> str:
    """The page: one table, and quality against milliseconds and against size where there is a figure."""
    charts = []
    marked = [False] * len(names)
    if figures is not None:
        values = [figure.value for figure in figures]
        marked = front([each["ms_1"] for each in flat], values)
        for cost, title in (("ms_1", "one image, ms (log scale)"), ("mb", "size, MB (log scale)")):
            points = {
                name: (float(each[cost] or 0.0), figure)
                for name, each, figure in zip(names, flat, figures, strict=True)
                if each[cost]
            }
            if len(points) > 1:
                about = "Up and to the left is better; the line joins models that no other beats."
                charts.append(Chart(f"{what} against {COLUMNS[cost][0]}", plots.pareto(points, x=title, y=what), about))
    return render(
        "bench.html.j2",
        {
            "title": "What each model costs here",
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "tiles": [],
            "names": names,
            "rows": flat,
            "columns": COLUMNS,
            "what": what,
            "values": figures,
            "marked": marked,
            "charts": charts,
            "data": data,
            "threads": threads,
            "origin": origin(),
        },
    )


def print_bench(names: Sequence[str], flat: Sequence[Flat], what: str, figures: Sequence[Figure] | None) -> None:
    """The table on stderr: stdout is for scripts."""
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name.replace("[", r"\["), justify="right", overflow="fold")
    if figures is not None:
        marked = front([each["ms_1"] for each in flat], [figure.value for figure in figures])
        cells = [f"{f.value:.3f}{' *' if best else ''}" for f, best in zip(figures, marked, strict=True)]
        table.add_row(f"{what} (* no other is better and faster)", *cells)
    for column, (title, _) in COLUMNS.items():
        table.add_row(title, *(digits(each[column]) for each in flat))
    Console(stderr=True).print(table)
