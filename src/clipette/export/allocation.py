"""How many channels each block keeps: the cheapest losses first, until the multiply-adds are few enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.evaluate.cost import tower_gmacs
from clipette.export.evidence import Order
from clipette.models.core import ImageTower
from clipette.models.slim import Inner

# Channels come in multiples of this, and as many stay at least: what vector units like.
STEP = 8


@dataclass(frozen=True)
class _Layer:
    """One map: ``each`` multiply-adds for each pair of an output with an input it reads."""

    each: float
    outputs: int
    inputs: int
    rows: str | None
    columns: str | None


class Macs:
    """Multiply-adds of a tower at its image size, as a function of how many inner channels each group keeps."""

    def __init__(self, tower: ImageTower, groups: Sequence[Inner]) -> None:
        rows, columns = _owners(groups)
        self._layers = [
            _Layer(each, *_sides(module), rows.get(id(module)), columns.get(id(module)))
            for module, each in _positions(tower).items()
        ]
        self.whole = {inner.name: inner.channels for inner in groups}
        # Attention and other operations without a module: they do not change.
        self._rest = 0.0
        self._rest = 1e9 * tower_gmacs(tower) - self(self.whole)

    def __call__(self, channels: Mapping[str, int]) -> float:
        """Multiply-adds of one image."""
        total = self._rest
        for layer in self._layers:
            outputs = layer.outputs if layer.rows is None else channels[layer.rows]
            inputs = layer.inputs if layer.columns is None else channels[layer.columns]
            total += layer.each * outputs * inputs
        return total


def _owners(groups: Sequence[Inner]) -> tuple[dict[int, str], dict[int, str]]:
    """Map → the group of its outputs, and of its inputs."""
    rows: dict[int, str] = {}
    columns: dict[int, str] = {}
    for inner in groups:
        rows[id(inner.writer)] = inner.name
        columns.update({id(reader): inner.name for reader in inner.readers})
        for part in inner.between:
            if isinstance(part, nn.Conv2d):
                rows[id(part)] = inner.name
                continue
            maps = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
            if maps:  # squeeze-and-excitation: down first, then up
                columns[id(maps[0])] = rows[id(maps[-1])] = inner.name
    return rows, columns


def _sides(module: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups


def _positions(tower: ImageTower) -> dict[nn.Conv2d | nn.Linear, float]:
    """Map → positions that it computes for one image, times the taps of its kernel."""
    found: dict[nn.Conv2d | nn.Linear, float] = {}

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        places = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // output.shape[-1]
        taps = module.weight[0, 0].numel()
        found[module] = found.get(module, 0.0) + places * taps

    maps = [module for module in tower.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(see) for module in maps]
    training = [module for module in tower.modules() if module.training]
    try:
        with torch.no_grad():
            device = next(tower.parameters()).device
            tower.eval()(torch.zeros(1, 3, *tower.preprocess.size, device=device))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return found


def allocate(orders: Mapping[str, Order], macs: Macs, target: float) -> dict[str, Tensor]:
    """Group → the places that stay, ascending, so that at most ``target`` multiply-adds are left.

    Again and again ``STEP`` channels go where the loss that ``orders`` foretell is smallest for each multiply-add
    saved. Groups that lose none are not named.

    Raises ``ConfigError`` where ``STEP`` channels in every block are still too many.
    """
    channels = dict(macs.whole)
    left = {name: [0.0, *order.costs.cumsum(0).tolist()] for name, order in orders.items()}
    now = macs(channels)
    while now > target:
        best: tuple[float, str, int, float] | None = None
        for name, count in channels.items():
            fewer = STEP * ((count - 1) // STEP)
            if fewer < STEP:
                continue
            whole = macs.whole[name]
            after = macs({**channels, name: fewer})
            price = (left[name][whole - fewer] - left[name][whole - count]) / max(now - after, 1e-9)
            if best is None or price < best[0]:
                best = (price, name, fewer, after)
        if best is None:
            least = now / macs(macs.whole)
            raise ConfigError(
                f"macs: with {STEP} channels left in every block it still has {least:.3f} of its multiply-adds: name a "
                "larger share, or a smaller --size"
            )
        _, name, fewer, now = best
        channels[name] = fewer
    return {
        name: orders[name].places[macs.whole[name] - count :].sort().values
        for name, count in channels.items()
        if count < macs.whole[name]
    }
