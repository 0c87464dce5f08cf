"""The page of bench-methods: every table with its intervals, and what is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

from clipette.evaluate.page import TEMPLATES, figures, interval, number, origin, times
from clipette.evaluate.page import count as counted
from clipette.evaluate.pictures import data_uri
from clipette.io import write_atomic

HERE = Path(__file__).parent / "templates"
GROUPS = {
    "default": "Our default",
    "methods": "Published methods",
    "baselines": "Baselines",
    "peers": "Peers' own code",
}


def write_page(summary: Mapping[str, Any], path: Path) -> None:
    """bench-methods' page."""
    title = f"Distillation methods, tier {summary['tier']}"
    write_template("methods.html.j2", {"title": title, "tables": _tables(summary), "summary": summary}, path)


def write_template(template: str, values: Mapping[str, Any], out: Path) -> None:
    """``out/report.html``: one file, everything inside, everything escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, interval=interval, figures=figures, count=counted, times=times, png=data_uri
    )
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template(template).render({"tiles": [], "origin": origin(), "made": made, **values})
    write_atomic(out / "report.html", page.encode())


def _tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main table by groups, then the world's and the text tower's."""
    rows = {"default": {"default": summary["default"]}} if summary.get("default") else {}
    rows |= {name: summary[name] for name in ("methods", "baselines", "candidates", "peers") if summary.get(name)}
    found = []
    if rows:
        found.append(_table("All methods (caltech101 and pacs: inductive)", rows, summary))
    apart = (
        ("transductive", "Caltech101, transductive: unlabelled images of novel classes too"),
        ("world", "Sample world: methods that need a ViT"),
        ("text", "Text tower"),
    )
    for name, title in apart:
        part = summary.get(name)
        if part:
            found.append(_table(title, {"methods": part["methods"]}, part))
    return found


def _table(title: str, groups: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> dict[str, Any]:
    lines = []
    for group, rows in groups.items():
        for name, row in sorted(rows.items(), key=lambda pair: -pair[1]["mean"]):
            claim = whole.get("claims", {}).get(name)
            lines.append(
                {"name": name, "group": GROUPS.get(group, "Tried for our default"), "row": row, "claim": claim}
            )
    sets = list(lines[0]["row"]["sets"]) if lines else []
    parts = whole.get("parts", {})
    return {
        "title": title,
        "lines": lines,
        "sets": sets,
        "of": whole.get("claims", {}).get("of"),
        "teacher": whole.get("teacher", {}),
        "parts": parts,
    }
