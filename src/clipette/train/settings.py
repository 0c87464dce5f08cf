"""How to train, apart from what: typed, strict, one place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clipette.config import StrictModel
from clipette.models.spec import Pixels

Share = Annotated[float, Field(ge=0, lt=1)]
Epoch = Annotated[int, Field(ge=0)]

# PyTorch's generators take 64 bits, and some parts of a run draw from a seed just above the run's own.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class OptimizerSettings(StrictModel):
    """AdamW or SGD with momentum. ``lr`` is for trunks, ``head_lr`` for heads and what the loss learns (default
    ``lr``), ``text_lr`` for a text trunk (default ``lr``). Norms, biases and scales are not decayed."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, ge=0)
    head_lr: float | None = Field(default=None, ge=0)
    text_lr: float | None = Field(default=None, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    momentum: Share = 0.9


class GaussianAverage(StrictModel):
    """The final weights are a mean over those at the end of each epoch e = 1, 2, …, weighted by N(e; mean, sd²)."""

    mean: float
    sd: float = Field(gt=0)


class TrainSettings(StrictModel):
    """The loop's settings.

    ``epochs`` or ``steps`` (``steps`` wins); ``batch_size`` is global, over all ranks; ``micro_batches`` cuts it into
    pieces that fit memory, without shrinking the negatives. ``sizes``: image size by epoch for progressive resolution,
    ``{0: 128, 6: 224}``; the model's own size at the end. ``evaluate_every`` and ``save_every`` in steps; 0 means
    once an epoch for both. ``warmup_factor``: a constant factor on the rates during the warm-up, in place of the ramp
    from 0. ``ema`` or ``gaussian``: the run ends with an average of its weights. ``keep: best`` ends with the weights
    of the best dev figure, ``last`` with the last.
    """

    epochs: float = Field(default=10, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=128, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, le=1)
    warmup_factor: float | None = Field(default=None, ge=0, le=1)
    min_lr: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = Field(default=None, gt=0, lt=1)
    gaussian: GaussianAverage | None = None
    freeze_norms: bool = False
    channels_last: bool = True
    sizes: dict[Epoch, Pixels] = Field(default_factory=dict)
    evaluate_every: int = Field(default=0, ge=0)
    save_every: int = Field(default=0, ge=0)
    keep: Literal["last", "best"] = "last"
    max_scale: float = Field(default=100.0, gt=0)
    threads: int | None = Field(default=None, ge=1)
    loader_threads: int = Field(default=2, ge=0)
    cache_mb: int = Field(default=3000, ge=0)
    max_failures: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _pieces_fit(self) -> TrainSettings:
        if self.micro_batches > self.batch_size:
            raise ValueError(f"micro_batches {self.micro_batches} exceeds batch_size {self.batch_size}")
        if self.ema is not None and self.gaussian is not None:
            raise ValueError("ema and gaussian are two averages of the same weights: choose one")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many steps the run has."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))
