"""The page and the table of ``clipette bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

from rich.console import Console
from rich.table import Table

from clipette.evaluate import plots
from clipette.evaluate.page import figures as digits
from clipette.evaluate.page import origin, render
from clipette.evaluate.report import Chart
from clipette.evaluate.results import Figure
from clipette.metrics.pareto import front

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
# Latency by batch, milliseconds: a second table.
LATENCIES = {
    f"{prefix}ms_{size}{suffix}": f"{size} {what}{'s' if size > 1 else ''}, {word}"
    for prefix, what in (("", "image"), ("text_", "text"))
    for size in (1, 8, 32)
    for suffix, word in (("", "median"), ("_p99", "99 %"))
}
Flat = Mapping[str, float | None]


@dataclass(frozen=True)
class Bench:
    """What was measured: each model's costs and, where there was data, its ``figures`` of the task ``what``."""

    names: Sequence[str]
    flat: Sequence[Flat]
    what: str = ""
    figures: Sequence[Figure] | None = None

    @cached_property
    def marked(self) -> Sequence[bool]:
        """Which models no other beats in quality and in milliseconds for one image."""
        if self.figures is None:
            return [False] * len(self.names)
        return front([each["ms_1"] for each in self.flat], [figure.value for figure in self.figures])


def bench_page(bench: Bench, *, data: str, threads: int) -> str:
    """The page: one table, and quality against milliseconds and against size where there is a figure."""
    charts = []
    if bench.figures is not None:
        for cost, title in (("ms_1", "one image, ms (log scale)"), ("mb", "size, MB (log scale)")):
            points = {
                name: (float(each[cost] or 0.0), figure)
                for name, each, figure in zip(bench.names, bench.flat, bench.figures, strict=True)
                if each[cost]
            }
            if len(points) > 1:
                about = "Up and to the left is better; the line joins models that no other beats."
                png = plots.pareto(points, x=title, y=bench.what)
                charts.append(Chart(f"{bench.what} against {COLUMNS[cost][0]}", png, about))
    return render(
        "bench.html.j2",
        {
            "title": "What each model costs here",
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "tiles": [],
            "names": bench.names,
            "rows": bench.flat,
            "columns": COLUMNS,
            "latencies": LATENCIES,
            "what": bench.what,
            "values": bench.figures,
            "marked": bench.marked,
            "charts": charts,
            "data": data,
            "threads": threads,
            "origin": origin(),
        },
    )


def print_bench(bench: Bench) -> None:
    """The table on stderr: stdout is for scripts."""
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("")
    for name in bench.names:
        table.add_column(name.replace("[", r"\["), justify="right", overflow="fold")
    if bench.figures is not None:
        cells = [f"{f.value:.3f}{' *' if best else ''}" for f, best in zip(bench.figures, bench.marked, strict=True)]
        table.add_row(f"{bench.what} (* no other is better and faster)", *cells)
    for column, (title, _) in COLUMNS.items():
        table.add_row(title, *(digits(each[column]) for each in bench.flat))
    Console(stderr=True).print(table)
