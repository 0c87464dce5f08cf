"""A folder of pictures with captions, a teacher's run and a recipe, written as a user has them; and the command."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.train import tiny

from clipette.models.saved import save_model

PROJECT = Path(__file__).resolve().parents[2]

RECIPE = """\
name: small
seed: 3
student:
  dim: 16
  image: {kind: timm, name: test_resnet, size: 32, head: {kind: linear}}
  text: {kind: small, width: 16, layers: 1, heads: 2, tokenizer: words, vocabulary: 300}
loss: {clip: 1, image_cosine: {weight: 2}, in_batch_kl: 1}
views: {count: 2}
train: {steps: 12, batch_size: 8, save_every: 1, evaluate_every: 4, warmup: 0.1, ema: 0.9, keep: best, threads: 1}
"""


def write_pictures(folder: Path, count: int = 24) -> Path:
    """``folder/pictures/*.png`` and ``folder/train.csv``."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "image", "caption", "class"])
        for number in range(count):
            label = number % len(tiny.CLASSES)
            name = f"pictures/p{number:03d}.png"
            (folder / name).write_bytes(tiny.picture(label, number))
            table.writerow(
                [f"p{number:03d}", name, f"a {tiny.CLASSES[label]} one, number {number}", tiny.CLASSES[label]]
            )
    return folder / "train.csv"


def write_teacher(folder: Path, dim: int = 24, seed: int = 7) -> Path:
    """A run directory with an untrained model."""
    save_model(tiny.student(seed=seed, dim=dim), folder / "model", name="teacher")
    return folder


def write_recipe(path: Path, text: str = RECIPE) -> Path:
    path.write_text(text)
    return path


def environment(folder: Path) -> dict[str, str]:
    """One thread, no network, a cache of its own."""
    return {
        **os.environ,
        "PYTHONPATH": str(PROJECT / "src"),
        "CLIPETTE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``clipette …`` in ``folder``, running."""
    command = [sys.executable, "-m", "clipette", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def clipette(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``clipette …`` in ``folder``, finished."""
    command = [sys.executable, "-m", "clipette", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300, check=False
    )


def within(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``clipette …`` in ``folder``, in this process: the same entry point without the seconds of imports."""
    from clipette.cli.app import main

    before, out, errors = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            code = main(list(arguments))
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), errors.getvalue())
