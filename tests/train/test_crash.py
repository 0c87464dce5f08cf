"""``clipette distill``, killed while it pours and while it trains, ends in the bits of a run that was never killed."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.train import small_world

SEED = 5


def command(out: str) -> list[str]:
    data = ["--data", "csv:train.csv", "--dev", "csv:train.csv"]
    return ["distill", "recipe.yaml", "--teacher", "teacher", *data, "--device", "cpu", "--out", out]


def kill_when(folder: Path, reached: Callable[[], bool], wait: float) -> None:
    """Start the command, and kill it ``wait`` seconds after ``reached``."""
    child = small_world.start(folder, *command("killed"))
    deadline = time.monotonic() + 240
    while not reached():
        assert child.poll() is None, f"it ended before it could be killed: {child.communicate()[1]}"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.002)
    try:
        child.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    _, errors = child.communicate()
    assert child.returncode in (0, -signal.SIGKILL), errors
    # A run that was faster than the knife proves nothing.
    assert child.returncode == -signal.SIGKILL, "it was done before it could be killed"


def content(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if path.name not in without}


# Beside the tests that kill pour and distil thrice each: those run every time.
@pytest.mark.bench
def test_killed_while_pouring_and_twice_while_training(tmp_path: Path) -> None:
    small_world.write_pictures(tmp_path, 96)
    small_world.write_teacher(tmp_path / "teacher")
    small_world.write_recipe(tmp_path / "recipe.yaml", small_world.RECIPE.replace("steps: 12", "steps: 40"))
    done = small_world.clipette(tmp_path, *command("whole"))
    assert done.returncode == 0, done.stderr
    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(SEED)

    def steps() -> int:
        names = [path.name for path in (killed / "checkpoints").glob("step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    # While the pour is at work: its folder is there, the finished manifest is not.
    kill_when(tmp_path, lambda: (killed / "store" / "store.json").exists(), wait=0.0)
    assert not (killed / "store" / "manifest.json").exists()
    kill_when(tmp_path, lambda: steps() >= 1, wait=draw.uniform(0, 0.05))
    first = steps()
    assert 1 <= first < 40
    kill_when(tmp_path, lambda: steps() > first, wait=draw.uniform(0, 0.1))
    assert first < steps() < 40
    done = small_world.clipette(tmp_path, *command("killed"))
    assert done.returncode == 0, done.stderr

    weights = Path("model") / "model.safetensors"
    assert (whole / weights).read_bytes() == (killed / weights).read_bytes()
    assert content(whole / "store") == content(killed / "store")
    last = Path("checkpoints") / "step-00000040"
    # state.json holds the seconds.
    assert content(whole / last, without=("state.json",)) == content(killed / last, without=("state.json",))
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, killed)]
    assert len(lines[0]) == len(lines[1])
