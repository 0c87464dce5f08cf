"""Training on stored features: the few-shot harness, with the epoch chosen on validation images or the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.adapt.features import Shots, score
from clipette.errors import ConfigError


@dataclass(frozen=True)
class Harness:
    """How vectors are trained: cosine from ``lr`` to 0, the first epoch at ``first_lr`` where one is given.

    ``anneal``: the rate changes by ``epoch`` (CoOp) or by ``step`` (Tip-Adapter). ``weight_decay`` is L2 in the
    gradient for SGD and Adam, decoupled for AdamW. Defaults: CoOp's (Zhou et al., IJCV 2022, section 4.1).
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 2e-3
    batch_size: int = 32
    epochs: int = 200
    weight_decay: float = 5e-4
    momentum: float = 0.9
    eps: float = 1e-8
    first_lr: float | None = 1e-5
    anneal: Literal["epoch", "step"] = "epoch"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or self.lr <= 0:
            raise ConfigError(f"epochs {self.epochs}, batch_size {self.batch_size}, lr {self.lr}: need >= 0, >= 1, > 0")
        if not 0 <= self.momentum < 1 or self.eps <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"momentum {self.momentum}, eps {self.eps}, weight_decay {self.weight_decay}: need 0 to 1, > 0, >= 0"
            )

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate at ``step`` of the ``steps`` of an epoch."""
        if epoch == 0 and self.first_lr is not None:
            return self.first_lr
        done = epoch + step / steps if self.anneal == "step" else epoch
        return self.lr * 0.5 * (1 + math.cos(math.pi * done / self.epochs))


@dataclass(frozen=True)
class Course:
    """How training went. ``epoch``: the one kept, 0 the start. ``dev[e]``: accuracy after e epochs; ``loss``: means."""

    epoch: int
    loss: tuple[float, ...]
    dev: tuple[float, ...]


def train(
    parameters: Sequence[Tensor],
    logits_of: Callable[[Tensor], Tensor],
    shots: Shots,
    how: Harness,
    dev: Shots | None = None,
) -> Course:
    """Minimise the cross-entropy of ``logits_of(features)`` over ``parameters``, in place.

    With ``dev`` the epoch of the best validation accuracy is kept (the start is one of them; equal accuracies are
    decided by the lower cross-entropy, then the earlier epoch), else the last. Same seed, same bits.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = _optimizer(parameters, how)
    generator = torch.Generator().manual_seed(how.seed)
    steps = -(-len(shots) // how.batch_size)
    losses: list[float] = []
    scores = [] if dev is None else [_score(logits_of, dev)]
    best, kept = 0, [parameter.detach().clone() for parameter in parameters]
    for epoch in range(how.epochs):
        total = 0.0
        for step, (features, labels) in enumerate(shots.batches(how.batch_size, epoch, generator)):
            for group in optimizer.param_groups:
                group["lr"] = how.rate(epoch, step, steps)
            loss = F.cross_entropy(logits_of(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / len(shots))
        if dev is not None:
            scores.append(_score(logits_of, dev))
            if scores[-1] > scores[best]:
                best, kept = epoch + 1, [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.requires_grad_(False)
            if dev is not None:
                parameter.copy_(value)
    return Course(how.epochs if dev is None else best, tuple(losses), tuple(accuracy for accuracy, _ in scores))


@torch.no_grad()
def _score(logits_of: Callable[[Tensor], Tensor], dev: Shots) -> tuple[float, float]:
    features, labels = dev.flat()
    return score(logits_of(features), labels)


def _optimizer(parameters: Sequence[Tensor], how: Harness) -> torch.optim.Optimizer:
    if how.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    if how.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=how.lr, eps=how.eps, weight_decay=how.weight_decay)
    return torch.optim.AdamW(parameters, lr=how.lr, eps=how.eps, weight_decay=how.weight_decay)
