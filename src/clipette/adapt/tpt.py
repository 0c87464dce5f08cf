"""TPT: a prompt tuned at test time, for one image, so that its augmented views agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipette.errors import ConfigError, InternalError
from clipette.losses.numerics import entropy_rows, full


@dataclass(frozen=True)
class TPTSettings:
    """``views`` of an image, the first unaugmented; the ``share`` of them that is kept; AdamW ``steps`` at ``lr``."""

    views: int = 64
    share: float = 0.1
    steps: int = 1
    lr: float = 5e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.views < 1 or not 0 < self.share <= 1 or self.steps < 0 or self.lr <= 0:
            raise ConfigError(
                f"TPT: views {self.views}, share {self.share}, steps {self.steps}, lr {self.lr}: need >= 1, in (0, 1], "
                ">= 0, > 0"
            )


def confident(logits: Tensor, share: float) -> Tensor:
    """Which views to believe: the rows [..., K] of lowest entropy of logits [..., V, C], K = max(1, ⌊share · V⌋).

    Paper: Shu et al. (TPT), NeurIPS 2022, eq. 5. Deviation: at least one view (the release would keep none of 9).
    """
    # The small number: 0.1 · 10 views is one view whatever the floating point says.
    count = max(1, math.floor(share * logits.shape[-2] + 1e-9))
    entropies = entropy_rows(torch.softmax(full(logits), dim=-1))
    return torch.argsort(entropies, dim=-1, stable=True)[..., :count]


def marginal_entropy(logits: Tensor) -> Tensor:
    """The entropy [...] of the mean distribution of logits [..., K, C], in nats.

    H(p̄),  p̄ = (1/K) Σ_k softmax(z_k)

    Range: 0 to ln C. Through logarithms, so that gradients stay finite where a probability is 0.

    Paper: TPT, eq. 4. Deviation: none.
    """
    log_mean = torch.logsumexp(torch.log_softmax(full(logits), dim=-1), dim=-2) - math.log(logits.shape[-2])
    return -(log_mean.exp() * log_mean.clamp_min(torch.finfo(log_mean.dtype).min)).sum(dim=-1)


def tune_prompt(logits_of: Callable[[Tensor], Tensor], prompt: Tensor, settings: TPTSettings = TPTSettings()) -> Tensor:
    """A prompt for one image, or one for each of B images at once: the start is ``prompt``, which stays as it is.

    min over the prompt of Σ_b H(mean over the confident views of softmax(logits_of(prompt)))

    Shapes: prompt [..., M, W]; ``logits_of(prompt)`` [..., V, C], the logits of an image's views. With leading
    dimensions each image has its own prompt, and the result is that of one at a time. The views are chosen once, by the
    first step's logits. Then classify the unaugmented image with the result. ``steps`` = 0: the prompt itself.

    Raises:
        InternalError: logits without the views' dimension.

    Paper: Shu et al. (TPT), NeurIPS 2022, eqs. 3-5. Deviation: none; the release's mixed precision is left out.
    """
    tuned = prompt.detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([tuned], lr=settings.lr, weight_decay=settings.weight_decay)
    rows: Tensor | None = None
    for _ in range(settings.steps):
        with torch.enable_grad():
            logits = logits_of(tuned)
            if logits.ndim < 2:
                raise InternalError(f"TPT expects logits [..., views, classes], got {list(logits.shape)}")
            if rows is None:
                rows = confident(logits.detach(), settings.share)
            kept = torch.take_along_dim(logits, rows[..., None], dim=-2)
            (gradient,) = torch.autograd.grad(marginal_entropy(kept).sum(), tuned)
        tuned.grad = gradient
        optimizer.step()
    return tuned.detach()
