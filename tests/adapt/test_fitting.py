"""What methods on frozen features share: labelled vectors, kept lengths, the harness, the choice on validation."""

from __future__ import annotations

import math

import pytest
import torch
from tests.adapt.clusters import doubles, problem, quick, unit

from clipette.adapt.features import ClassTexts, Shots, keep_length, needs_dev, score
from clipette.adapt.fitting import Harness, train
from clipette.errors import ConfigError, DataError, ModelError


def test_length_is_kept_and_nothing_moved_is_nothing_changed() -> None:
    like = unit(torch.randn(200, 33, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(keep_length(like.clone(), like), like)
    assert not torch.equal(unit(like), like), "normalising anew must differ somewhere, or this test shows nothing"
    moved = keep_length(5 * like + 1, like)
    torch.testing.assert_close(moved.norm(dim=1), like.norm(dim=1))
    torch.testing.assert_close(unit(moved), unit(5 * like + 1))
    assert keep_length(torch.zeros(1, 4), unit(torch.ones(1, 4))).isfinite().all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "labelled features are"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), "labelled features are"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), "do not number 3 images"),
        (torch.zeros(3, 4), torch.zeros(3), "do not number 3 images"),
        (torch.zeros(3, 4), torch.tensor([0, -1, 1]), "negative"),
    ],
)
def test_shots_say_what_is_wrong(features: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Shots(features, labels)


def test_shots_must_fit_the_class_texts() -> None:
    base = ClassTexts(unit(torch.ones(2, 4)), 10.0)
    with pytest.raises(DataError, match="label 2 is outside the 2 classes"):
        Shots(torch.ones(1, 4), torch.tensor([2])).check(base)
    with pytest.raises(ModelError, match="not of one space"):
        Shots(torch.ones(1, 5), torch.tensor([1])).check(base)
    with pytest.raises(ModelError, match="NaN"):
        ClassTexts(torch.full((2, 4), math.nan), 10.0)


def test_views_take_turns_and_average() -> None:
    views = unit(doubles(3, 4, 5))
    shots = Shots(views, torch.arange(4))
    assert all(torch.equal(shots.view(epoch), views[epoch % 3]) for epoch in range(7))
    expected = torch.stack([unit(sum(views[v, i] for v in range(3)) / 3) for i in range(4)])  # type: ignore[call-overload]
    torch.testing.assert_close(shots.mean(), expected)
    features, labels = shots.flat()
    assert all(
        torch.equal(features[v * 4 + i], views[v, i]) and labels[v * 4 + i] == i for v in range(3) for i in range(4)
    )


def test_an_epoch_has_every_image_once_in_another_order() -> None:
    shots = Shots(torch.arange(10.0)[:, None], torch.arange(10))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat([f[:, 0] for f, _ in shots.batches(4, e, generator)]) for e in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_rates_are_a_cosine_after_a_first_epoch() -> None:
    by_epoch = Harness(lr=0.1, epochs=4, first_lr=1e-5)
    assert by_epoch.rate(0, 3, 5) == 1e-5
    assert [by_epoch.rate(e, 2, 5) for e in (1, 2, 3)] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * e / 4)) for e in (1, 2, 3)]
    )
    by_step = Harness(lr=0.1, epochs=4, first_lr=None, anneal="step")
    assert by_step.rate(0, 0, 5) == pytest.approx(0.1)
    assert by_step.rate(2, 3, 5) == pytest.approx(0.05 * (1 + math.cos(math.pi * 2.6 / 4)))


def test_one_step_is_sgd_by_hand() -> None:
    """momentum · 0 + (gradient + decay · weight), at the rate of the first epoch."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    shots = Shots(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
    logits = shots.features @ weight.T
    p = torch.softmax(logits, dim=1)[0]
    gradient = torch.stack([p[0] * shots.features[0], (p[1] - 1) * shots.features[0]])
    expected = weight - 0.2 * (gradient + 0.01 * weight)
    how = Harness(lr=9.0, epochs=1, weight_decay=0.01, first_lr=0.2)
    course = train([weight], lambda f: f @ weight.T, shots, how)
    torch.testing.assert_close(weight, expected)
    assert course.loss[0] == pytest.approx(-math.log(p[1]), rel=1e-5)
    assert (course.epoch, course.dev) == (1, ())
    assert not weight.requires_grad


def test_the_epoch_is_validations_and_the_start_is_one_of_them() -> None:
    base, shots, dev, _ = problem()
    weight = base.classes.clone()
    # Trained on the right images towards wrong classes: each epoch is worse than the start.
    wrong = Shots(shots.features, (shots.labels + 1) % 5)
    course = train([weight], lambda f: 20 * f @ weight.T, wrong, quick(epochs=3), dev)
    assert course.epoch == 0
    assert len(course.dev) == 4
    assert course.dev[-1] < course.dev[0]
    assert torch.equal(weight, base.classes)
    course = train([weight], lambda f: 20 * f @ weight.T, shots, quick(epochs=6), dev)
    best = max(course.dev)
    assert course.dev[course.epoch] == best > course.dev[0]
    assert score(20 * dev.features @ weight.T, dev.labels)[0] == best


def test_same_seed_same_bits_and_another_seed_others() -> None:
    base, shots, _, _ = problem()

    def run(seed: int) -> torch.Tensor:
        weight = base.classes.clone()
        train([weight], lambda f: 20 * f @ weight.T, shots, quick(epochs=2, seed=seed))
        return weight

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_choice_needs_validation() -> None:
    needs_dev(None, 1, "alpha")
    with pytest.raises(ConfigError, match="2 values of alpha to choose from, but no validation images"):
        needs_dev(None, 2, "alpha")
    with pytest.raises(ConfigError, match="at least one"):
        needs_dev(None, 0, "alpha")
    with pytest.raises(ConfigError, match="epochs -1"):
        Harness(epochs=-1)
