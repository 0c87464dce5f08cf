"""The front, by hand and against the definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clipette.metrics.pareto import front


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([1.0, 2.0, 3.0, 2.0], [0.5, 0.6, 0.55, 0.4], [True, True, False, False]),
        # Equal models beat nobody.
        ([1.0, 1.0], [0.5, 0.5], [True, True]),
        ([None, 1.0], [0.9, 0.5], [False, True]),
        ([1.0, 1.0, float("nan")], [float("nan"), 0.5, 0.9], [False, True, False]),
        ([], [], []),
    ],
)
def test_the_front_by_hand(costs: list[float | None], values: list[float], expected: list[bool]) -> None:
    assert front(costs, values) == expected


def test_the_front_is_a_rising_line_that_all_others_lie_under() -> None:
    generator = np.random.default_rng(0)
    costs, values = generator.integers(1, 9, 60) / 4, generator.integers(1, 9, 60) / 8
    marked = np.array(front(list(costs), list(values)))
    line = sorted({(float(c), float(v)) for c, v in zip(costs[marked], values[marked], strict=True)})
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(line))
    for cost, value in zip(costs[~marked], values[~marked], strict=True):
        assert any(c <= cost and v >= value for c, v in line)
