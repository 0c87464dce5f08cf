"""Tip-Adapter and -F against their twin: the cache by hand, gradients, no effect, the search on validation."""

from __future__ import annotations

import math

import pytest
import torch
from tests.adapt.clusters import accuracy, doubles, problem, slopes, unit
from tests.reference import adapters as twin

from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.tip_adapter import TipAdapterSettings, cache_logits, fit_tip_adapter, search
from clipette.errors import ConfigError

QUICK = TipAdapterSettings(alpha_up_to=10.0, alpha_steps=10, beta_steps=10)


def test_a_cache_of_two_by_hand() -> None:
    """One key is the image itself (cosine 1, weight 1), one is at a right angle (weight e^-β)."""
    base = ClassTexts(torch.eye(2), 10.0, 1.0)
    logits = cache_logits(
        base, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]), alpha=3, beta=2
    )
    assert logits[0].tolist() == pytest.approx([10 + 1 + 3 * math.exp(-2), 0 + 1 + 3])


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 5.5), (1.0, 5.5), (2.5, 0.0)])
def test_logits_are_the_twins(alpha: float, beta: float) -> None:
    image, classes, keys = unit(doubles(4, 6)), unit(doubles(3, 6, seed=1)), unit(doubles(5, 6, seed=2))
    labels = [0, 0, 2, 1, 2]
    ours = cache_logits(ClassTexts(classes, 7.0, -2.0), image, keys, torch.tensor(labels), alpha=alpha, beta=beta)
    expected = twin.tip_adapter(
        image.tolist(), classes.tolist(), keys.tolist(), labels, scale=7.0, bias=-2.0, alpha=alpha, beta=beta
    )
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_gradients_of_the_keys_are_the_twins() -> None:
    image, classes = unit(doubles(4, 6)), unit(doubles(3, 6, seed=1)).requires_grad_()
    keys = unit(doubles(5, 6, seed=2)).requires_grad_()
    labels, truth = [0, 0, 2, 1, 2], [2, 0, 1, 1]
    base = ClassTexts(classes.detach(), 7.0, -2.0)
    logits = cache_logits(base, image, keys, torch.tensor(labels), alpha=1.5, beta=4.0)
    torch.nn.functional.cross_entropy(logits, torch.tensor(truth)).backward()

    def loss(at: torch.Tensor) -> float:
        z = twin.tip_adapter(
            image.tolist(), classes.tolist(), at.tolist(), labels, scale=7.0, bias=-2.0, alpha=1.5, beta=4.0
        )
        return twin.loss(z, truth)

    torch.testing.assert_close(keys.grad, slopes(loss, keys.detach()), rtol=1e-5, atol=1e-7)
    assert classes.grad is None


@pytest.mark.parametrize("train_keys", [False, True])
def test_alpha_zero_is_zero_shot_to_the_last_bit(train_keys: bool) -> None:
    base, shots, _, test = problem(width=33)
    fitted = fit_tip_adapter(base, shots, TipAdapterSettings(alpha=0.0), train_keys=train_keys)
    assert torch.equal(fitted.logits(test.features), base.logits(test.features))


def test_keys_are_means_over_views_and_training_moves_only_copies() -> None:
    base, shots, _, _ = problem()
    views = torch.stack([shots.features, unit(shots.features + 0.1)])
    kept = views.clone()
    plain = fit_tip_adapter(base, Shots(views, shots.labels))
    torch.testing.assert_close(plain.keys, unit(views.mean(dim=0)))
    trained = fit_tip_adapter(base, Shots(views, shots.labels), train_keys=True)
    assert not torch.equal(trained.keys, plain.keys)
    assert torch.equal(views, kept)
    assert trained.course is not None
    assert len(trained.course.loss) == 20
    assert plain.course is None


def test_the_search_finds_the_best_of_the_grid_on_validation() -> None:
    base, shots, dev, _ = problem()
    alpha, beta = search(base, shots.features, shots.labels, dev, QUICK)
    best = max(
        accuracy(cache_logits(base, dev.features, shots.features, shots.labels, alpha=a, beta=b), dev)
        for a in QUICK.alphas()
        for b in QUICK.betas()
    )
    found = cache_logits(base, dev.features, shots.features, shots.labels, alpha=alpha, beta=beta)
    assert accuracy(found, dev) >= best
    assert QUICK.alphas()[:3] == pytest.approx([0.0, 0.1, 1.09])
    assert len(TipAdapterSettings().betas()) == 200


def test_a_range_whose_end_is_best_grows() -> None:
    """Texts that know nothing: the more the cache weighs, the better, so ranges that end early must not bind."""
    base, shots, dev, _ = problem(off=30.0)
    narrow = TipAdapterSettings(alpha_up_to=0.4, alpha_steps=3, beta_up_to=0.3, beta_steps=2)
    alpha, _ = search(base, shots.features, shots.labels, dev, narrow)
    assert alpha > 0.4
    held = TipAdapterSettings(alpha_up_to=400.0, alpha_steps=3, beta_up_to=0.3, beta_steps=1)
    assert search(base, shots.features, shots.labels, dev, held)[0] <= 400.0


def test_validation_may_refuse_the_cache() -> None:
    base, shots, _, _ = problem(off=0.0, noise=0.1)
    wrong = Shots(shots.features, (shots.labels + 1) % 5)
    assert fit_tip_adapter(base, wrong, QUICK, shots).alpha == 0.0


def test_the_cache_helps_and_training_its_keys_too() -> None:
    base, shots, dev, test = problem(shots=16)
    zero = accuracy(base.logits(test.features), test)
    fitted = fit_tip_adapter(base, shots, QUICK, dev)
    trained = fit_tip_adapter(base, shots, QUICK, dev, train_keys=True)
    assert accuracy(fitted.logits(test.features), test) > zero + 0.03
    assert accuracy(trained.logits(test.features), test) > zero + 0.03
    assert set(fitted.tensors()) == {"keys", "labels"}


def test_settings_are_the_papers_and_checked() -> None:
    own = TipAdapterSettings()
    assert (own.alpha, own.beta, own.harness.lr, own.harness.eps, own.harness.batch_size) == (1.0, 5.5, 1e-3, 1e-4, 256)
    with pytest.raises(ConfigError, match="must not be negative"):
        TipAdapterSettings(alpha=-1)
    with pytest.raises(ConfigError, match="search"):
        TipAdapterSettings(beta_steps=0)
