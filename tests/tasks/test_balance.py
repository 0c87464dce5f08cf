"""Weights that find themselves: equal pull by gradients, equal size by uncertainty."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.tasks.test_objective import batch, descend, objective
from torch import Tensor

from clipette.tasks.balance import GradientBalance, UncertaintyBalance


def two_terms(vector: Tensor) -> list[Tensor]:
    """One term a thousand times the other's size."""
    target = F.normalize(torch.ones_like(vector), dim=-1)
    return [1000 * (vector - target).square().sum(), (vector * target).sum()]


def test_gradient_balance_makes_the_pulls_equal() -> None:
    vector = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    balance = GradientBalance(2)
    values = two_terms(vector)
    factors, extra = balance(values, {"student_image": vector})
    pulls = [
        torch.autograd.grad(f * v, vector, retain_graph=True)[0].norm() for f, v in zip(factors, values, strict=True)
    ]
    torch.testing.assert_close(pulls[0], pulls[1])
    assert extra == []
    # Evaluation looks, and does not learn.
    kept = balance.norms.clone()
    balance.eval()
    balance(two_terms(vector * 3), {"student_image": vector})
    assert torch.equal(balance.norms, kept)


def test_a_term_without_a_gradient_is_left_as_it_is() -> None:
    vector = torch.randn(4, 3).requires_grad_()
    factors, _ = GradientBalance(2)([vector.square().sum(), torch.tensor(5.0)], {"student_image": vector})
    assert float(factors[1]) == 1.0
    assert float(factors[0]) == 1.0


def test_learned_uncertainty_brings_every_term_to_one() -> None:
    balance = UncertaintyBalance(2)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    values = [torch.tensor(20.0), torch.tensor(0.1)]
    for _ in range(600):
        optimizer.zero_grad()
        factors, extra = balance(values, {})
        sum(f * v + e for f, v, e in zip(factors, values, extra, strict=True)).backward()
        optimizer.step()
    factors, _ = balance(values, {})
    torch.testing.assert_close(
        torch.stack([f * v for f, v in zip(factors, values, strict=True)]), torch.ones(2), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("rule", ["gradient", "uncertainty"])
def test_an_objective_is_balanced_and_logs_the_effective_weights(rule: str) -> None:
    task = objective({"clip": 1, "image_mse": 0.001}, balance=rule)
    output = descend(task, batch())
    assert set(output.terms) == {"clip", "image_mse"}
    assert "balance" in task.parts
    plain = descend(objective({"clip": 1, "image_mse": 0.001}), batch())
    assert output.raw == pytest.approx(plain.raw)
    changed = any(abs(output.terms[n] - plain.terms[n]) > 1e-6 for n in plain.terms)
    assert changed == (rule == "gradient"), "uncertainty starts at the plain sum"
    if rule == "uncertainty":
        weight = task.parts["balance"].log_variance.grad  # type: ignore[union-attr]
        assert weight is not None
