"""The same figures in a terminal: rich tables."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from clipette.evaluate.compare import Comparison
from clipette.evaluate.page import count, figures, number, times
from clipette.evaluate.report import grouped, word, wordings

COSTS = {
    "params": ("parameters", count),
    "bytes": ("bytes on disk", count),
    "image_gmacs": ("image GMACs", figures),
    "text_gmacs": ("text GMACs, 32 tokens", figures),
    "image_ms": ("image, batch 1, ms", figures),
    "text_ms": ("text, batch 1, ms", figures),
    "image_per_second": ("images a second", figures),
    "text_per_second": ("texts a second", figures),
}
RATIO_OF = {
    "params": "compression",
    "bytes": "bytes",
    "image_gmacs": "image_gmacs",
    "text_gmacs": "text_gmacs",
    "image_ms": "image_speedup",
    "text_ms": "text_speedup",
    "image_per_second": "image_throughput",
    "text_per_second": "text_throughput",
}


def figures_table(comparison: Comparison) -> Table:
    """Headline figures: a column for each model, and after all but the first the share kept of the first's value."""
    table = _table("figures", comparison)
    templates = wordings(comparison)
    for (kind, dataset), lines in grouped(comparison.lines()).items():
        table.add_section()
        said = f" (templates: {_safe(templates[kind, dataset])})" if (kind, dataset) in templates else ""
        table.add_row(f"[bold]{_safe(kind)}: {_safe(dataset)}[/bold]{said}")
        for line in lines:
            cells = []
            for position, (figure, kept) in enumerate(zip(line.values, line.kept, strict=True)):
                cells.append("–" if figure is None else number(float(figure.value)))
                if position:
                    cells.append("" if kept is None else number(float(kept.value)))
            table.add_row(_safe(word(line.kind, line.measure)), *cells)
    return table


def cost_table(comparison: Comparison) -> Table:
    """Cost: a column for each model, and after all but the first how many times cheaper it is."""
    table = _table("cost", comparison)
    flat = [None if entry.cost is None else entry.cost.flat() for entry in comparison.entries]
    for name, (title, form) in COSTS.items():
        cells = []
        for position, (own, ratio) in enumerate(zip(flat, comparison.ratios(), strict=True)):
            cells.append("–" if own is None else form(own[name]))
            if position:
                cells.append("" if ratio is None else times(ratio[RATIO_OF[name]]))
        table.add_row(title, *cells)
    return table


def print_tables(comparison: Comparison, console: Console | None = None) -> None:
    """Both tables, on stderr: stdout is for scripts."""
    if console is None:
        console = Console(stderr=True)
        if not sys.stderr.isatty():
            console = Console(stderr=True, width=140)
    console.print(figures_table(comparison))
    if any(entry.cost is not None for entry in comparison.entries):
        console.print(cost_table(comparison))


def _table(title: str, comparison: Comparison) -> Table:
    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column(title)
    for position, name in enumerate(comparison.names):
        table.add_column(_safe(name), justify="right")
        if position:
            table.add_column("of first" if title == "figures" else "gain", justify="right", style="dim")
    return table


def _safe(text: str) -> str:
    return text.replace("[", r"\[")
