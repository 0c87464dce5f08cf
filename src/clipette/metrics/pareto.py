"""Which of several models are worth having: the Pareto front of quality against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(costs: Sequence[float | None], values: Sequence[float]) -> list[bool]:
    """Which models no other beats: none is at least as good at less cost, or better at the same cost.

    Equal models beat nobody. A model without a cost (None) or a value (NaN) is on no front, and beats nobody.
    """
    known = [
        (cost, value)
        for cost, value in zip(costs, values, strict=True)
        if cost is not None and not math.isnan(value) and not math.isnan(cost)
    ]
    marked = []
    for cost, value in zip(costs, values, strict=True):
        out = cost is None or math.isnan(cost) or math.isnan(value)
        marked.append(not out and not any(_beats(other, (cost or 0.0, value)) for other in known))
    return marked


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """(cost, value) each."""
    return (one[0] < other[0] and one[1] >= other[1]) or (one[0] <= other[0] and one[1] > other[1])
