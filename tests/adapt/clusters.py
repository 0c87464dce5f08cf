"""Small problems on frozen features: classes as directions, images around them, texts a little off."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.fitting import Harness


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def problem(
    classes: int = 5, width: int = 16, shots: int = 8, *, seed: int = 0, noise: float = 0.5, off: float = 1.2
) -> tuple[ClassTexts, Shots, Shots, Shots]:
    """(base, shots, dev, test); ``off``: how far the texts are from their classes' images."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])  # noqa: E731
    centres = unit(draw(classes, width))
    base = ClassTexts(unit(centres + off * draw(classes, width)), scale=20.0, bias=-3.0)

    def some(count: int) -> Shots:
        labels = torch.arange(classes).repeat(count)
        return Shots(unit(centres[labels] + noise * 2 * draw(len(labels), width)), labels)

    return base, some(shots), some(shots), some(40)


def accuracy(logits: Tensor, shots: Shots) -> float:
    return (logits.argmax(dim=1) == shots.labels).float().mean().item()


def quick(**changes: object) -> Harness:
    """A short training that moves: SGD at a constant-looking rate."""
    return Harness(**{"lr": 0.05, "epochs": 20, "batch_size": 16, "first_lr": None, **changes})  # type: ignore[arg-type]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slopes(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient by central differences, one number at a time."""
    out = torch.zeros_like(at)
    for index in range(at.numel()):
        values = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[index] += sign * step
            values.append(function(moved))
        out.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    return out
