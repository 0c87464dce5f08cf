"""Killed anywhere: pour and distil, SIGKILL at random moments, resume; the end must equal a run never killed.

Of the store every file, of the run directory every tensor (weights, optimiser, averages, the best of dev) bit for bit,
and every line of ``metrics.jsonl`` but for its seconds.
``python benchmarks/crash.py --what distill --kills 20 --out DIR`` prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# This checkout's package, installed or not.
SOURCE = str(Path(__file__).resolve().parents[1] / "src")

# ---------------------------------------------------------------- the children: what is killed


def pour_child(work: Path, out: Path) -> None:
    """Pour a few hundred small pictures, their views and some texts, in many small shards."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from torch import Tensor, nn

    from clipette.data.preprocess import Preprocess
    from clipette.data.sources import load_data
    from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower
    from clipette.models.inference import TorchEncoder
    from clipette.tasks.pour import PourPlan, pour

    class Codes:
        context_length = 24

        def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
            return {"input_ids": np.array([list(text.ljust(24)[:24].encode()) for text in texts], dtype=np.int64)}

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(256, 32)

        def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
            out: Tensor = self.table(tokens["input_ids"])
            return out

    # Built by hand: a child that imports no model zoo is ready three times sooner.
    torch.manual_seed(0)
    preprocess = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.GELU(), nn.Flatten())
    teacher = DualEncoder(
        ImageTower(image, nn.Linear(1024, 16), preprocess=preprocess, width=16, blueprint=Blueprint("crash", {})),
        TextTower(Bag(), nn.Linear(32, 16), tokenizer=Codes(), width=16, blueprint=Blueprint("crash", {})),
    )
    data = load_data(f"folder:{work / 'pictures'}")
    plan = PourPlan(views=2, batch_size=8, shard_size=8, max_failures=0.5)
    texts = [f"picture number {number}" for number in range(40)]
    encoder = TorchEncoder(teacher, name="crash", device="cpu")
    print("ready", flush=True)
    pour(encoder, data, out, plan, texts=texts)


def pour_input(work: Path, count: int = 150, *, damaged: int = 20) -> None:
    """Pictures for a child; one in ``damaged`` is, so that failures are resumed as well."""
    import numpy as np
    from PIL import Image

    folder = work / "pictures"
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"p{number:04d}.png"
        if number % damaged == 7:
            path.write_bytes(b"no picture")
            continue
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def distill_child(work: Path, out: Path) -> None:
    """Distil from a store with all that a run can keep: views, averages, the best of dev, batch norms, an adapter."""
    import torch

    torch.set_num_threads(1)
    from clipette.models.stored import StoredEncoder
    from clipette.store import open_store
    from clipette.train.job import Job
    from clipette.train.recipe import Recipe
    from clipette.train.run import run_job

    values = {
        "name": "crash",
        "student": {
            "dim": 16,
            "image": {"kind": "timm", "name": "test_resnet", "size": 32, "head": {"kind": "linear"}},
            "text": {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300},
        },
        "loss": {"image_cosine": 1, "in_batch_kl": 1},
        "views": {"count": 2},
        "train": {
            "steps": 40,
            "batch_size": 16,
            "micro_batches": 2,
            "ema": 0.9,
            "keep": "best",
            "save_every": 3,
            "evaluate_every": 7,
            "threads": 1,
        },
    }
    data, store = captioned(work), open_store(work / "store")
    job = Job(
        recipe=Recipe.model_validate_json(json.dumps(values)),
        data=data,
        dev=data.subset([sample.key for sample in data.samples][:20]),
        out=out,
        teacher=StoredEncoder.of_store(store),
        store=store,
        device="cpu",
        progress=False,
    )
    print("ready", flush=True)
    run_job(job)


def captioned(work: Path) -> Any:
    """The pictures with a caption each."""
    from clipette.data.sources import load_data

    data = load_data(f"folder:{work / 'pictures'}")
    return replace(data, samples=tuple(replace(each, captions=(f"picture {each.key}",)) for each in data.samples))


def distill_input(work: Path) -> None:
    """Pictures, one of them damaged, and a store that knows them all."""
    from common import random_store

    pour_input(work, 64, damaged=20)
    random_store(work / "store", captioned(work), dim=24, views=2)


