"""The main job on a rendered world: a teacher, its student, and the same student without a teacher."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.data.world import WorldSpec
from clipette.data.world_write import write_worlds
from clipette.io import write_json
from clipette.measuring import compare_on

STYLES = ("outline", "noise", "inverted", "blurred")
SIZES = {"pretrain": 12_000, "train": 4_000, "test": 960, "novel": 960, **{f"shift-{style}": 480 for style in STYLES}}
MODELS = ("teacher", "student", "no_teacher")


Train: TypeAlias = Callable[..., Path]


def showcase(
    folder: Path,
    seed: int,
    *,
    pretrain: Train,
    distill: Train,
    overrides: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Render the world, pre-train a teacher on its broad split, pour it, distil a student on the small split.

    Beside the student stands its twin: the same architecture, weights, data and steps, learning from the captions
    alone. Writes the three runs, ``report/report.html`` and ``summary.json`` into ``folder``; returns the summary.
    ``pretrain``, ``distill``: the verbs. ``overrides``: ``--set`` lines for each of ``MODELS``, for shorter runs.
    """
    begun = time.monotonic()
    lines = {name: [f"seed={seed}", *(overrides or {}).get(name, [])] for name in MODELS}

    def train(name: str, verb: Train, **given: Any) -> Callable[[], Path]:
        # A partial of the verb, not a closure: it may go to another process.
        return partial(verb, f"demo-{name.replace('_', '-')}", out=folder / name, overrides=lines[name], **given)

    console = Console(stderr=True)
    console.print(f"[bold]1/4[/] rendering {sum(SIZES.values()):,} pictures of the sample world")
    data = render(folder / "data", seed)
    console.print("[bold]2/4[/] pre-training the teacher on the broad captioned split")
    console.print("    and beside it, on another core, the student without a teacher on the smaller split")
    with aside(train("no_teacher", pretrain, data=data["train"])) as twin:
        teacher = train("teacher", pretrain, data=data["pretrain"])()
        console.print("[bold]3/4[/] pouring the teacher and distilling the student on the smaller split")
        train("student", distill, data=data["train"], teacher=str(teacher))()
        twin.result()
    console.print("[bold]4/4[/] measuring all three on seen classes, novel classes and shifted styles")
    sets = {"seen": load_data(data["test"]), "novel": load_data(data["novel"]), "shift": shifted(data)}
    # The report's headline is about the last one.
    shown = [str(folder / name) for name in ("teacher", "no_teacher", "student")]
    compared = compare_on(shown, sets, out=folder / "report", templates="single")
    summary = _summary(compared)
    summary["seconds"] = round(time.monotonic() - begun, 1)
    write_json(folder / "summary.json", summary)
    _show(console, summary, folder)
    return summary


@contextmanager
def aside(work: Callable[[], Path]) -> Iterator[Future[Path]]:
    """``work`` in a process of its own, without a progress bar: small models cannot fill a second core by threads."""
    # Spawned, not forked: forking a process that runs PyTorch's threads can hang it.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_without_progress) as pool:
        yield pool.submit(work)


def _without_progress() -> None:
    os.environ["CLIPETTE_PROGRESS"] = "0"


def render(folder: Path, seed: int) -> dict[str, str]:
    """The world's splits as tars in ``folder``: their references, by split."""
    written = write_worlds(folder, [WorldSpec(split, count, seed=seed) for split, count in SIZES.items()])
    return {split: " + ".join(f"wds:{path}" for path in tars) for split, tars in zip(SIZES, written, strict=True)}


def shifted(data: Mapping[str, str]) -> Dataset:
    """The four shifted styles as the domains of one data set."""
    sets = [load_data(data[f"shift-{style}"]) for style in STYLES]
    samples = tuple(sample for each in sets for sample in each.samples)
    return replace(sets[0], reference="shifted styles", samples=samples)


def _summary(compared: Mapping[str, Any]) -> dict[str, Any]:
    """``{"teacher": {"seen": …, "novel": …, "shift": …, "gmacs": …, "params": …, "ms": …}, …}``."""
    out: dict[str, Any] = {}
    for name in MODELS:
        figures, cost = compared["models"][name]["figures"], compared["models"][name]["cost"]
        out[name] = {
            "seen": figures["seen"]["zero_shot"]["top1"],
            "novel": figures["novel"]["zero_shot"]["top1"],
            "shift": figures["shift"]["zero_shot"]["top1"],
            "gmacs": cost["image_gmacs"],
            "params": cost["params"],
            "ms": cost["image_ms"],
        }
    return out


def _show(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    table = Table(title="zero-shot accuracy (top-1)")
    table.add_column("")
    for column in ("seen classes", "novel classes", "shifted styles", "image GMACs", "ms an image"):
        table.add_column(column, justify="right")
    for name in MODELS:
        row = summary[name]
        accuracies = [f"{row[column]:.3f}" for column in ("seen", "novel", "shift")]
        table.add_row(name.replace("_", " "), *accuracies, f"{row['gmacs']:.4f}", f"{row['ms']:.1f}")
    console.print(table)
    console.print(f"report: {folder / 'report' / 'report.html'}   ({summary['seconds']:.0f} s)")
    console.print(f"search its pictures: clipette up 'world:test?n=960' --model {folder / 'student'}", soft_wrap=True)
