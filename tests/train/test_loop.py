"""The loop: what it logs, what it resumes to, what it refuses, what it keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import tiny
from tests.train.steps import make_feed, make_task
from torch import Tensor

from clipette.errors import ConfigError, ModelError
from clipette.tasks.batch import Batch
from clipette.tasks.feed import Feed
from clipette.tasks.objective import Objective
from clipette.train.checkpoint import find_checkpoint
from clipette.train.log import read_metrics
from clipette.train.loop import Dev, Loop, LoopResult, set_mode
from clipette.train.settings import TrainSettings

CPU = torch.device("cpu")


class Interrupted(Exception):
    """Stands for a kill between two steps."""


def settings(**changes: Any) -> TrainSettings:
    values = {"steps": 6, "batch_size": 16, "save_every": 2, "evaluate_every": 1, "warmup": 0.0, **changes}
    return TrainSettings.model_validate_json(json.dumps(values))


def make_loop(
    folder: Path,
    *,
    measure: Callable[[], Mapping[str, float]] | None = None,
    task: Objective | None = None,
    feed: Feed | None = None,
    identity: str = "one recipe",
    **changes: Any,
) -> Loop:
    task = task or make_task(dropout=0.5)
    return Loop(
        task,
        feed or make_feed(task),
        settings(**changes),
        folder=folder,
        seed=3,
        device=CPU,
        dev=None if measure is None else Dev(measure, "figure"),
        identity=identity,
    )


def run(loop: Loop) -> LoopResult:
    try:
        return loop.run(progress=False)
    finally:
        loop.feed.close()


def state_of(loop: Loop) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loop.parts.state_dict().items()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Script:
    """Dev figures in order; an exception in the list is raised at its turn. Keeps the weights that it was shown."""

    def __init__(self, values: list[float | type[Exception]], loop: Callable[[], Loop] | None = None) -> None:
        self.values = values
        self.calls = 0
        self.loop = loop
        self.shown: list[dict[str, Tensor]] = []

    def __call__(self) -> Mapping[str, float]:
        value = self.values[min(self.calls, len(self.values) - 1)]
        self.calls += 1
        if isinstance(value, type):
            raise value
        if self.loop is not None:
            self.shown.append(state_of(self.loop()))
        return {"figure": value}


def test_a_run_logs_every_step_and_learns(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, measure=Script([0.25]), evaluate_every=3, steps=6)
    before = state_of(loop)
    result = run(loop)
    assert (result.steps, result.best, result.best_step) == (6, None, None)
    assert result.images_per_second == pytest.approx(6 * 16 / result.seconds)
    steps = read_metrics(tmp_path / "metrics.jsonl", "train")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["images"] for line in steps] == [16 * n for n in range(1, 7)]
    assert [line["epoch"] for line in steps] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    for line in steps:
        assert line["weighted"].keys() == {"clip", "image_cosine", "in_batch_kl"}
        assert line["weighted"]["image_cosine"] == pytest.approx(2 * line["raw"]["image_cosine"])
        assert line["loss"] == pytest.approx(sum(line["weighted"].values()), rel=1e-5)
        total = sum(abs(value) for value in line["weighted"].values())
        assert line["effective"]["clip"] == pytest.approx(abs(line["weighted"]["clip"]) / total)
        assert sum(line["effective"].values()) == pytest.approx(1)
        assert line["gradient_norm"] > 0
    seconds = [line["seconds"] for line in steps]
    assert seconds == sorted(seconds)
    assert steps[-1]["loss"] < steps[0]["loss"]
    dev = read_metrics(tmp_path / "metrics.jsonl", "dev")
    seen = [(line["step"], line["images"], line["figure"]) for line in dev]
    assert seen == [(0, 0, 0.25), (3, 48, 0.25), (6, 96, 0.25)]
    assert not equal(before, state_of(loop))
    assert not loop.parts.training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stopped_at", [3, 5])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, optimizer: str, stopped_at: int) -> None:
    """Weights, batch-norm statistics, moving average and optimiser, with dropout and micro-batches."""
    options: dict[str, Any] = {"ema": 0.9, "micro_batches": 2, "optimizer": {"name": optimizer, "lr": 1e-2}}
    whole = make_loop(tmp_path / "whole", measure=Script([0.0]), **options)
    run(whole)
    broken = make_loop(tmp_path / "parts", measure=Script([*[0.0] * stopped_at, Interrupted]), **options)
    with pytest.raises(Interrupted):
        run(broken)
    found = find_checkpoint(tmp_path / "parts" / "checkpoints")
    assert found is not None
    assert found.name == f"step-{stopped_at - 1:08d}"
    resumed = make_loop(tmp_path / "parts", measure=Script([0.0]), **options)
    assert resumed.step == stopped_at - 1
    run(resumed)
    assert equal(state_of(whole), state_of(resumed))
    last = Path("checkpoints") / "step-00000006"
    for name in ("modules.safetensors", "optimizer.safetensors", "average.safetensors"):
        assert (tmp_path / "whole" / last / name).read_bytes() == (tmp_path / "parts" / last / name).read_bytes(), name
    lines = [read_metrics(tmp_path / each / "metrics.jsonl", "train") for each in ("whole", "parts")]
    for left, right in zip(*lines, strict=True):
        assert {**left, "seconds": 0} == {**right, "seconds": 0}


def test_a_finished_run_run_again_changes_nothing(tmp_path: Path) -> None:
    first = make_loop(tmp_path)
    result = run(first)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    second = make_loop(tmp_path)
    again = run(second)
    assert equal(state_of(first), state_of(second))
    assert again == result
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_a_cut_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    script = Script([0, 0, 0, 0, Interrupted])
    with pytest.raises(Interrupted):
        run(make_loop(tmp_path, measure=script))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "ima')
    run(make_loop(tmp_path, measure=Script([0.0])))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "train")] == [1, 2, 3, 4, 5, 6]


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(make_loop(tmp_path))
    with pytest.raises(ConfigError, match="another recipe, teacher or data: choose another --out"):
        make_loop(tmp_path, identity="another recipe")


@pytest.mark.parametrize("name", ["modules.safetensors", "optimizer.safetensors", "average.safetensors"])
def test_a_damaged_checkpoint_says_which_and_what_to_do(tmp_path: Path, name: str) -> None:
    run(make_loop(tmp_path, ema=0.9, steps=2))
    path = tmp_path / "checkpoints" / "step-00000002" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"(?s)step-00000002 .* is damaged.*delete it to start again"):
        make_loop(tmp_path, ema=0.9, steps=2)


def test_a_checkpoint_whose_facts_are_cut_says_so(tmp_path: Path) -> None:
    run(make_loop(tmp_path, steps=2))
    path = tmp_path / "checkpoints" / "step-00000002" / "state.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ModelError, match=r"(?s)step-00000002 .* is damaged.*delete it to start again"):
        make_loop(tmp_path, steps=2)


def test_keep_best_ends_with_the_weights_of_the_best_figure(tmp_path: Path) -> None:
    holder: list[Loop] = []
    script = Script([0.1, 0.2, 0.6, 0.6, 0.3, 0.5, 0.1], loop=lambda: holder[0])
    holder.append(make_loop(tmp_path, measure=script, keep="best", ema=0.9))
    result = run(holder[0])
    assert (result.best, result.best_step) == (0.6, 2)
    assert equal(state_of(holder[0]), script.shown[2])
    assert not equal(script.shown[2], script.shown[3])


def test_keep_best_survives_a_resume(tmp_path: Path) -> None:
    holder: list[Loop] = []
    figures: list[float | type[Exception]] = [0.1, 0.2, 0.6, 0.3, 0.3, 0.9, 0.2]
    whole = Script(figures, loop=lambda: holder[0])
    holder.append(make_loop(tmp_path / "whole", measure=whole, keep="best"))
    run(holder[0])
    # Killed after the best of step 5 was written but before the checkpoint of step 6.
    with pytest.raises(Interrupted):
        run(make_loop(tmp_path / "parts", measure=Script([*figures[:6], Interrupted]), keep="best"))
    resumed = make_loop(tmp_path / "parts", measure=Script(figures[5:]), keep="best")
    assert (resumed.step, resumed.best, resumed.best_step) == (4, 0.6, 2)
    result = run(resumed)
    assert (result.best, result.best_step) == (0.9, 5)
    assert equal(state_of(resumed), state_of(holder[0]))


def test_keep_last_ends_with_the_moving_average(tmp_path: Path) -> None:
    plain, averaged = make_loop(tmp_path / "plain"), make_loop(tmp_path / "averaged", ema=0.5)
    run(plain)
    run(averaged)
    assert averaged.average is not None
    assert equal(state_of(averaged), averaged.average.state)
    assert not equal(state_of(averaged), state_of(plain))


def test_keep_best_without_dev_data_or_with_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep: best needs dev data"):
        make_loop(tmp_path, keep="best")
    loop = make_loop(tmp_path, measure=lambda: {"top1": 0.5}, keep="best")
    with pytest.raises(ConfigError, match=r"needs the dev figure 'figure'; there are \['top1'\]"):
        run(loop)


def test_a_loss_that_is_not_finite_stops_with_advice_before_the_weights_change(tmp_path: Path) -> None:
    task = make_task()
    loop = make_loop(tmp_path, task=task, feed=PoisonedFeed(make_feed(task), at=2))
    with pytest.raises(ModelError, match=r"not finite at step 2 .*lower the learning rate") as caught:
        run(loop)
    assert "image_cosine" in str(caught.value)
    assert all(bool(value.isfinite().all()) for value in loop.parts.parameters())


class PoisonedFeed(Feed):
    """A feed whose batch of one step holds a value that is not a number."""

    def __init__(self, feed: Feed, at: int) -> None:
        super().__init__(feed.samples, feed.plan, feed.outputs)
        self.at = at

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if step == self.at:
            batch.targets["teacher_image"][0, 0] = math.nan
        return batch


def test_progressive_sizes_change_at_their_epoch(tmp_path: Path) -> None:
    task = make_task()
    feed = make_feed(task)
    feed = Feed(feed.samples, replace(feed.plan, sizes={0: 16, 2: 24}), feed.outputs)
    shapes = [tuple(feed.batch(step).inputs["pixels"].shape[-2:]) for step in range(6)]
    assert shapes == [(16, 16)] * 4 + [(24, 24)] * 2
    assert run(make_loop(tmp_path, task=task, feed=feed)).steps == 6


def test_yaml_sizes_have_whole_numbers_as_keys() -> None:
    assert settings(sizes={"0": 128, "6": 224}).sizes == {0: 128, 6: 224}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_keeps_its_bytes_and_stays_in_evaluation_mode(tmp_path: Path, tower: str) -> None:
    task = make_task()
    part = task.student.image_tower() if tower == "image" else task.student.text_tower()
    part.requires_grad_(False)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    loop = make_loop(tmp_path, task=task)
    set_mode(loop.parts, freeze_norms=False)
    assert not any(module.training for module in part.modules())
    other = task.student.text_tower() if tower == "image" else task.student.image_tower()
    assert all(module.training for module in other.modules())
    run(loop)
    assert equal(before, part.state_dict())


def test_norms_are_frozen_on_request(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, freeze_norms=True)
    norms = [m for m in loop.parts.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    run(loop)
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert before
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_scale_stops_at_its_limit_and_can_come_back(tmp_path: Path) -> None:
    """At exactly the limit there still is a gradient; a frozen scale above the limit is left alone."""
    task = make_task()
    with torch.no_grad():
        task.student.logit_scale.fill_(math.log(500.0))
    loop = make_loop(tmp_path, task=task, max_scale=20.0, steps=1)
    run(loop)
    assert float(task.student.logit_scale.detach()) == pytest.approx(math.log(20.0))
    feed = make_feed(task)
    batch = feed.batch(0)
    task.parts.zero_grad()
    task.loss(task.encode(batch), batch.targets).loss.backward()  # type: ignore[no-untyped-call]
    feed.close()
    assert task.student.logit_scale.grad is not None
    assert float(task.student.logit_scale.grad) != 0


def test_a_frozen_scale_above_the_limit_is_left_alone(tmp_path: Path) -> None:
    task = make_task()
    with torch.no_grad():
        task.student.logit_scale.fill_(math.log(117.0))
    task.student.logit_scale.requires_grad_(False)
    run(make_loop(tmp_path, task=task, steps=1))
    assert float(task.student.scale.detach()) == pytest.approx(117.0, rel=1e-5)


def test_failures_of_an_interrupted_run_are_remembered(tmp_path: Path) -> None:
    def feed_of(task: Objective) -> Feed:
        plain = make_feed(task)
        return Feed(tiny.dataset(bad=[5]).samples, plain.plan, plain.outputs)

    first = make_task()
    with pytest.raises(Interrupted):
        run(make_loop(tmp_path, task=first, feed=feed_of(first), measure=Script([0, 0, 0, Interrupted])))
    second = make_task()
    loop = make_loop(tmp_path, task=second, feed=feed_of(second))
    assert [failure.key for failure in loop.feed.failures] == ["s005"]
    run(loop)
    assert [failure.key for failure in loop.feed.failures] == ["s005"]
