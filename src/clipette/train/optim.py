"""Optimiser groups, the learning-rate curve, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.train.settings import OptimizerSettings, TrainSettings


def _kind(name: str) -> str:
    """Which learning rate a parameter of ``task.parts`` gets."""
    if name.startswith("student.text.trunk."):
        return "text"
    if name.startswith("student.image.trunk."):
        return "trunk"
    return "head"


def parameter_groups(
    modules: nn.Module, settings: OptimizerSettings, own: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Groups by (learning rate, decayed or not), in a fixed order; vectors and scalars are never decayed.

    ``own``: rates of parts of the task that have one of their own, by the part's name.

    Raises ``ConfigError`` where nothing is trainable.
    """
    rates = {
        "trunk": settings.lr,
        "head": settings.lr if settings.head_lr is None else settings.head_lr,
        "text": settings.lr if settings.text_lr is None else settings.text_lr,
        **{f"part {part}": rate for part, rate in (own or {}).items()},
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            part = f"part {name.partition('.')[0]}"
            groups.setdefault((part if part in rates else _kind(name), parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise ConfigError("nothing to train: every part of the student is frozen (train: none)")
    return [
        {"params": groups[key], "lr": rates[key[0]], "weight_decay": settings.weight_decay if key[1] else 0.0}
        for key in sorted(groups)
    ]


def build_optimizer(
    modules: nn.Module, settings: OptimizerSettings, own: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW or SGD over ``parameter_groups``."""
    groups = parameter_groups(modules, settings, own)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    # Fused: one pass over each tensor; on a CPU ten times faster than torch's default for small models.
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """The factor on every learning rate at ``step`` of ``total``.

    Linear from 0 over the warm-up share, or a constant there (CoOp's harness); then
    ``min + (1 - min) · ½(1 + cos πt)``, or constant.
    """
    warm = max(1, round(total * settings.warmup)) if settings.warmup > 0 else 0
    if step < warm:
        return (step + 1) / warm if settings.warmup_factor is None else settings.warmup_factor
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1, total - warm)
    return settings.min_lr + (1 - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class MovingAverage:
    """``ema ← d·ema + (1-d)·weights`` over all floating parameters and buffers, ``d = min(decay, (1+n)/(10+n))``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def load(self, state: Mapping[str, Tensor], count: int) -> None:
        self.count = count
        for name, value in state.items():
            self.state[name].copy_(value)


class GaussianMean:
    """Σ_e w_e · weights_e / Σ_e w_e over the ends of epochs e = 1, 2, …, with w_e = exp(−(e − mean)² / 2 sd²).

    ``update`` is called after each step; the mean so far is in ``state``, so that it can be measured at any time.
    Paper: Khattak et al. (PromptSRC), ICCV 2023, eq. 7. Deviation: none.
    """

    def __init__(self, module: nn.Module, *, mean: float, sd: float, steps_per_epoch: int) -> None:
        self.mean, self.sd, self.steps_per_epoch = mean, sd, steps_per_epoch
        self.count = 0
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def share(self, epoch: int) -> float:
        """What the weights of ``epoch`` are of the mean up to it. Through logarithms: far epochs weigh 1e-40."""
        logs = [-((e - self.mean) ** 2) / (2 * self.sd**2) for e in range(1, epoch + 1)]
        return 1.0 / sum(math.exp(min(700.0, each - logs[-1])) for each in logs)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        epoch, within = divmod(self.count, self.steps_per_epoch)
        if within and epoch:
            return
        for name, value in module.state_dict().items():
            # Before the first epoch's end there is nothing to average.
            if epoch and value.is_floating_point():
                self.state[name].lerp_(value, self.share(epoch))
            else:
                self.state[name].copy_(value)

    def load(self, state: Mapping[str, Tensor], count: int) -> None:
        self.count = count
        for name, value in state.items():
            self.state[name].copy_(value)


Average: TypeAlias = MovingAverage | GaussianMean


def build_average(module: nn.Module, settings: TrainSettings, *, steps_per_epoch: int) -> Average | None:
    """The average that the settings ask for."""
    if settings.ema is not None:
        return MovingAverage(module, settings.ema)
    if settings.gaussian is None:
        return None
    how = settings.gaussian
    return GaussianMean(module, mean=how.mean, sd=how.sd, steps_per_epoch=steps_per_epoch)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale gradients so that their global norm is at most ``limit``; returns the norm before."""
    with_gradients = [p for p in parameters if p.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(with_gradients, limit if limit is not None else math.inf))
