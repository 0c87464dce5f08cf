"""The real command, as a user types it: the whole way once, and every wrong input answered in words."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.train.small_world import RECIPE, clipette, within, write_pictures, write_recipe, write_teacher

from clipette.data.sources import load_data

TEACHER = RECIPE.replace("loss: {clip: 1, image_cosine: {weight: 2}, in_batch_kl: 1}", "loss: {clip: 1}").replace(
    "keep: best", "keep: last"
)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a teacher's run and a recipe."""
    folder = tmp_path_factory.mktemp("world")
    write_pictures(folder)
    write_teacher(folder / "teacher")
    write_recipe(folder / "recipe.yaml", RECIPE.replace("steps: 12", "steps: 2"))
    return folder


@pytest.mark.slow
def test_render_pretrain_pour_distill(tmp_path: Path) -> None:
    """What each verb writes is what the next reads, and the figures are where the documents say."""
    write_recipe(tmp_path / "teacher.yaml", TEACHER)
    write_recipe(tmp_path / "student.yaml")
    tars = ok(clipette(tmp_path, "render", "world", "--split", "train", "--n", "40", "--size", "32")).split()
    assert len(load_data(f"wds:{tmp_path / tars[0]}")) == 40
    data = f"wds:{tars[0]}"
    ok(clipette(tmp_path, "pretrain", "teacher.yaml", "--data", data, "--device", "cpu", "--out", "teacher"))
    pouring = ("pour", "teacher", "--data", data, "--views", "2", "--device", "cpu", "--out", "store")
    said = ok(clipette(tmp_path, *pouring))
    assert said.strip() == "store"
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.npy"))
    ok(within(tmp_path, *pouring))
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.npy")) == before
    options = ["--store", "store", "--data", data, "--dev", data, "--set", "train.steps=6", "--device", "cpu"]
    ok(clipette(tmp_path, "distill", "student.yaml", *options, "--out", "run"))
    run = tmp_path / "run"
    for name in ("recipe.yaml", "metrics.jsonl", "summary.json", "model/model.json", "model/model.safetensors"):
        assert (run / name).is_file(), name
    assert "steps: 6" in (run / "recipe.yaml").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "dev"] == [0, 4, 6]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["teacher"]["name"] == "teacher"
    assert summary["best"] == max(line["mean_recall"] for line in lines if line["kind"] == "dev")
    # Run again: nothing to do. Another recipe in the same folder: refused.
    weights = (run / "model" / "model.safetensors").read_bytes()
    ok(within(tmp_path, "distill", "student.yaml", *options, "--out", "run"))
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    done = within(tmp_path, "distill", "student.yaml", *options, "--set", "seed=4", "--out", "run")
    assert done.returncode == 2
    assert "holds a run of another recipe" in done.stderr