@dataclass(frozen=True)
class Subject:
    """What is killed: how its input is made, what a child does, and what of each of its files must come out equal."""

    prepare: Callable[[Path], None]
    child: Callable[[Path, Path], None]
    compared: Callable[[str, bytes], bytes | None] = lambda name, content: content


def of_run(name: str, content: bytes) -> bytes | None:
    """What of a run directory's file is no clock: tensors and tokenizers whole, metrics without their seconds."""
    if name.endswith(".safetensors") or name.startswith("model/assets/") or name == "recipe.yaml":
        return content
    if name == "metrics.jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        return json.dumps([{**line, "seconds": None} for line in lines]).encode()
    return None


SUBJECTS: dict[str, Subject] = {
    "pour": Subject(pour_input, pour_child),
    "distill": Subject(distill_input, distill_child, of_run),
}

# ---------------------------------------------------------------- the parent: who kills


@dataclass
class Tally:
    """What happened: kills that found the child alive, completed runs, and those that came out different."""

    kills: int = 0
    completed: int = 0
    different: int = 0
    missed: int = 0


def start(what: str, work: Path, out: Path) -> subprocess.Popen[str]:
    """A child that has loaded its model and begins to work."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", what, "--work", str(work), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    if "ready" not in child.stdout.readline():
        raise SystemExit(f"the {what} child did not start (exit code {child.wait()})")
    return child


def finish(child: subprocess.Popen[str], what: str) -> None:
    """Wait for a child that is not killed."""
    if child.wait() != 0:
        raise SystemExit(f"the {what} child failed with exit code {child.returncode}")


def snapshot(folder: Path, compared: Callable[[str, bytes], bytes | None]) -> dict[str, bytes]:
    """Every file that must be equal, with what of it must be."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    contents = {name: compared(name, path.read_bytes()) for name, path in sorted(names.items())}
    return {name: content for name, content in contents.items() if content is not None}


def crash(what: str, kills: int, seed: int, work: Path) -> dict[str, object]:
    """Kill ``what`` ``kills`` times, each at a random moment of its work, and compare what it ends with."""
    subject = SUBJECTS[what]
    begun = time.monotonic()
    subject.prepare(work)
    whole = work / "whole"
    child = start(what, work, whole)
    working = time.monotonic()
    finish(child, what)
    length = time.monotonic() - working
    expected = snapshot(whole, subject.compared)
    draw, tally, target = random.Random(seed), Tally(), work / "killed"
    while tally.kills < kills:
        shutil.rmtree(target, ignore_errors=True)
        # Up to three kills on one run: a resumed run is killed again.
        for _ in range(min(3, kills - tally.kills)):
            child = start(what, work, target)
            time.sleep(draw.uniform(0, 0.7 * length))
            child.send_signal(signal.SIGKILL)
            alive = child.wait() == -signal.SIGKILL
            tally.kills += alive
            tally.missed += not alive
            if not alive:
                break
        finish(start(what, work, target), what)
        tally.completed += 1
        tally.different += snapshot(target, subject.compared) != expected
    return {
        "kills": tally.kills,
        "completed": tally.completed,
        "missed": tally.missed,
        "equal": tally.different == 0,
        "files": len(expected),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main(given: Sequence[str] | None = None) -> int:
    if "--child" in (given or sys.argv):
        parser = argparse.ArgumentParser()
        parser.add_argument("--child", choices=list(SUBJECTS))
        parser.add_argument("--work", type=Path)
        parser.add_argument("--out", type=Path)
        child = parser.parse_args(given)
        SUBJECTS[child.child].child(child.work, child.out)
        return 0
    sys.path.insert(0, SOURCE)
    from common import arguments, finish, machine

    parser = arguments(__doc__, "bench-crash")
    parser.add_argument("--what", choices=[*SUBJECTS, "all"], default="all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments of the kills")
    options = parser.parse_args(given)
    kills = 1 if options.smoke else options.kills
    results: dict[str, dict[str, object]] = {}
    for what in SUBJECTS if options.what == "all" else [options.what]:
        with tempfile.TemporaryDirectory(prefix="clipette-crash-") as folder:
            results[what] = crash(what, kills, options.seed, Path(folder))
    finish({**results, "seed": options.seed, "machine": machine()}, options.out)
    return 0 if all(each["equal"] for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
