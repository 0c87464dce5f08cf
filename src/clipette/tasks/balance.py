"""Loss weights that find themselves: by the size of each term's gradient, or by a learned uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Balance = Literal["none", "gradient", "uncertainty"]


class GradientBalance(nn.Module):
    """Every term pulls at the student's vectors with a force in proportion to its weight, whatever its size.

    factor_k = mean_j n_j / n_k, with n_k the running norm of ∂term_k/∂(student's vectors): the idea of GradNorm (Chen
    et al., ICML 2018, arXiv:1711.02257) in closed form, at the shared vectors instead of the last shared layer, and
    without its rates of training.
    """

    norms: Tensor

    def __init__(self, terms: int, *, memory: float = 0.95) -> None:
        super().__init__()
        self.memory = memory
        # 0: not seen yet.
        self.register_buffer("norms", torch.zeros(terms))

    def forward(self, values: Sequence[Tensor], vectors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(factor of each term, what is added to the loss for the balance itself)."""
        leaves = [vector for vector in vectors.values() if vector.requires_grad]
        if self.training and leaves:
            now = torch.stack([_norm(value, leaves) for value in values])
            known = torch.where(self.norms > 0, self.memory * self.norms + (1 - self.memory) * now, now)
            self.norms.copy_(known)
        seen = self.norms > 0
        mean = self.norms[seen].mean() if bool(seen.any()) else self.norms.new_ones(())
        return [mean / norm if bool(norm > 0) else torch.ones_like(mean) for norm in self.norms], []


def _norm(value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    if not value.requires_grad:
        return value.new_zeros(())
    gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    out: Tensor = torch.stack(norms or [value.new_zeros(())]).norm()
    return out


class UncertaintyBalance(nn.Module):
    """Σ_k w_k (exp(-s_k) term_k + s_k) with learned s_k, all 0 at the start.

    Kendall, Gal and Cipolla, CVPR 2018, arXiv:1705.07115, equation 10 with s = log σ² and the factor 2 left out: at its
    optimum exp(-s_k) = 1 / term_k, so that every term counts by its weight alone.
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(terms))

    def forward(self, values: Sequence[Tensor], vectors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(factor of each term, what is added to the loss for the balance itself, by term)."""
        return list(torch.exp(-self.log_variance)), list(self.log_variance)


BALANCES: dict[str, Callable[[int], nn.Module]] = {"gradient": GradientBalance, "uncertainty": UncertaintyBalance}