def distill(world: Path, *arguments: str, out: str = "refused") -> subprocess.CompletedProcess[str]:
    return within(world, "distill", "recipe.yaml", "--device", "cpu", "--out", out, *arguments)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("clipette: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_an_unknown_recipe_key_names_the_nearest(world: Path) -> None:
    write_recipe(world / "bad.yaml", RECIPE.replace("batch_size: 8", "batchsize: 8"))
    done = within(world, "distill", "bad.yaml", "--out", "refused")
    refused(done, "bad.yaml:9", "unknown key 'train.batchsize'", "did you mean 'batch_size'?")
    refused(distill(world, "--set", "train.stpes=3"), "unknown key 'train.stpes'", "did you mean 'steps'?")


def test_missing_data_is_named(world: Path) -> None:
    refused(distill(world, "--teacher", "teacher"), "no training data", "--data")
    refused(distill(world, "--teacher", "teacher", "--data", "csv:absent.csv"), "absent.csv")
    refused(distill(world, "--data", "csv:train.csv"), "need a teacher")
    refused(distill(world, "--teacher", "absent", "--data", "csv:train.csv"), "'absent': no such folder")


def test_an_unreadable_folder_is_named(world: Path) -> None:
    refused(distill(world, "--teacher", "teacher", "--data", "folder:nowhere"), "nowhere: no such folder")
    (world / "empty").mkdir(exist_ok=True)
    refused(distill(world, "--teacher", "teacher", "--data", "folder:empty"), "empty: no images in this folder")
    if os.geteuid() != 0:
        (world / "locked").mkdir(mode=0o000)
        refused(distill(world, "--teacher", "teacher", "--data", "folder:locked"), "locked")


def test_stores_that_do_not_fit_are_refused(world: Path) -> None:
    """Of another width, of another teacher of the same width, and not finished."""
    write_teacher(world / "narrow", dim=12)
    write_teacher(world / "other", seed=8)
    ok(within(world, "pour", "narrow", "--data", "csv:train.csv", "--device", "cpu", "--out", "narrow-store"))
    data = ("--data", "csv:train.csv")
    refused(distill(world, "--teacher", "teacher", "--store", "narrow-store", *data), "another teacher")
    student = ("--set", "student.space=teacher", "--set", "student.text=null", "--set", "loss={image_cosine: 1}")
    refused(distill(world, "--store", "narrow-store", *data, *student), "teacher's width 12", "dim: 16")
    ok(within(world, "pour", "other", *data, "--device", "cpu", "--out", "other-store"))
    refused(distill(world, "--teacher", "teacher", "--store", "other-store", *data), "another teacher")
    (world / "other-store" / "manifest.json").unlink()
    refused(distill(world, "--store", "other-store", *data), "the pour has not finished")
    refused(distill(world, "--store", "nothing", *data), "no store here")
    done = within(world, "pour", "teacher", *data, "--device", "cpu", "--out", "narrow-store")
    refused(done, "narrow-store")


def test_rows_that_are_left_out_are_recorded(world: Path) -> None:
    """Duplicate keys, empty captions and a picture that is none: skipped, counted, named in the summary."""
    lines = (world / "train.csv").read_text().splitlines()
    lines += ["p000,pictures/p001.png,a second one of that key,red", "empty,pictures/p002.png,,blue"]
    lines += ["broken,pictures/broken.png,a broken picture,blue"]
    (world / "pictures" / "broken.png").write_text("no picture")
    (world / "more.csv").write_text("\n".join(lines) + "\n")
    options = ("--teacher", "teacher", "--data", "csv:more.csv", "--set", "train.keep=last")
    # A sample without any caption cannot serve losses that read captions: said before training.
    refused(distill(world, *options, out="recorded"), "sample 'empty' has no caption", "use image-only losses")
    (world / "more.csv").write_text("\n".join(line for line in lines if not line.startswith("empty,")) + "\n")
    ok(distill(world, *options, out="recorded"))
    listed = json.loads((world / "recorded" / "summary.json").read_text())["failures"]
    failures = {failure["key"]: failure for failure in listed}
    assert failures.keys() == {"p000", "broken"}
    assert "already used" in failures["p000"]["reason"]
    assert "broken.png (more.csv row" in failures["broken"]["location"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Thirty-two megabytes and no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a full disk needs a small tmpfs, which only root may mount")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_run_resumes_when_there_is_room(world: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 29_000_000)
    arguments = ("--teacher", "teacher", "--data", "csv:train.csv", "--set", "train.keep=last")
    refused(distill(world, *arguments, out=str(small_disk / "run")), "the disk is full", "what is done is kept")
    assert (small_disk / "run" / "store" / "manifest.json").exists()
    filler.unlink()
    ok(distill(world, *arguments, out=str(small_disk / "run")))
    ok(distill(world, *arguments, out="roomy"))
    weights = Path("model") / "model.safetensors"
    assert (small_disk / "run" / weights).read_bytes() == (world / "roomy" / weights).read_bytes()
