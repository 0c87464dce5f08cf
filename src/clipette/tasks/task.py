"""What the loop asks of a task, and nothing about methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from clipette.models.core import DualEncoder
from clipette.tasks.batch import Batch


@dataclass(frozen=True)
class StepOutput:
    """The loss to descend, and its terms for the log: ``terms[name]`` is the weighted value, ``raw[name]`` the bare."""

    loss: Tensor
    terms: Mapping[str, float]
    raw: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A step in two halves, so that the loop can cache features (GradCache) and gather them across ranks.

    ``encode`` maps one micro-batch to per-sample features with gradients; ``loss`` sees the features and targets of
    the **whole** batch, of all micro-batches and all ranks. Two ranks, or two micro-batches, are then one batch.
    """

    @property
    def student(self) -> DualEncoder: ...

    @property
    def parts(self) -> nn.ModuleDict:
        """Everything that is trained and checkpointed: ``student`` and what only the loss needs (adapters, weights)."""
        ...

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Student features of one micro-batch: each [b, ...], differentiable."""
        ...

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Targets of one micro-batch that need a forward of the teacher (``--teacher-online``): no gradients."""
        ...

    def loss(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> StepOutput:
        """The weighted sum over the whole batch."""
        ...
