"""Adaptation as a task of the loop: a method's learner over a frozen base. The loop sees features and terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clipette.adapt.learner import Frozen, Learner
from clipette.evaluate.zero_shot import class_vectors
from clipette.models.core import DualEncoder, set_trainable
from clipette.models.inference import TorchEncoder
from clipette.tasks.batch import Batch
from clipette.tasks.task import StepOutput


def freeze(base: TorchEncoder) -> Frozen:
    """``base`` as methods see it: nothing in it learns any more, its norms stand still."""
    set_trainable(base.model, False)
    base.model.eval()

    def vectors(names: Sequence[str], templates: str) -> Tensor:
        return torch.from_numpy(class_vectors(base, names, templates)).to(base.device)

    return Frozen(base.model, vectors)


class AdaptTask:
    """``tasks.task.Task`` for every method that learns by gradient: loss = Σ of the learner's terms.

    What is checkpointed, averaged and stepped is the learner's module alone; the base is outside ``parts``.
    """

    def __init__(self, learner: Learner, base: DualEncoder) -> None:
        self.learner = learner
        self.parts = nn.ModuleDict({"learned": learner.module})
        # In a list, so that the base is neither trained, nor moved, nor saved with the task.
        self._base = [base]

    @property
    def student(self) -> DualEncoder:
        """The frozen base: its image tower runs in the loop."""
        return self._base[0]

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The learner's features of one micro-batch: of its pixels, or of the base's stored vectors."""
        vectors = self.learner.reads == "vectors"
        return self.learner.features(batch.targets["teacher_image"] if vectors else batch.inputs["pixels"])

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing: what the base says is stored."""
        return {}

    def loss(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> StepOutput:
        """Σ term over the whole batch."""
        seen = {**targets, **({"frozen_image": targets["teacher_image"]} if self.learner.compares else {})}
        terms = self.learner.terms(features, seen)
        total = torch.stack([value.float() for value in terms.values()]).sum()
        logged = {name: float(value.detach()) for name, value in terms.items()}
        return StepOutput(total, logged, logged)
