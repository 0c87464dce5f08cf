"""CLIP-Adapter against its twin: vectors, gradients, no effect, choice on validation."""

from __future__ import annotations

import pytest
import torch
from tests.adapt.clusters import accuracy, doubles, problem, quick, slopes, unit
from tests.reference import adapters as twin

from clipette.adapt.clip_adapter import ClipAdapterSettings, FittedClipAdapter, adapted, fit_clip_adapter
from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.fitting import Course
from clipette.errors import ConfigError, ModelError

NOTHING = Course(0, (), ())


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.6, 1.0])
def test_vectors_are_the_twins(ratio: float) -> None:
    image, down, up = unit(doubles(4, 6)), doubles(3, 6, seed=1), doubles(6, 3, seed=2)
    expected = twin.clip_adapter(image.tolist(), down.tolist(), up.tolist(), ratio)
    torch.testing.assert_close(adapted(image, down, up, ratio), torch.tensor(expected, dtype=torch.float64))


def test_gradients_are_the_twins_and_reach_the_adapter_alone() -> None:
    image, classes = unit(doubles(4, 6)).requires_grad_(), unit(doubles(3, 6, seed=5)).requires_grad_()
    down, up = doubles(3, 6, seed=1).requires_grad_(), doubles(6, 3, seed=2).requires_grad_()
    labels = [0, 2, 1, 2]
    base = ClassTexts(classes.detach(), 7.0, -2.0)
    logits = base.logits(adapted(image.detach(), down, up, 0.4))
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()

    def loss(down: torch.Tensor, up: torch.Tensor) -> float:
        vectors = twin.clip_adapter(image.tolist(), down.tolist(), up.tolist(), 0.4)
        return twin.loss(twin.zero_shot(vectors, classes.tolist(), 7.0, -2.0), labels)

    at = down.detach(), up.detach()
    torch.testing.assert_close(down.grad, slopes(lambda d: loss(d, at[1]), at[0]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(up.grad, slopes(lambda u: loss(at[0], u), at[1]), rtol=1e-5, atol=1e-7)
    assert image.grad is classes.grad is None


def test_ratio_zero_is_zero_shot_to_the_last_bit() -> None:
    base, shots, _, test = problem(width=33)
    fitted = fit_clip_adapter(base, shots, ClipAdapterSettings((0.0,), harness=quick(epochs=2)))
    assert torch.equal(fitted.image(test.features), test.features)
    assert torch.equal(fitted.logits(test.features), base.logits(test.features))


def test_training_helps_and_leaves_the_base() -> None:
    base, shots, dev, test = problem()
    before = base.classes.clone(), shots.features.clone()
    fitted = fit_clip_adapter(base, shots, ClipAdapterSettings((0.2, 0.6), harness=quick(epochs=60)), dev)
    assert accuracy(fitted.logits(test.features), test) > accuracy(base.logits(test.features), test) + 0.03
    assert fitted.ratio in (0.2, 0.6)
    assert torch.equal(base.classes, before[0])
    assert torch.equal(shots.features, before[1])
    tensors = fitted.tensors()
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {"down": (4, 16), "up": (16, 4)}
    again = FittedClipAdapter(base, tensors["down"], tensors["up"], fitted.ratio, NOTHING)
    assert torch.equal(again.logits(test.features), fitted.logits(test.features))


def test_the_ratio_is_validations() -> None:
    """Shots of wrong labels: the smaller the ratio, the better; validation must see it."""
    base, shots, dev, _ = problem()
    wrong = Shots(shots.features, (shots.labels + 1) % 5)
    harness = quick(epochs=0)
    assert fit_clip_adapter(base, wrong, ClipAdapterSettings((0.9, 0.0), harness=harness), dev).ratio == 0.0


def test_what_cannot_be_is_refused() -> None:
    base, shots, dev, _ = problem()
    with pytest.raises(ConfigError, match="2 values of CLIP-Adapter's ratio"):
        fit_clip_adapter(base, shots, ClipAdapterSettings((0.1, 0.2)))
    with pytest.raises(ConfigError, match="must lie in"):
        fit_clip_adapter(base, shots, ClipAdapterSettings((1.5,), harness=quick(epochs=1)))
    with pytest.raises(ConfigError, match="reduction 17 leaves no hidden unit"):
        fit_clip_adapter(base, shots, ClipAdapterSettings(reduction=17))
    with pytest.raises(ModelError, match="not of one space"):
        fit_clip_adapter(base, shots, dev=Shots(torch.ones(5, 3), dev.labels[:5]))


def test_half_precision_features_are_read() -> None:
    base, shots, _, _ = problem()
    half = Shots(shots.features.half(), shots.labels)
    fitted = fit_clip_adapter(base, half, ClipAdapterSettings(harness=quick(epochs=1)))
    assert fitted.logits(half.features).dtype == torch.float32
