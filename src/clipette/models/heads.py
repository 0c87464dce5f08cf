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


HEADS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "none": _identity,
    "linear": _linear,
    "mlp": _mlp,
    "residual": ResidualHead,
    "bn_mlp": _bn_mlp,
}


def build_head(kind: str, width: int, dim: int, hidden: int | None = None, dropout: float = 0.0) -> nn.Module:
    """A head [*, width] → [*, dim]; ``hidden`` defaults to ``2 * dim``. Raises ``ConfigError`` on an unknown kind."""
    if kind not in HEADS:
        raise ConfigError(f"unknown head '{kind}': choose one of {', '.join(HEADS)}")
    return HEADS[kind](width, dim, hidden or 2 * dim, dropout)
