"""Groups, the learning-rate curve, and the moving average against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.train.steps import make_task
from torch import nn

from clipette.errors import ConfigError
from clipette.train.optim import (
    GaussianMean,
    MovingAverage,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    rate_factor,
)
from clipette.train.settings import OptimizerSettings, TrainSettings


def groups_of(task: Any, **changes: Any) -> dict[str, tuple[float, float]]:
    """Parameter name → (rate, decay)."""
    names = {id(parameter): name for name, parameter in task.parts.named_parameters()}
    out: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(task.parts, OptimizerSettings(**changes)):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            out[names[id(parameter)]] = (float(group["lr"]), float(group["weight_decay"]))  # type: ignore[arg-type]
    return out


def test_every_parameter_is_in_one_group_and_only_matrices_are_decayed() -> None:
    task = make_task()
    found = groups_of(task, lr=1e-3, head_lr=2e-3, text_lr=3e-3, weight_decay=0.1)
    assert found.keys() == dict(task.parts.named_parameters()).keys()
    shapes = {name: parameter.ndim for name, parameter in task.parts.named_parameters()}
    for name, (_, decay) in found.items():
        assert decay == (0.1 if shapes[name] >= 2 else 0.0), name
    assert found["student.logit_scale"] == (2e-3, 0.0)
    assert found["student.image.head.weight"] == (2e-3, 0.1)
    assert found["student.text.head.bias"] == (2e-3, 0.0)
    assert found["adapter_image.weight"] == (2e-3, 0.1)
    rates = {name.split(".trunk.")[0]: rate for name, (rate, _) in found.items() if ".trunk." in name}
    assert rates == {"student.image": 1e-3, "student.text": 3e-3}


def test_head_and_text_rates_default_to_the_trunks() -> None:
    assert {rate for rate, _ in groups_of(make_task(), lr=0.5).values()} == {0.5}


def test_a_part_of_the_task_may_have_a_rate_of_its_own() -> None:
    task = make_task()
    groups = parameter_groups(task.parts, OptimizerSettings(lr=1e-3), {"adapter_image": 0.5})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    found = {rates[id(p)]: name for name, p in task.parts.named_parameters() if name.startswith("adapter_image")}
    assert list(found) == [0.5]
    assert sorted(set(rates.values())) == [1e-3, 0.5]


def test_frozen_parameters_are_in_no_group_and_nothing_to_train_is_an_error() -> None:
    task = make_task()
    task.student.image_tower().trunk.requires_grad_(False)
    assert not any(name.startswith("student.image.trunk") for name in groups_of(task))
    task.parts.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(task.parts, OptimizerSettings())


def test_the_optimiser_of_the_settings_is_built() -> None:
    parts = make_task().parts
    sgd = build_optimizer(parts, OptimizerSettings(name="sgd", lr=0.1, momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}
    adam = build_optimizer(parts, OptimizerSettings(betas=(0.8, 0.95), eps=1e-6))
    assert isinstance(adam, torch.optim.AdamW)
    assert {(group["betas"], group["eps"]) for group in adam.param_groups} == {((0.8, 0.95), 1e-6)}


def test_the_rate_rises_over_the_warm_up_then_falls_on_a_cosine() -> None:
    settings = TrainSettings(warmup=0.2, min_lr=0.1)
    curve = [rate_factor(step, 10, settings) for step in range(11)]
    assert curve[:2] == [0.5, 1.0]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert curve[2:] == pytest.approx(expected)
    assert curve[-1] == pytest.approx(0.1)


def test_without_warm_up_the_first_step_is_whole_and_constant_stays() -> None:
    assert rate_factor(0, 10, TrainSettings(warmup=0.0)) == 1.0
    constant = TrainSettings(warmup=0.1, schedule="constant")
    assert [rate_factor(step, 20, constant) for step in (0, 1, 2, 19)] == [0.5, 1.0, 1.0, 1.0]


def test_the_moving_average_equals_its_plain_twin() -> None:
    """``d = min(decay, (1 + n) / (10 + n))`` for n = 1, 2, …; whole numbers are copied."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(module, 0.2)
    twin = {name: value.clone().double() for name, value in module.state_dict().items()}
    for n in range(1, 6):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(4, 3))
        average.update(module)
        decay = min(0.2, (1 + n) / (10 + n))
        for name, value in module.state_dict().items():
            whole = not value.is_floating_point()
            twin[name] = value.double() if whole else decay * twin[name] + (1 - decay) * value.double()
    for name, value in average.state.items():
        torch.testing.assert_close(value.double(), twin[name], atol=1e-6, rtol=1e-6)
    assert int(average.state["1.num_batches_tracked"]) == 5
    assert average.state["1.num_batches_tracked"].dtype == torch.int64


def test_the_average_does_not_share_memory_with_the_weights() -> None:
    module = nn.Linear(2, 2)
    average = MovingAverage(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(7.0)
    assert not bool((average.state["weight"] == 7.0).any())


def test_clipping_bounds_the_global_norm_and_reports_it_before() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, 4.0, 0.0])
    assert clip_gradients(parameters, None) == pytest.approx(5.0)
    assert parameters[0].grad[0] == 3.0
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    whole = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert float(whole.norm()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("mean", "sd"), [(3.0, 1.0), (15.0, 1.0), (2.0, 0.5)])
def test_the_gaussian_mean_of_epochs_by_hand(mean: float, sd: float) -> None:
    """PromptSRC's own order of things: all weights of the epochs first, then their normalised sum."""
    module = nn.Linear(2, 1)
    average = GaussianMean(module, mean=mean, sd=sd, steps_per_epoch=3)
    ends = []
    for step in range(1, 16):
        with torch.no_grad():
            module.weight.fill_(float(step))
        average.update(module)
        if step % 3 == 0:
            ends.append(float(step))
        if step < 3:
            assert float(average.state["weight"][0, 0]) == step, "before the first epoch's end: the present weights"
    shares = [math.exp(-((epoch - mean) ** 2) / (2 * sd**2)) for epoch in range(1, 6)]
    expected = sum(share / sum(shares) * value for share, value in zip(shares, ends, strict=True))
    assert float(average.state["weight"][0, 0]) == pytest.approx(expected, rel=1e-5)


def test_a_gaussian_mean_goes_on_where_it_stopped() -> None:
    module = nn.Linear(2, 1)
    whole, first = (GaussianMean(module, mean=2, sd=1, steps_per_epoch=2) for _ in range(2))
    resumed = None
    for step in range(8):
        with torch.no_grad():
            module.weight.fill_(float(step))
        whole.update(module)
        (first if step < 5 else resumed).update(module)  # type: ignore[union-attr]
        if step == 4:
            resumed = GaussianMean(module, mean=2, sd=1, steps_per_epoch=2)
            resumed.load(first.state, first.count)
    assert resumed is not None
    assert torch.equal(whole.state["weight"], resumed.state["weight"])


def test_a_constant_warm_up_and_one_average_at_a_time() -> None:
    """CoOp's harness: the first epoch at 1e-5, then the cosine."""
    settings = TrainSettings(epochs=10, warmup=0.1, warmup_factor=0.005)
    factors = [rate_factor(step, 100, settings) for step in range(100)]
    assert factors[:10] == [0.005] * 10
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="two averages of the same weights"):
        TrainSettings.model_validate_json('{"ema": 0.9, "gaussian": {"mean": 1, "sd": 1}}')
