"""What a method that the training loop trains is made of, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipette.adapt.adapter import Adapter
from clipette.data.prompts import spoken
from clipette.losses.numerics import pair_logits
from clipette.models.core import DualEncoder

# What a method sees of an image: its pixels, or the frozen base's own unit vector, which is computed once.
Reads: TypeAlias = Literal["pixels", "vectors"]


@dataclass(frozen=True)
class Frozen:
    """The base as methods see it: nothing in it learns.

    ``class_vectors``: (class names, templates) → its own unit vectors [C, D] of these classes.
    """

    model: DualEncoder
    class_vectors: Callable[[Sequence[str], str], Tensor]

    def logits(self, image: Tensor, classes: Tensor) -> Tensor:
        """scale · cos + bias: [B, C] of unit vectors [B, D] and [C, D]."""
        return pair_logits(image, classes, scale=self.model.scale.detach(), bias=self.model.bias.detach())

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.model.logit_scale.device


class Learner(Protocol):
    """One method at work on one set of classes: parameters that learn, terms of a loss, and what is kept of it.

    ``features`` maps what it ``reads`` of a micro-batch to per-image tensors with gradients; ``terms`` sees those of
    the whole batch and the targets: ``labels`` [B], and (``compares``) ``frozen_image`` [B, D], what the base itself
    says of the same views. Terms are weighted already; the loss is their sum.
    """

    @property
    def reads(self) -> Reads: ...

    @property
    def compares(self) -> bool: ...

    @property
    def module(self) -> nn.Module:
        """All that learns."""
        ...

    def features(self, given: Tensor) -> dict[str, Tensor]: ...

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def adapters(self) -> tuple[Adapter, ...]:
        """What inference needs of it; several where validation images are to choose one."""
        ...


def cross_entropy(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """CE(logits [B, C], labels [B]), in nats."""
    return F.cross_entropy(logits.float(), targets["labels"])


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as templates say them, so that training and inference read the same words."""
    return tuple(spoken(name) for name in classes)
