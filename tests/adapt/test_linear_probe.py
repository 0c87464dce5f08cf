"""The linear probe: its minimum against the twin's objective and scikit-learn's, its sweep, its start at zero-shot."""

from __future__ import annotations

import pytest
import torch
from tests.adapt.clusters import accuracy, doubles, problem
from tests.reference import adapters as twin

from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.linear_probe import LinearProbeSettings, fit_linear_probe, sweep
from clipette.errors import ConfigError, DataError


def small(seed: int = 0) -> Shots:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    return Shots(doubles(8, 4, seed=seed).float(), labels)


@pytest.mark.parametrize("c", [0.01, 0.316, 10.0])
@pytest.mark.parametrize("texts", [False, True])
def test_no_step_in_any_direction_lowers_the_twins_objective(c: float, texts: bool) -> None:
    shots = small()
    base = ClassTexts(torch.nn.functional.normalize(doubles(3, 4, seed=9).float(), dim=1), 5.0) if texts else None
    before = base.logits(shots.features).tolist() if base is not None else None
    fitted = fit_linear_probe(shots, 3, LinearProbeSettings(c=c), base=base)

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return twin.probe_objective(
            shots.features.tolist(), shots.labels.tolist(), weight.tolist(), bias.tolist(), c, before
        )

    best = objective(fitted.weight, fitted.bias)
    step = 0.01
    for seed in range(20):
        direction, shift = doubles(3, 4, seed=seed).float(), doubles(3, seed=seed + 50).float()
        assert objective(fitted.weight + step * direction, fitted.bias + step * shift) > best


def test_the_minimum_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the yardstick, no dependency")
    shots = small()
    theirs = linear.LogisticRegression(C=2.0, max_iter=10_000, tol=1e-10)
    theirs.fit(shots.features.double().numpy(), shots.labels.numpy())
    ours = fit_linear_probe(shots, 3, LinearProbeSettings(c=2.0))
    torch.testing.assert_close(ours.weight.double(), torch.from_numpy(theirs.coef_), atol=1e-4, rtol=1e-3)
    # scikit-learn's biases are free up to one constant.
    shift = torch.from_numpy(theirs.intercept_) - ours.bias.double()
    torch.testing.assert_close(shift - shift.mean(), torch.zeros_like(shift), atol=1e-4, rtol=0)


def test_c_zero_on_class_texts_is_zero_shot_to_the_last_bit() -> None:
    base, shots, _, test = problem(width=33)
    fitted = fit_linear_probe(shots, 5, LinearProbeSettings(c=0.0), base=base)
    assert torch.equal(fitted.logits(test.features), base.logits(test.features))


def test_sweep_halves_around_the_peak_to_eight_a_decade() -> None:
    asked: list[float] = []

    def score_at(exponent: float) -> tuple[float, float]:
        asked.append(exponent)
        return -abs(exponent - 1.375), 0.0

    best, found = sweep(score_at, LinearProbeSettings())
    assert best == 1.375
    assert asked[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert asked[7:] == [1, 3, 0.5, 1.5, 1.25, 1.75, 1.125, 1.375]
    assert set(found) == set(asked)
    flat, _ = sweep(lambda exponent: (0.5, 0.0), LinearProbeSettings())
    assert flat == -6, "equal scores go to the smaller C"


def test_c_is_validations() -> None:
    base, shots, dev, test = problem(shots=16)
    settings = LinearProbeSettings(coarse=(-4, -2, 0, 2), per_decade=1)
    fitted = fit_linear_probe(shots, 5, settings, dev)
    assert dict(fitted.swept)[fitted.c] == max(score for _, score in fitted.swept)
    assert accuracy(fitted.logits(dev.features), dev) == pytest.approx(dict(fitted.swept)[fitted.c])
    assert accuracy(fitted.logits(test.features), test) > accuracy(base.logits(test.features), test)
    again = fit_linear_probe(shots, 5, LinearProbeSettings(c=fitted.c))
    torch.testing.assert_close(again.logits(test.features), fitted.logits(test.features), atol=2e-2, rtol=1e-2)


def test_views_are_examples_and_labels_are_checked() -> None:
    shots = small()
    views = Shots(torch.stack([shots.features, shots.features]), shots.labels)
    twice = fit_linear_probe(views, 3, LinearProbeSettings(c=0.5))
    once = fit_linear_probe(shots, 3, LinearProbeSettings(c=1.0))
    torch.testing.assert_close(twice.weight, once.weight, atol=1e-4, rtol=1e-3)
    with pytest.raises(DataError, match="label 2 is outside the 2 classes"):
        fit_linear_probe(shots, 2)
    with pytest.raises(ConfigError, match="must rise"):
        LinearProbeSettings(coarse=(0, -2))
    with pytest.raises(ConfigError, match="at least one"):
        fit_linear_probe(shots, 3, LinearProbeSettings(coarse=()), shots)
