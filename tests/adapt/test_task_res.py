"""TaskRes against its twin: class texts, gradients, no effect, choice on validation."""

from __future__ import annotations

import pytest
import torch
from tests.adapt.clusters import accuracy, doubles, problem, quick, slopes, unit
from tests.reference import adapters as twin

from clipette.adapt.features import ClassTexts
from clipette.adapt.task_res import TaskResSettings, fit_task_res, residual_classes
from clipette.errors import ConfigError


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_classes_are_the_twins(scale: float) -> None:
    classes, residual = unit(doubles(4, 6)), doubles(4, 6, seed=1)
    expected = twin.task_res(classes.tolist(), residual.tolist(), scale)
    torch.testing.assert_close(residual_classes(classes, residual, scale), torch.tensor(expected, dtype=torch.float64))


def test_gradients_are_the_twins_and_reach_the_residual_alone() -> None:
    image, classes = unit(doubles(5, 6)), unit(doubles(3, 6, seed=5)).requires_grad_()
    residual = doubles(3, 6, seed=1).requires_grad_()
    labels = [0, 2, 1, 2, 0]
    logits = ClassTexts(residual_classes(classes.detach(), residual, 0.5), 7.0, -2.0).logits(image)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()

    def loss(at: torch.Tensor) -> float:
        moved = twin.task_res(classes.tolist(), at.tolist(), 0.5)
        return twin.loss(twin.zero_shot(image.tolist(), moved, 7.0, -2.0), labels)

    torch.testing.assert_close(residual.grad, slopes(loss, residual.detach()), rtol=1e-5, atol=1e-7)
    assert classes.grad is None


@pytest.mark.parametrize(("scale", "epochs"), [(0.0, 3), (0.5, 0)])
def test_no_effect_is_zero_shot_to_the_last_bit(scale: float, epochs: int) -> None:
    base, shots, _, test = problem(width=33)
    fitted = fit_task_res(base, shots, TaskResSettings((scale,), quick(epochs=epochs)))
    assert torch.equal(fitted.classes(), base.classes)
    assert torch.equal(fitted.logits(test.features), base.logits(test.features))


def test_training_helps_and_leaves_the_base() -> None:
    base, shots, dev, test = problem()
    before = base.classes.clone()
    harness = quick(optimizer="adam", epochs=40, lr=2e-2)
    fitted = fit_task_res(base, shots, TaskResSettings((0.5, 1.0), harness), dev)
    assert accuracy(fitted.logits(test.features), test) > accuracy(base.logits(test.features), test) + 0.03
    assert torch.equal(base.classes, before)
    assert fitted.tensors()["residual"].shape == base.classes.shape
    classified = ClassTexts(fitted.classes(), base.scale, base.bias).logits(test.features)
    assert torch.equal(classified, fitted.logits(test.features))


def test_the_papers_harness_and_no_choice_without_validation() -> None:
    harness = TaskResSettings().harness
    assert (harness.optimizer, harness.lr, harness.batch_size, harness.first_lr) == ("adam", 2e-3, 256, 1e-5)
    base, shots, _, _ = problem()
    with pytest.raises(ConfigError, match="2 values of TaskRes's scale"):
        fit_task_res(base, shots, TaskResSettings((0.1, 0.5)))
