"""The hard concrete gates against their slow twins."""

from __future__ import annotations

import pytest
import torch
from tests.reference import hard_concrete as slow

from clipette.models.hard_concrete import kept_units, open_probability, sample_gates, settled_gates

VALUES = [-6.0, -2.4, -1.0, 0.0, 0.3, 2.0, 2.4, 8.0]


def test_gates_are_stretched_and_rectified() -> None:
    draws = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for value in VALUES:
        said = sample_gates(torch.full((50,), value, dtype=torch.float64), draws)
        wanted = [slow.sample_gate(value, float(u)) for u in draws]
        torch.testing.assert_close(said, torch.tensor(wanted, dtype=torch.float64))
    ends = sample_gates(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0.0, 1.0]


def test_the_expected_l0_norm_is_the_share_of_open_gates() -> None:
    said = open_probability(torch.tensor(VALUES, dtype=torch.float64))
    for value, probability in zip(VALUES, said.tolist(), strict=True):
        assert probability == pytest.approx(slow.open_probability(value), abs=2e-5)


def test_settled_gates_are_the_median_of_the_open_ones() -> None:
    said = settled_gates(torch.tensor([*VALUES, -30.0], dtype=torch.float64))
    for value, gate in zip(VALUES, said.tolist(), strict=False):
        assert gate == pytest.approx(slow.settled_gate(value), abs=1e-3)
    assert float(said[-2]) == 1
    assert 0.14 < float(said[-1]) < 0.15


@pytest.mark.parametrize("value", [-2.0, -1.6, 0.0, 3.0])
def test_what_stays_lets_through_what_training_did(value: float) -> None:
    """All units alike: the kept gates sum to about what drawn ones do, though a median is no mean."""
    log_alpha = torch.full((1000,), value)
    drawn = sample_gates(log_alpha, torch.rand(1000, generator=torch.Generator().manual_seed(0))).sum()
    settled = settled_gates(log_alpha)[kept_units(log_alpha)].sum()
    assert float(settled / drawn) == pytest.approx(1, abs=0.4)


def test_as_many_units_stay_as_are_expected_and_at_least_one() -> None:
    random = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 40):
        for shift in (-9.0, -2.0, 0.0, 9.0):
            values = torch.randn(size, generator=random) * 3 + shift
            assert kept_units(values).tolist() == slow.kept_units(values.tolist())
    assert kept_units(torch.full((4,), -20.0)).tolist() == [0]
    # At the start of a run nothing is expected to go, however many units there are.
    assert len(kept_units(torch.full((7000,), 8.0))) == 7000


def test_a_gate_learns_while_it_is_neither_open_nor_shut() -> None:
    value = torch.zeros(3, requires_grad=True)
    sample_gates(value, torch.tensor([0.001, 0.5, 0.999])).sum().backward()
    assert value.grad is not None
    assert [float(g) > 0 for g in value.grad] == [False, True, False]
    value.grad = None
    open_probability(value).sum().backward()
    assert bool((value.grad > 0).all())
