"""The hard concrete distribution and TinyCLIP's constraint, slowly: plain numbers, and an integral by counting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def sample_gate(log_alpha: float, u: float) -> float:
    """Louizos et al., eqs. 10 and 11: draw, stretch, and rectify."""
    soft = sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / BETA)
    stretched = soft * (ZETA - GAMMA) + GAMMA
    return min(1.0, max(0.0, stretched))


def open_probability(log_alpha: float, draws: int = 200_001) -> float:
    """The share of evenly spread draws whose gate is not shut: no closed form at all."""
    opened = sum(sample_gate(log_alpha, (i + 0.5) / draws) > 0 for i in range(draws))
    return opened / draws


def settled_gate(log_alpha: float, draws: int = 200_001) -> float:
    """The one in the middle of all gates that are not shut."""
    gates = [sample_gate(log_alpha, (i + 0.5) / draws) for i in range(draws)]
    return statistics.median(gate for gate in gates if gate > 0)


def kept_units(log_alpha: Sequence[float]) -> list[int]:
    """Take the best of what is left, as often as units are expected."""
    expected = sum(sigmoid(a - BETA * math.log(-GAMMA / ZETA)) for a in log_alpha)
    left, kept = list(range(len(log_alpha))), []
    for _ in range(max(1, round(expected))):
        best = left[0]
        for unit in left:
            if log_alpha[unit] > log_alpha[best]:
                best = unit
        left.remove(best)
        kept.append(best)
    return sorted(kept)


def lagrangian(share: float, target: float, first: float, second: float) -> float:
    distance = share - target if share > target else target - share
    return first * distance + second * distance * distance
