"""TinyCLIP's automatic inheritance from the command's verbs to a smaller model in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from tests.tasks.test_masks import VIT
from tests.train import small_world, tiny

import clipette
from clipette.data.sources import load_data
from clipette.errors import ConfigError, ModelError
from clipette.models.saved import load_model, save_model
from clipette.models.students import build_model
from clipette.train.dev import DevMeter
from clipette.train.job import Job, identity_of
from clipette.train.log import read_metrics
from clipette.train.loop import Loop

TEXT = {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300}
PARTS = ("modules.safetensors", "optimizer.safetensors", "average.safetensors")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Pictures, a teacher of the student's own architecture, and a recipe."""
    small_world.write_pictures(tmp_path)
    data = tiny.dataset(24)
    captions = [f"a {tiny.CLASSES[n % 4]} one, number {n}" for n in range(len(data.samples))]
    spec = tiny.spec(image=VIT, text=TEXT)
    save_model(build_model(spec, captions=captions, seed=7), tmp_path / "teacher" / "model", name="teacher")
    recipe = {
        "name": "auto",
        "student": spec.model_dump(mode="json"),
        "inherit": {"towers": ["image", "text"]},
        "masks": {"keep": 0.5, "warmup": 0.5, "lr": 0.5},
        "loss": {"affinity": 1},
        "views": {"count": 1},
        "train": {"steps": 60, "batch_size": 8, "evaluate_every": 60, "save_every": 5, "ema": 0.5, "threads": 1},
    }
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def distill(world: Path, out: str, *overrides: str) -> Path:
    return clipette.distill(
        world / "auto.yaml",
        teacher=str(world / "teacher"),
        data=f"csv:{world / 'train.csv'}",
        dev=f"csv:{world / 'train.csv'}",
        overrides=list(overrides),
        out=world / out,
        device="cpu",
    )


def trunk_parameters(folder: Path) -> int:
    """Parameters of heads and hidden units in both towers."""
    tensors = load_file(folder / "model" / "model.safetensors")
    inside = ("attn.qkv.", "attn.in_proj", "proj.weight", "fc1.", "fc2.weight", "c_fc.", "c_proj.weight")
    named = {n: t for n, t in tensors.items() if ("blocks." in n) and any(part in n for part in inside)}
    return sum(tensor.numel() for name, tensor in named.items())


@pytest.mark.bench
def test_a_run_ends_with_half_of_the_teacher_and_loads_in_a_fresh_process(world: Path) -> None:
    run = distill(world, "run")
    lines = read_metrics(run / "metrics.jsonl", "train")
    shares = [line["raw"]["masks"] for line in lines]
    assert shares[0] > 0.99
    assert shares[-1] == pytest.approx(0.5, abs=0.1)
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["weighted"].values()), rel=1e-4)
    assert trunk_parameters(run) / trunk_parameters(world / "teacher") == pytest.approx(0.5, abs=0.1)
    kinds = {side: json.loads((run / "model" / "model.json").read_text())[side]["kind"] for side in ("image", "text")}
    assert kinds == {"image": "pruned_image", "text": "pruned_text"}
    here = clipette.load(str(run)).encode_texts(["a red one"])
    code = f"import clipette, json; print(json.dumps(clipette.load({str(run)!r}).encode_texts(['a red one']).tolist()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=small_world.environment(world), capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(json.loads(done.stdout), here, atol=1e-6)


def test_the_dev_figures_of_the_end_are_those_of_the_model_that_is_left(world: Path) -> None:
    run = distill(world, "run")
    last = read_metrics(run / "metrics.jsonl", "dev")[-1]
    student = load_model(run).model
    again = DevMeter(student, load_data(f"csv:{world / 'train.csv'}"), templates="single", device="cpu").measure()
    assert {name: last[name] for name in again} == pytest.approx(dict(again))


def test_a_run_that_was_stopped_ends_in_the_same_bits(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, multipliers, the step of the target, their moving average and the draws of the gates."""
    whole = distill(world, "whole", "train.steps=12", "train.micro_batches=2")
    update = Loop._update

    def until_seven(self: Loop, *args: Any) -> Any:
        if self.step == 7:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(Loop, "_update", until_seven)
    with pytest.raises(KeyboardInterrupt):
        distill(world, "parts", "train.steps=12", "train.micro_batches=2")
    monkeypatch.setattr(Loop, "_update", update)
    parts = distill(world, "parts", "train.steps=12", "train.micro_batches=2")
    last = Path("checkpoints") / "step-00000012"
    for name in PARTS:
        assert (whole / last / name).read_bytes() == (parts / last / name).read_bytes(), name
    saved = load_file(whole / last / "modules.safetensors")
    assert int(saved["masks.step"]) == 12
    assert float(saved["masks.multipliers"].min()) > 10
    name = Path("model") / "model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # A finished run, run again, prunes what it pruned.
    assert (distill(world, "parts", "train.steps=12", "train.micro_batches=2") / name).read_bytes() == (
        whole / name
    ).read_bytes()


@pytest.mark.bench
def test_the_next_stage_starts_from_the_result_with_or_without_masks(world: Path) -> None:
    first = distill(world, "first", "masks.keep=0.75")
    second = distill(world, "second", f"init={first}", "masks.keep=0.66", "seed=1")
    sizes = [trunk_parameters(each) for each in (world / "teacher", first, second)]
    assert sizes[1] / sizes[0] == pytest.approx(0.75, abs=0.1)
    assert sizes[2] / sizes[1] == pytest.approx(0.66, abs=0.1)
    healed = distill(world, "healed", f"init={first}", "masks=null", "train.steps=2")
    assert trunk_parameters(healed) == sizes[1]
    assert load_model(healed).model.image_tower().blueprint.kind == "pruned_image"
    # A pruned model is a teacher like any other.
    assert clipette.load(str(second)).encode_texts(["x"]).shape == (1, 16)
    with pytest.raises(ModelError, match="a tower of 1 layers cannot take"):
        distill(world, "other", f"init={first}", "inherit=null", "student.image.args.depth=1")


def test_recipes_without_masks_are_the_runs_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun before there was the key goes on."""
    monkeypatch.setattr("clipette.train.job.digest_json", lambda facts: facts)
    for rest, there in (({}, False), ({"masks": {"keep": 0.25}}, True)):
        recipe = tiny.RecipeParts(rest=rest).recipe()
        facts: Any = identity_of(Job(recipe=recipe, data=tiny.dataset(4), out=tmp_path))
        assert ("masks" in facts["recipe"]) == there


def test_settings_that_cannot_be_are_refused(world: Path) -> None:
    for wrong, words in (
        ("masks.keep=0", "greater than 0"),
        ("masks.towers=[]", "at least 1 item"),
        ("masks.kep=1", "keep"),
        ("train.keep=best", "use keep: last"),
    ):
        with pytest.raises(ConfigError, match=words):
            distill(world, "wrong", wrong)
