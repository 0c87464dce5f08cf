"""UPL: labels for unlabelled images, by what a zero-shot teacher is most confident of, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipette.adapt.features import ClassTexts, Shots
from clipette.errors import ConfigError, DataError, ModelError


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """``rows`` [M] of the images that were chosen, their ``labels`` [M] and ``confidence`` [M], class by class.

    ``missing``: classes that no image was taken for; ``counts`` [C]: images of each class.
    """

    rows: Tensor
    labels: Tensor
    confidence: Tensor
    counts: Tensor

    @property
    def missing(self) -> tuple[int, ...]:
        """Classes without any image: a method that is trained on these labels knows them by their texts alone."""
        return tuple(int(each) for each in torch.nonzero(self.counts == 0).flatten())

    def shots(self, features: Tensor) -> Shots:
        """The chosen images' features [N, D] or [V, N, D], with their labels, for any fit.

        Raises ``DataError`` where nothing was chosen.
        """
        if not len(self.rows):
            raise DataError("no image was confident enough for a pseudo-label: lower the confidence that is asked for")
        return Shots(features[..., self.rows, :], self.labels)


def teacher_probabilities(teachers: Sequence[tuple[ClassTexts, Tensor]], temperature: float = 1.0) -> Tensor:
    """The mean of the teachers' class probabilities [N, C], in float64.

    p = (1/T) Σ_t softmax(z^t / τ)

    ``teachers``: each its class texts and its own features [N, D_t] of the same images; widths and scales may differ.
    Probabilities are averaged, not logits, whose size is each model's own affair.

    Raises:
        ConfigError: no teacher, a temperature not above 0. ModelError: images or classes differ in number.

    Paper: Huang et al. (UPL), 2022, section 3.3 (pseudo-label ensemble). Deviation: none.
    """
    if not teachers or not temperature > 0:
        raise ConfigError(f"pseudo-labels need one teacher or more, got {len(teachers)}, and a temperature above 0")
    each = [torch.softmax(base.logits(features).double() / temperature, dim=-1) for base, features in teachers]
    shapes = {tuple(probabilities.shape) for probabilities in each}
    if len(shapes) != 1:
        raise ModelError(f"the teachers must see the same images and classes, got [images, classes] {sorted(shapes)}")
    return torch.stack(each).mean(dim=0)


def pseudo_labels(probabilities: Tensor, per_class: int | None = 16, *, at_least: float = 0.0) -> PseudoLabels:
    """The ``per_class`` most confident images of each predicted class (None: all), by probabilities [N, C].

    label_i = argmax_c p_ic; of each class the K images of highest p_ic. An equal number a class keeps the teacher's
    favourite classes from filling the labels, which a threshold alone does not.

    ``at_least``: also a confidence in 0..1 that is asked of each. Of equal confidences the first image is taken.

    Raises:
        ConfigError: ``per_class`` below 1. DataError: rows that are no distributions.

    Paper: UPL, section 3.2 (K = 16). Deviation: none; ``at_least`` is the release's other mode.
    """
    if per_class is not None and per_class < 1:
        raise ConfigError(f"pseudo-labels: {per_class} images a class must be 1 or more, or none for all")
    sums = probabilities.sum(dim=-1)
    if probabilities.ndim != 2 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise DataError("pseudo-labels expect probabilities [images, classes] whose rows sum to 1")
    confidence, predicted = probabilities.max(dim=-1)
    order = torch.argsort(confidence, descending=True, stable=True)
    order = order[confidence[order] >= at_least]
    chosen = [order[predicted[order] == label][:per_class] for label in range(probabilities.shape[1])]
    rows = torch.cat(chosen)
    counts = torch.tensor([len(each) for each in chosen])
    return PseudoLabels(rows, predicted[rows], confidence[rows], counts)
