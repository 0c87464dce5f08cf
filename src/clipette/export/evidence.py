"""What the inner channels of a convolutional tower are worth: how much its vectors would turn without each.

Measured on a few hundred images without labels. Leaving out a channel means that the others make up for it as well as
they can (least squares) and that its mean is kept; then the batch norms see the images once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipette.models.core import ImageTower
from clipette.models.slim import Inner, Map, open_inner

# A share of the mean variance, added to every channel's: channels that are always zero have none.
RIDGE = 1e-3


@dataclass(frozen=True)
class Order:
    """``places``: channels, the first to go first; ``costs`` [C]: what the going of each adds to the loss 1 - cos."""

    places: Tensor
    costs: Tensor


@dataclass
class Evidence:
    """Of one group of C inner channels, as its readers get them, over images and positions.

    ``mean`` [C], ``covariance`` [C, C], both over ``rows``; ``worth`` [C]: 1/2 E |d v / d gate|^2, v the unit vector,
    the gate 1 on the channel's distance from its mean: what 1 - cos would be without this channel alone, to second
    order; ``pull`` [O, O]: E of the outer product of the gradient at the readers' outputs, in any unit.
    """

    rows: float
    mean: Tensor
    covariance: Tensor
    worth: Tensor
    pull: Tensor

    def steady(self) -> Tensor:
        """The covariance with (1 - ρ) of what lies off its diagonal, ρ = C / (C + rows).

        Few rows make many channels foretell each other that do not: of 1,280 that are read once an image, 256 images
        let a thousand seem idle.
        """
        share = len(self.mean) / (len(self.mean) + self.rows)
        own = self.covariance.diagonal().double()
        return (1 - share) * self.covariance.double() + torch.diag(share * own + RIDGE * own.mean().clamp(min=1e-12))


@dataclass
class _Sums:
    rows: float = 0.0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    worth: Tensor | float = 0.0
    pull: Tensor | float = 0.0
    gate: Tensor | None = None
    mean: Tensor | None = None
    outputs: dict[int, Tensor] = field(default_factory=dict)


def gather(tower: ImageTower, batches: Sequence[Tensor], *, probes: int = 2, seed: int = 0) -> dict[str, Evidence]:
    """Evidence by group, from ``batches`` of pixels [B, 3, H, W] of the tower's size.

    The gradient of the unit vector is seen along ``probes`` random directions of every image.
    """
    groups = open_inner(tower)
    sums = {inner.name: _Sums() for inner in groups}
    with _still(tower):
        with torch.no_grad(), _hooked(groups, sums, _count):
            for pixels in batches:
                tower(pixels)
        for each in sums.values():
            assert isinstance(each.first, Tensor)
            each.mean = each.first / each.rows
        draw = torch.Generator().manual_seed(seed)
        with _hooked(groups, sums, _gate):
            for pixels in batches:
                for _ in range(probes):
                    _backward(tower, pixels, sums, draw)
    seen = probes * sum(len(pixels) for pixels in batches)
    return {name: _evidence(each, seen) for name, each in sums.items()}


def _evidence(sums: _Sums, seen: int) -> Evidence:
    mean, second, worth, pull = sums.mean, sums.second, sums.worth, sums.pull
    assert isinstance(mean, Tensor)
    assert isinstance(second, Tensor)
    assert isinstance(worth, Tensor)
    assert isinstance(pull, Tensor)
    covariance = second / sums.rows - mean[:, None] * mean
    return Evidence(sums.rows, mean.cpu(), covariance.cpu(), worth.cpu() / (2 * seen), pull.cpu() / seen)


def _backward(tower: ImageTower, pixels: Tensor, sums: Mapping[str, _Sums], draw: torch.Generator) -> None:
    vectors = F.normalize(tower(pixels).float(), dim=-1)
    along = torch.randn(vectors.shape, generator=draw).to(vectors)
    (vectors * along).sum().backward()  # type: ignore[no-untyped-call]
    for each in sums.values():
        assert each.gate is not None
        assert each.gate.grad is not None
        each.worth = each.worth + each.gate.grad.flatten(1).double().square().sum(0)
        found = [each.outputs[reader].grad for reader in sorted(each.outputs)]
        gradient = torch.cat([_rows(grad) for grad in found if grad is not None], dim=1)
        each.pull = each.pull + (gradient.T @ gradient).double()
        each.gate = None
        each.outputs.clear()


def _rows(values: Tensor) -> Tensor:
    """[B, C, H, W] or [B, C] → [rows, C]."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def _count(sums: _Sums, number: int) -> list[Any]:
    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if number == 0:
            rows = _rows(args[0])
            sums.rows += len(rows)
            sums.first = sums.first + rows.sum(0).double()
            sums.second = sums.second + (rows.T @ rows).double()

    return [("pre", see)]


