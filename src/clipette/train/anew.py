"""``--no-resume``: what a run left is removed, and nothing that is not a run's."""

from __future__ import annotations

import shutil
from pathlib import Path

from clipette.errors import ConfigError
from clipette.train.lock import only_one

# What shows that a folder is a run's: also that of one which was killed while it poured.
MARKS = (
    "recipe.yaml",
    "summary.json",
    "metrics.jsonl",
    "plan.yaml",
    "plan.json",
    "results.json",
    "runs",
    "store/manifest.json",
)
# What runs and studies write into their folder; ``store-*`` are further teachers' outputs.
WRITTEN = (
    "cell.json",
    "checkpoints",
    "metrics.jsonl",
    "model",
    "plan.json",
    "plan.yaml",
    "recipe.yaml",
    "report.html",
    "results.csv",
    "results.json",
    "runs",
    "store",
    "stores",
    "summary.json",
    "table.md",
    "teacher",
    "views",
)


def begin_anew(out: Path) -> None:
    """Remove the run in ``out``; files that no run writes stay.

    Raises ``ConfigError`` where ``out`` holds something, and no run; or another process is at work there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    names = sorted(path.name for path in out.iterdir())
    if names and not any((out / mark).exists() for mark in MARKS):
        raise ConfigError(f"{out} holds '{names[0]}' and no run: --no-resume removes runs alone; choose another --out")
    with only_one(out):
        for name in names:
            path = out / name
            if name not in WRITTEN and not name.startswith("store-"):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
