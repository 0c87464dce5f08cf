"""How every chart looks, and how it becomes a PNG: colours, fonts, labels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's palette without its yellow (too pale on white) and black, with two of Paul Tol's: eight colours that
# the colour-blind can tell apart. Shapes and dashes differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#6B6B6B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
INK = "#1f2328"
FAINT = "#8c959f"

STYLE: Any = {
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "text.parse_math": False,  # a class may be called "$5 and $10"
}


def draw(size: tuple[float, float], paint: Callable[[Canvas], None], *, background: str | None = None) -> bytes:
    """The PNG of what ``paint`` draws on a canvas of ``size`` inches; without ``background`` it is transparent."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A script that no font here knows is drawn as boxes; the numbers are still worth having.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = Canvas(figsize=size, layout="constrained")
        paint(canvas)
        buffer = io.BytesIO()
        clear = background is None
        face = "none" if background is None else background
        # No software version inside: equal figures give equal bytes.
        canvas.savefig(buffer, format="png", dpi=130, transparent=clear, facecolor=face, metadata={"Software": None})
    return buffer.getvalue()


def colour(position: int) -> str:
    """The colour of model ``position``."""
    return COLOURS[position % len(COLOURS)]


def marker(position: int) -> str:
    """The shape of model ``position``."""
    return MARKERS[position % len(MARKERS)]


def dash(position: int) -> str:
    """The line style of model ``position``."""
    return DASHES[position % len(DASHES)]


def short(text: str, limit: int = 28) -> str:
    """``text`` cut in its middle to ``limit`` characters, fit for an axis; a leading underscore would hide it."""
    text = " ".join(text.split()) or "–"
    if len(text) > limit:
        kept = limit - 1
        text = f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"
    return f" {text}" if text.startswith("_") else text


def legend(canvas: Canvas, axes: Axes, names: Sequence[str]) -> None:
    """One legend above the charts, in as many rows as the names need; none for a single model."""
    handles, _ = axes.get_legend_handles_labels()
    if len(names) < 2 or not handles:
        return
    labels = [short(name, 34) for name in names]
    width = max(len(label) for label in labels)
    columns = max(1, min(len(labels), int(canvas.get_figwidth() * 11 / (width + 6))))
    canvas.legend(handles[: len(labels)], labels, loc="outside upper left", ncols=columns, fontsize=10)


def round_ticks(value: float, position: int | None = None) -> str:
    """12000 as 12k, 0.05 as it is."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


PLAIN_TICKS = FuncFormatter(round_ticks)


def small_multiples(canvas: Canvas, count: int, columns: int, **options: Any) -> list[Axes]:
    """``count`` axes in rows of ``columns``."""
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = canvas.subplots(rows, columns, squeeze=False, **options)
    flat: list[Axes] = [axes for row in grid for axes in row]
    for spare in flat[count:]:
        spare.set_visible(False)
    return flat[:count]
