"""What methods on frozen features share: class texts, labelled vectors, and what a fitted method offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.errors import ConfigError, DataError, ModelError
from clipette.losses.numerics import full, pair_logits, unit


class FeatureClassifier(Protocol):
    """A fitted method: frozen image vectors in, logits out."""

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C] of unit vectors [N, D]."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What was learned, by name: what a checkpoint holds beside the base model."""
        ...


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """The frozen base: logits = ``scale`` · x · Wᵀ + ``bias``.

    Shapes: ``classes`` W [C, D], unit length. ``scale`` multiplies cosines (exp of CLIP's logit_scale).

    Raises:
        ModelError: not a matrix, or a value that is not finite.
    """

    classes: Tensor
    scale: float
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.classes.ndim != 2 or not len(self.classes):
            raise ModelError(f"class texts are a matrix [classes, width], got {list(self.classes.shape)}")
        if not bool(self.classes.isfinite().all()):
            raise ModelError("class texts hold NaN or infinity: check the weights of the model that encoded them")

    def logits(self, image_features: Tensor) -> Tensor:
        """[N, C]: the zero-shot model's own."""
        return pair_logits(image_features, self.classes, scale=self.scale, bias=self.bias)


@dataclass(frozen=True, eq=False)
class Shots:
    """Labelled images as frozen vectors, each image once or under several augmented views.

    Shapes: ``features`` [N, D], or [V, N, D] for V views; ``labels`` [N] integers, the rows of the class texts.

    Raises:
        DataError: no image, counts that differ, or a negative label.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        shape = list(self.features.shape)
        if self.features.ndim not in (2, 3) or 0 in shape:
            raise DataError(f"labelled features are [images, width] or [views, images, width], got {shape}")
        if list(self.labels.shape) != [shape[-2]] or self.labels.is_floating_point():
            raise DataError(f"{list(self.labels.shape)} labels do not number {shape[-2]} images")
        if int(self.labels.min()) < 0:
            raise DataError("a label is negative: leave images without a class out")

    def __len__(self) -> int:
        return len(self.labels)

    def view(self, epoch: int) -> Tensor:
        """[N, D]: the views take turns, one an epoch, as fresh augmentations would."""
        return self.features if self.features.ndim == 2 else self.features[epoch % len(self.features)]

    def mean(self) -> Tensor:
        """[N, D]: the unit mean over the views of each image."""
        return self.features if self.features.ndim == 2 else unit(full(self.features).mean(dim=0))

    def flat(self) -> tuple[Tensor, Tensor]:
        """([V N, D], [V N]): every view as an image of its own."""
        if self.features.ndim == 2:
            return self.features, self.labels
        return self.features.flatten(0, 1), self.labels.repeat(len(self.features))

    def check(self, base: ClassTexts) -> None:
        """Raises ``DataError`` for labels past the classes, ``ModelError`` where widths differ."""
        if int(self.labels.max()) >= len(base.classes):
            raise DataError(f"label {int(self.labels.max())} is outside the {len(base.classes)} classes")
        if self.features.shape[-1] != base.classes.shape[-1]:
            raise ModelError(
                f"image features of width {self.features.shape[-1]} and class texts of width {base.classes.shape[-1]} "
                "are not of one space: take both from the same model"
            )

    def batches(self, size: int, epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled (features [B, D], labels [B]) of one epoch; the last batch may be smaller."""
        features = self.view(epoch)
        order = torch.randperm(len(self), generator=generator).to(features.device)
        for start in range(0, len(self), size):
            rows = order[start : start + size]
            yield features[rows], self.labels[rows]


def keep_length(moved: Tensor, like: Tensor) -> Tensor:
    """``moved`` at the length of ``like``: moved · ‖like‖ / ‖moved‖, row by row.

    As normalising where ``like`` has unit length; and where nothing moved the factor is exactly 1, so that no effect
    is the base model to the last bit, which normalising anew would change.
    """
    long = torch.linalg.vector_norm(full(moved), dim=-1, keepdim=True)
    wanted = torch.linalg.vector_norm(full(like), dim=-1, keepdim=True)
    out: Tensor = moved * (wanted / long.clamp_min(1e-12))
    return out


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(top-1 accuracy, −cross-entropy): what is compared on validation images, the second where the first ties."""
    accuracy = (logits.argmax(dim=-1) == labels).double().mean().item()
    return accuracy, -F.cross_entropy(logits.double(), labels).item()


def needs_dev(dev: Shots | None, candidates: int, what: str) -> None:
    """Raises ``ConfigError`` where there is something to choose and no validation images to choose by."""
    if candidates < 1:
        raise ConfigError(f"{what}: name at least one value")
    if dev is None and candidates > 1:
        raise ConfigError(
            f"{candidates} values of {what} to choose from, but no validation images to choose by: give some, or one "
            "value (never choose on test images)"
        )