def _gate(sums: _Sums, number: int) -> list[Any]:
    def gate(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        value = args[0]
        assert sums.mean is not None
        if sums.gate is None:
            sums.gate = value.new_ones(*value.shape[:2], *[1] * (value.ndim - 2), requires_grad=True)
        mean = sums.mean.to(value).view(1, -1, *[1] * (value.ndim - 2))
        return (mean + (value - mean) * sums.gate,)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        sums.outputs[number] = output

    return [("pre", gate), ("post", keep)]


@contextmanager
def _hooked(groups: Sequence[Inner], sums: Mapping[str, _Sums], make: Any) -> Iterator[None]:
    handles = []
    for inner in groups:
        for number, reader in enumerate(inner.readers):
            for when, hook in make(sums[inner.name], number):
                add = reader.register_forward_pre_hook if when == "pre" else reader.register_forward_hook
                handles.append(add(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _still(tower: ImageTower) -> Iterator[None]:
    """In evaluation mode, with no gradients for the weights; afterwards as it was."""
    training = [module for module in tower.modules() if module.training]
    learning = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    tower.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def order_of(inner: Inner, evidence: Evidence) -> Order:
    """Who goes first, one after the other, where those who stay make up for those who go.

    cost(c) = s |M^(1/2) w_c|^2 / [K^-1]_cc, with the readers' weights w_c as they have become, K = ``steady()``,
    M = ``pull``; then w_j -= w_c [K^-1]_cj / [K^-1]_cc (the optimal brain surgeon's step, for whole channels). s puts
    the unit right: with it Σ s |M^(1/2) w_c|^2 K_cc = Σ ``worth``.

    Paper: Hassibi & Stork, NeurIPS 1992, with the Kronecker factors of Martens & Grosse, ICML 2015.
    """
    covariance = evidence.steady()
    inverse = torch.linalg.inv(covariance)
    values, vectors = torch.linalg.eigh(evidence.pull.double())
    root = vectors * values.clamp(min=0).sqrt()
    # [outputs, channels, taps] → what each channel's weights do, in units of the loss's root.
    weights = torch.einsum("po,pct->oct", root, _weights(inner).double())
    weights = weights.movedim(1, -1).reshape(-1, inner.channels)
    alone = (weights.square().sum(0) * covariance.diagonal()).sum()
    scale = evidence.worth.sum() / alone.clamp(min=1e-30)
    left = torch.ones(inner.channels, dtype=torch.bool)
    places, costs = [], []
    for _ in range(inner.channels):
        each = weights.square().sum(0) / inverse.diagonal().clamp(min=1e-30)
        place = int(each.masked_fill(~left, torch.inf).argmin())
        places.append(place)
        costs.append(float(scale * each[place]))
        left[place] = False
        row = inverse[place] / inverse[place, place]
        weights.addr_(weights[:, place].clone(), row, alpha=-1)
        inverse.addr_(inverse[:, place].clone(), row, alpha=-1)
    return Order(torch.tensor(places), torch.tensor(costs, dtype=torch.float64))


def order_by_norm(inner: Inner) -> Order:
    """Without images: by γ_c^2 |w_c|^2, γ the last norm's scale, as a share of its group's sum."""
    scale = inner.norm.weight
    spread = torch.ones(inner.channels) if scale is None else scale.detach().square().cpu()
    size = spread.double() * _weights(inner).double().square().sum((0, 2))
    share = size / size.sum().clamp(min=1e-30)
    places = share.argsort(stable=True)
    return Order(places, share[places])


def _weights(inner: Inner) -> Tensor:
    """The readers' weights, one above the other [outputs, C, taps]."""
    found = [reader.weight.detach().cpu() for reader in inner.readers]
    return torch.cat([weight.flatten(2) if weight.ndim > 2 else weight[..., None] for weight in found])


def refit(inner: Inner, evidence: Evidence, kept: Tensor) -> None:
    """Let the channels at ``kept`` make up for the others in the readers' weights, by least squares, in place.

    a_gone ~ mean_gone + R (a_kept - mean_kept), R = K_gk K_kk^-1. What is constant goes to the readers' biases; where
    they have none, to the norm behind them when it sees the images again (``see_again``).
    """
    gone = torch.ones(inner.channels, dtype=torch.bool)
    gone[kept] = False
    covariance = evidence.steady()
    solved = torch.linalg.solve(covariance[kept][:, kept], covariance[kept][:, gone]).T
    constant = evidence.mean[gone] - solved @ evidence.mean[kept]
    for reader in inner.readers:
        _absorb(reader, kept, gone, solved, constant)


def _absorb(reader: Map, kept: Tensor, gone: Tensor, solved: Tensor, constant: Tensor) -> None:
    with torch.no_grad():
        weight = reader.weight.cpu().double()
        weight[:, kept] += torch.einsum("og...,gk->ok...", weight[:, gone], solved)
        if reader.bias is not None:
            lost = weight[:, gone].flatten(2).sum(2) if weight.ndim > 2 else weight[:, gone]
            reader.bias += (lost @ constant).to(reader.bias)
        reader.weight.copy_(weight)


def see_again(tower: ImageTower, batches: Sequence[Tensor]) -> None:
    """Take the running statistics of every batch norm anew from ``batches``."""
    norms = [module for module in tower.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    training = [module for module in tower.modules() if module.training]
    kept = [norm.momentum for norm in norms]
    tower.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for pixels in batches:
            tower(pixels)
    tower.eval()
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    for module in training:
        module.training = True
