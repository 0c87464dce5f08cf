"""What is written of a study of prompts: the page, rows for CSV, and a table in a terminal."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.table import Table

from clipette.evaluate import prompt_plots as plots
from clipette.evaluate.page import number, origin, render
from clipette.evaluate.prompt_wordings import BEST, GREEDY, WEIGHTED
from clipette.evaluate.prompts import PromptStudy, Wording
from clipette.evaluate.report import Chart
from clipette.evaluate.results import Figure

COLUMNS = ("wording", "kind", "texts", "dev", "test", "low", "high", "gain", "gain_low", "gain_high")
MEMBERS_SHOWN = 12
LEAST_SHARE = 0.005
ABOUT = {
    BEST: "the template or description that is best alone on the dev part",
    GREEDY: "forward selection: one wording more while the dev part gains",
    WEIGHTED: "every wording, with weights that lower the dev part's cross-entropy",
}


def prompts_page(study: PromptStudy) -> str:
    """One HTML file with everything inside."""
    ranked = study.ranked()
    chosen = [each for each in study.wordings if each.kind == "chosen" and each.name in ABOUT]
    return render(
        "prompts.html.j2",
        {
            "title": f"How to word the classes for {study.model}",
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "tiles": _tiles(study),
            "study": study,
            "ranked": ranked,
            "kinds": plots.KINDS,
            "chosen": [(each, ABOUT[each.name], members(each)) for each in chosen],
            "columns": pair_columns(study),
            "charts": _charts(study),
            "origin": origin(),
            "verdict": verdict,
            "signed": signed,
            "percent": percent,
        },
    )


def verdict(gain: Figure) -> str:
    """``good`` or ``bad`` where the interval of a gain leaves 0 out, else nothing."""
    if gain.low is not None and gain.low > 0:
        return "good"
    return "bad" if gain.high is not None and gain.high < 0 else ""


def signed(value: float) -> str:
    """+0.012, −0.034."""
    return f"+{number(value)}" if value > 0 else number(value)


def percent(value: float) -> str:
    """12 %."""
    return f"{100 * value:.0f} %"


def members(wording: Wording) -> list[tuple[str, float]]:
    """The members of an ensemble that matter, the largest shares first."""
    kept = [(name, share) for name, share in wording.weights.items() if share >= LEAST_SHARE]
    return kept[:MEMBERS_SHOWN]


def pair_columns(study: PromptStudy) -> list[str]:
    """The wordings whose confusions are shown: baseline, best and worst template, descriptions, sets, ensembles."""
    templates = [each.name for each in study.ranked() if each.kind == "template"]
    rest = [each.name for each in study.wordings if each.kind in ("descriptions", "mean")]
    chosen = [name for name in (GREEDY, WEIGHTED) if any(each.name == name for each in study.wordings)]
    return list(dict.fromkeys([study.baseline, *templates[:1], *templates[-1:], *rest, *chosen]))


def prompts_csv(study: PromptStudy) -> str:
    """A row for each wording, with ``COLUMNS``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in study.wordings:
        own = (each.name, each.kind, each.texts, each.dev.value, each.test.value, each.test.low, each.test.high)
        writer.writerow((*own, each.gain.value, each.gain.low, each.gain.high))
    return buffer.getvalue()


def confusions_csv(study: PromptStudy) -> str:
    """A row for each confused pair and wording: how often either class is taken for the other."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("first", "second", "images", "wording", "share"))
    for pair in study.pairs:
        writer.writerows((pair.first, pair.second, pair.images, name, share) for name, share in pair.shares.items())
    return buffer.getvalue()


def print_prompts(study: PromptStudy, *, most: int = 12) -> None:
    """The best templates, and all sets, descriptions and ensembles, on stderr: stdout is for scripts."""
    table = Table(header_style="bold", pad_edge=False)
    for title in ("wording", "dev", "test", "95 %", f"against “{study.baseline}”"):
        table.add_column(title, justify="left" if title == "wording" else "right", overflow="fold")
    templates = 0
    for each in study.ranked():
        templates += each.kind == "template"
        if each.kind == "template" and templates > most and each.name != study.baseline:
            continue
        style = "bold" if each.name == study.baseline else ""
        spread = f"{number(each.test.low)}–{number(each.test.high)}"
        gain = "" if each.name == study.baseline else signed(each.gain.value)
        cells = (number(each.dev.value), number(each.test.value), spread, gain)
        table.add_row(each.name.replace("[", r"\["), *cells, style=style)
    console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=140)
    console.print(table)


def _tiles(study: PromptStudy) -> list[tuple[str, float, str, str]]:
    base = study.wording(study.baseline)
    out = [("top-1 with the baseline", base.test.value, "number", study.baseline)]
    for name in (BEST, GREEDY, WEIGHTED):
        found = next((each for each in study.wordings if each.name == name), None)
        if found is not None:
            beneath = f"{signed(found.gain.value)} ({_interval(found.gain)})"
            out.append((name, found.test.value, "number", beneath))
    for each in study.wordings:
        if each.kind == "descriptions":
            beneath = f"{signed(each.gain.value)} ({_interval(each.gain)}), {each.texts:.0f} sentences a class"
            out.append((f"descriptions: {each.name}", each.test.value, "number", beneath))
    return out


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "no interval"
    return f"{signed(figure.low)} to {signed(figure.high)}"


def _charts(study: PromptStudy) -> list[Chart]:
    ranked = study.ranked()
    drawn, hidden = plots.shown(ranked, study.baseline)
    about = "Dots: accuracy on the test part; bars: 95 % intervals; dashed: the baseline."
    if hidden:
        about += f" {hidden} templates of the middle are in the table only."
    charts = [Chart("Accuracy by wording", plots.accuracies(drawn, study.wording(study.baseline)), about)]
    if study.pairs:
        title = "What each wording does to the most confused classes"
        png = plots.confusions(study.pairs, pair_columns(study))
        charts.append(Chart(title, png, "Per cent of the two classes' test images that are taken for the other."))
    if len(study.path) > 1:
        about = "Wordings join in the order in which they help the dev part most."
        charts.append(Chart("The greedy ensemble grows", plots.path(study.path), about))
    if len(study.wordings) > 2:
        about = "Each dot a wording: were the dev part a good judge, dots would rise from left to right."
        if not math.isnan(study.transfer()):
            about += f" Rank correlation over templates: {number(study.transfer())}."
        charts.append(Chart("Can the choice be trusted?", plots.transfer(_drawn_once(ranked)), about))
    return charts


def _drawn_once(ranked: Sequence[Wording]) -> list[Wording]:
    return [each for each in ranked if each.name != BEST]
