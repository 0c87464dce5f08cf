"""Maps from a trunk's width into the shared space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError


class ResidualHead(nn.Module):
    """``W x + MLP(x)``: the linear map learns fast, the MLP bends it; the MLP starts at zero."""

    def __init__(self, width: int, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.first = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, dim)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        bent = self.second(self.dropout(torch.nn.functional.gelu(self.first(x))))
        out: Tensor = self.linear(x) + bent
        return out


def _identity(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    if width != dim:
        raise ConfigError(f"head: none needs a trunk of the space's width, but {width} != {dim}: use head: linear")
    return nn.Identity()


def _linear(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    return nn.Linear(width, dim)


def _mlp(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


def _bn_mlp(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    """PromptKD's projector (CVPR 2024, section 3.3): Linear, batch norm, ReLU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _bn_mlp_of_three(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    """The same with one more hidden layer, a block of its own: so a tensor's name alone tells what it maps to what."""
    between = nn.Sequential(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
    first = (nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
    return nn.Sequential(*first, between, nn.Linear(hidden, dim))


HEADS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "none": _identity,
    "linear": _linear,
    "mlp": _mlp,
    "residual": ResidualHead,
    "bn_mlp": _bn_mlp,
}
# PromptKD's ablation of its projector, by its number of linear layers.
PROJECTORS: dict[int, Callable[[int, int, int, float], nn.Module]] = {1: _linear, 2: _bn_mlp, 3: _bn_mlp_of_three}


def build_head(
    kind: str, width: int, dim: int, hidden: int | None = None, dropout: float = 0.0, *, layers: int = 2
) -> nn.Module:
    """A head [*, width] → [*, dim]; ``hidden`` defaults to ``2 * dim``, ``layers`` is read by ``bn_mlp`` alone.

    Raises ``ConfigError`` on an unknown kind.
    """
    if kind not in HEADS:
        raise ConfigError(f"unknown head '{kind}': choose one of {', '.join(HEADS)}")
    build = PROJECTORS[layers] if kind == "bn_mlp" else HEADS[kind]
    return build(width, dim, hidden or 2 * dim, dropout)
