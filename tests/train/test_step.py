"""Gradients of one step: the same for any number of micro-batches and of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.steps import make_feed, make_task
from torch import nn

from clipette.errors import ConfigError
from clipette.train.loop import set_mode
from clipette.train.step import compute_gradients


@pytest.mark.parametrize("micro_batches", [2, 3, 16])
def test_accumulation_equals_the_whole_batch(micro_batches: int) -> None:
    """Negatives do not shrink. Norms are frozen: their statistics would be a micro-batch's."""
    whole, parts = make_task(), make_task()
    for task in (whole, parts):
        set_mode(task.parts, freeze_norms=True)
    feed = make_feed(whole)
    for task, count in ((whole, 1), (parts, micro_batches)):
        compute_gradients(task, feed.batch(0), micro_batches=count, seed=5)
    feed.close()
    expected = dict(whole.parts.named_parameters())
    compared = 0
    for name, parameter in parts.parts.named_parameters():
        if parameter.grad is not None:
            reference = expected[name].grad
            assert reference is not None
            # Sums in another order: an error of float32's last digits of the largest gradient.
            near = 2e-6 * max(1.0, float(reference.abs().max()))
            torch.testing.assert_close(parameter.grad, reference, atol=near, rtol=1e-4)
            compared += 1
    assert compared > 20
    assert float(expected["student.image.head.weight"].grad.abs().max()) > 1e-4  # type: ignore[union-attr]


def test_dropout_is_the_same_in_both_encodings_of_a_micro_batch() -> None:
    """With dropout, the cached gradient belongs to the very features that are pushed: compare with a plain backward."""
    task = make_task(dropout=0.5)
    set_mode(task.parts, freeze_norms=True)
    feed = make_feed(task)
    batch = feed.batch(0)
    compute_gradients(task, batch, micro_batches=2, seed=9)
    cached = {n: p.grad.clone() for n, p in task.parts.named_parameters() if p.grad is not None}
    task.parts.zero_grad(set_to_none=True)
    pieces = []
    for index, part in enumerate((batch.part(0, 8), batch.part(8, 16))):
        torch.manual_seed(9 * 1_000_003 + index * 8191)
        pieces.append(task.encode(part))
    features = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    task.loss(features, batch.targets).loss.backward()
    feed.close()
    for name, parameter in task.parts.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(cached[name], parameter.grad, atol=2e-6, rtol=1e-4)


def test_a_batch_norm_with_one_value_is_told_as_a_key_of_the_recipe() -> None:
    task = make_task()
    feed = make_feed(task)
    batch = feed.batch(0)
    feed.close()
    head = task.parts.get_submodule("student.image.head")
    task.parts.get_submodule("student.image").head = nn.Sequential(head, nn.BatchNorm1d(head.weight.shape[0]))
    set_mode(task.parts, freeze_norms=False)
    with pytest.raises(ConfigError, match=r"train\.batch_size to 2 or more .* train\.micro_batches"):
        compute_gradients(task, batch, micro_batches=batch.size, seed=0)
    set_mode(task.parts, freeze_norms=True)
    compute_gradients(task, batch, micro_batches=batch.size, seed=0)


def test_batch_norm_statistics_are_recorded_once() -> None:
    task = make_task()
    set_mode(task.parts, freeze_norms=False)
    norm = next(m for m in task.parts.modules() if isinstance(m, nn.BatchNorm2d))
    before = int(norm.num_batches_tracked)  # type: ignore[arg-type]
    feed = make_feed(task)
    compute_gradients(task, feed.batch(0), micro_batches=2, seed=0)
    feed.close()
    assert int(norm.num_batches_tracked) == before + 2  # type: ignore[arg-type]
    assert norm.track_running_stats
    assert norm.running_mean is not None


def test_two_gloo_processes_give_the_gradients_of_one(tmp_path: Path, project: Path) -> None:
    """Batch norm frozen, dropout off, the whole batch on one process: equal within 1e-5."""
    command = [sys.executable, "-m", "tests.train.steps"]
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{project / 'src'}"}
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path)], cwd=project, env=environment) for r in range(2)]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    shared = load_file(tmp_path / "gradients.safetensors")
    task = make_task()
    set_mode(task.parts, freeze_norms=True)
    feed = make_feed(task)
    compute_gradients(task, feed.batch(0), micro_batches=1, seed=5)
    feed.close()
    alone = {n: p.grad for n, p in task.parts.named_parameters() if p.grad is not None}
    assert shared.keys() == alone.keys()
    for name, gradient in alone.items():
        assert float((shared[name] - gradient).abs().max()) < 1e-5, name
    assert {"student.logit_scale", "adapter_image.weight"} <= alone.keys()
    assert float(alone["adapter_image.weight"].abs().max()) > 1e-4
