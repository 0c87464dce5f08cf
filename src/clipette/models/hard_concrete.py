"""Gates between 0 and 1 that a gradient can open and shut: the hard concrete distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Louizos et al.'s temperature β, and the interval (γ, ζ) to which they stretch (section 4); so TinyCLIP's release.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
# A draw of exactly 0 or 1 would have no logarithm.
EDGE = 1e-6


def sample_gates(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates of one training step, exactly 0 or 1 with a probability above 0.

    s = σ((log u − log(1 − u) + log α) / β),  z = min(1, max(0, s (ζ − γ) + γ))

    Shapes: ``log_alpha`` and ``uniform`` (draws from [0, 1)) [U] → [U] in [0, 1]. Gradients reach ``log_alpha`` where
    0 < z < 1. Paper: Louizos, Welling and Kingma, ICLR 2018 (arXiv:1712.01312), eqs. 10 and 11. Deviation: none.
    """
    draw = uniform.clamp(EDGE, 1 - EDGE)
    soft = torch.sigmoid((draw.log() - torch.log1p(-draw) + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) = σ(log α − β log(−γ / ζ)): the expected L0 norm of one gate.

    Shapes: [U] → [U] in (0, 1). Paper: Louizos et al., ICLR 2018, eq. 12. Deviation: none.
    """
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def settled_gates(log_alpha: Tensor) -> Tensor:
    """What a gate that stays is settled at: the median of its draws that are open, exactly 1 where log α is large.

    ẑ = min(1, σ((log(1 − P/2) − log(P/2) + log α) / β) (ζ − γ) + γ),  P = P(z > 0)

    Shapes: [U] → [U] in [0.14, 1]. Deviation from Louizos et al. (eq. 13: min(1, max(0, σ(log α) (ζ − γ) + γ)) for
    every unit) and from TinyCLIP's release (σ(0.8 log α / β)): only as many units stay as are open in the mean
    (``kept_units``), and where the masks are undecided those two let through a third or less of what training did, this
    two thirds. The release's moreover never is 1, so that a model of which nothing is removed would be another.
    """
    half = open_probability(log_alpha) / 2
    soft = torch.sigmoid((torch.log1p(-half) - half.log() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def kept_units(log_alpha: Tensor) -> Tensor:
    """Which units of one group stay when its gates are settled: those of the largest log α, as many as are expected.

    k = round(Σ P(z > 0)), at least 1. Shapes: [n] → [k] places, ascending; of equals the first stay. TinyCLIP's release
    counts so too. Deviation: a layer's last head and last hidden unit stay.
    """
    count = max(1, round(float(open_probability(log_alpha.detach().double()).sum())))
    return log_alpha.detach().argsort(descending=True, stable=True)[:count].sort().values
