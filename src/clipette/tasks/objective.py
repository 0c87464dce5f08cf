"""Pretraining and distillation as one task: a student, what its teacher said, and a weighted sum of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.core import DualEncoder
from clipette.tasks.balance import BALANCES, Balance
from clipette.tasks.batch import Batch
from clipette.tasks.task import StepOutput
from clipette.tasks.terms import WeightedTerm, needs_of


@dataclass(frozen=True)
class TeacherFacts:
    """What the loss knows of a teacher that need not be there: width, scale, bias, and its class vectors [C, Dt]."""

    dim: int
    scale: float
    bias: float = 0.0
    classes: Tensor | None = None


class Objective:
    """``tasks.task.Task`` for every method that is a weighted sum of terms.

    ``class_tokens``: the student's own tokens of the class texts [C, L], encoded at each step while its text tower
    learns; without them the student lives in its teacher's space and shares its class vectors. ``teacher_model``: run
    in the loop (``--teacher-online``) in place of stored outputs. ``balance``: a rule of ``tasks/balance.py`` that
    multiplies the terms' weights.
    """

    def __init__(
        self,
        student: DualEncoder,
        terms: tuple[WeightedTerm, ...],
        *,
        teacher: TeacherFacts | None = None,
        class_tokens: Mapping[str, Tensor] | None = None,
        teacher_model: DualEncoder | None = None,
        balance: Balance = "none",
        seed: int = 0,
    ) -> None:
        self.terms = terms
        self.needs = needs_of(terms)
        self.teacher = teacher
        self._class_tokens = dict(class_tokens or {})
        # In a list, so that the teacher is neither trained, nor moved, nor saved with the task.
        self._teacher_model = [] if teacher_model is None else [teacher_model.eval()]
        self.parts = nn.ModuleDict({"student": student})
        sides = frozenset[str]().union(*(each.term.same_width for each in terms))
        if teacher is None and any(name.startswith("teacher") for name in self.needs):
            wanting = [t.name for t in terms if any(name.startswith("teacher") for name in t.term.needs)]
            raise ConfigError(f"loss terms {', '.join(wanting)} need a teacher: name one, or remove them")
        if teacher is not None and student.dim != teacher.dim:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for side in sorted(sides):
                    self.parts[f"adapter_{side}"] = nn.Linear(student.dim, teacher.dim)
        if teacher is not None and any(each.term.fuses for each in terms):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1)
                for side in ("image", "text"):
                    self.parts[f"fusion_{side}"] = nn.Linear(student.dim + teacher.dim, student.dim)

        if balance != "none":
            self.parts["balance"] = BALANCES[balance](len(terms))

    @property
    def student(self) -> DualEncoder:
        student = self.parts["student"]
        assert isinstance(student, DualEncoder)
        return student

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Unit vectors of the micro-batch's images and captions, as far as the terms read them."""
        out = {}
        student = self.student
        if "student_image" in self.needs:
            tower = student.image_tower()
            trunk = batch.inputs.get("image_trunk")
            raw = tower(batch.inputs["pixels"]) if trunk is None else tower.head(trunk)
            out["student_image"] = F.normalize(raw.float(), dim=-1)
        if "student_text" in self.needs:
            out["student_text"] = self._text(batch)
        return out

    def _text(self, batch: Batch) -> Tensor:
        if "text_fixed" in batch.inputs:
            return batch.inputs["text_fixed"]
        tower = self.student.text_tower()
        trunk = batch.inputs.get("text_trunk")
        raw = tower(batch.tokens) if trunk is None else tower.head(trunk)
        return F.normalize(raw.float(), dim=-1)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """What the online teacher says of the same views and captions; nothing where its outputs are stored."""
        out = {}
        for teacher in self._teacher_model:
            if "teacher_image" in self.needs:
                out["teacher_image"] = teacher.encode_image(batch.inputs["teacher_pixels"])
            if "teacher_text" in self.needs:
                out["teacher_text"] = teacher.encode_text(batch.teacher_tokens)
        return out

    def loss(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> StepOutput:
        """Σ weight · term over the whole batch."""
        tensors = {**targets, **features, **self._scales(next(iter(features.values())))}
        for side in ("image", "text"):
            if f"student_{side}" in features:
                tensors[f"adapted_{side}"] = self._adapted(side, features[f"student_{side}"])
            if f"fusion_{side}" in self.parts:
                both = torch.cat([tensors[f"student_{side}"], tensors[f"teacher_{side}"]], dim=-1)
                tensors[f"fused_{side}"] = F.normalize(self.parts[f"fusion_{side}"](both), dim=-1)
        if "student_classes" in self.needs:
            tensors["student_classes"] = self._student_classes(tensors)
        if "teacher_classes" in self.needs:
            tensors["teacher_classes"] = self._teacher_classes(tensors["teacher_scale"])
        values = [each.term.call(tensors, each.options) for each in self.terms]
        factors, extra = self._balanced(values, features)
        total = torch.zeros((), device=tensors["student_scale"].device)
        weighted, raw = {}, {}
        for each, value, factor, more in zip(self.terms, values, factors, extra, strict=True):
            total = total + each.weight * (factor * value + more)
            raw[each.name] = float(value.detach())
            weighted[each.name] = each.weight * float(torch.as_tensor(factor).detach()) * raw[each.name]
        return StepOutput(total, weighted, raw)

    def _balanced(
        self, values: Sequence[Tensor], vectors: Mapping[str, Tensor]
    ) -> tuple[Sequence[Tensor | float], Sequence[Tensor | float]]:
        if "balance" not in self.parts:
            return [1.0] * len(values), [0.0] * len(values)
        factors, extra = self.parts["balance"](values, vectors)
        return factors, extra or [0.0] * len(values)

    def _scales(self, like: Tensor) -> dict[str, Tensor]:
        student = self.student
        teacher = self.teacher or TeacherFacts(student.dim, 1.0)
        return {
            # The loop clamps the parameter after each step. A clamp here would have no gradient at the limit, and the
            # scale could never come down again.
            "student_scale": student.scale,
            "student_bias": student.bias,
            "teacher_scale": torch.tensor(teacher.scale, device=like.device),
            "teacher_bias": torch.tensor(teacher.bias, device=like.device),
        }

    def _adapted(self, side: str, value: Tensor) -> Tensor:
        name = f"adapter_{side}"
        return F.normalize(self.parts[name](value), dim=-1) if name in self.parts else value

    def _student_classes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if not self._class_tokens:
            return self._teacher_classes(tensors["teacher_scale"])
        device = tensors["teacher_scale"].device
        return self.student.encode_text({name: value.to(device) for name, value in self._class_tokens.items()})

    def _teacher_classes(self, like: Tensor) -> Tensor:
        if self.teacher is None or self.teacher.classes is None:
            raise ConfigError("a class-text loss needs the teacher's class vectors: pour the class names (--classes)")
        return self.teacher.classes.to(like.device)
