"""Pages from templates: one file each, everything inside, everything escaped."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch

from clipette.evaluate.pictures import data_uri
from clipette.evaluate.results import Figure
from clipette.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page of ``templates/<template>``. Names, captions and paths come from outside: all are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, interval=interval, figures=figures, count=count, times=times, png=data_uri
    )
    return environment.get_template(template).render(values)


def number(value: object) -> str:
    """Three digits that matter: 0.612, 12.3, 1,234; a dash for what was not measured."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def figures(value: object) -> str:
    """Three significant digits, for what may be small: 0.00436."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(figure: Figure | None) -> str:
    """``0.580–0.641``, or nothing."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    joint = " to " if figure.low < 0 else "–"
    return f"{number(figure.low)}{joint}{number(figure.high)}"


def count(value: object) -> str:
    """Parameters and bytes: 1.24 M, 340 k."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def times(value: object) -> str:
    """A ratio: 4.21×."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.0f}×" if value >= 100 else f"{value:.3g}×"


def origin() -> dict[str, str]:
    """What the figures were made with: for the record."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return {"Clipette": VERSION, "PyTorch": str(torch.__version__), "Machine": machine}
