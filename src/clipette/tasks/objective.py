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
from clipette.tasks.masks import Masks
from clipette.tasks.task import StepOutput
from clipette.tasks.terms import WeightedTerm, guides_of, needs_of


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
    multiplies the terms' weights. ``guides``: further teachers by name, for terms such as ``image_cosine@name``.
    ``class_weights`` [C]: what an image of each label weighs in the per-sample class-text terms.
    ``masks``: over the student's parts, which learn along and bring a term of their own, logged with the share kept.
    """

    def __init__(
        self,
        student: DualEncoder,
        terms: tuple[WeightedTerm, ...],
        *,
        teacher: TeacherFacts | None = None,
        guides: Mapping[str, TeacherFacts] | None = None,
        class_tokens: Mapping[str, Tensor] | None = None,
        teacher_model: DualEncoder | None = None,
        balance: Balance = "none",
        class_weights: Tensor | None = None,
        masks: Masks | None = None,
        seed: int = 0,
    ) -> None:
        self.terms = terms
        self.needs = needs_of(terms)
        self.teacher = teacher
        self.guides = dict(guides or {})
        unknown = [name for name in guides_of(terms) if name not in self.guides]
        if unknown:
            there = f"there are {', '.join(self.guides)}" if self.guides else "there is none"
            raise ConfigError(f"loss: no further teacher is called '{unknown[0]}' ({there}): name it under also")
        self._class_tokens = dict(class_tokens or {})
        self._class_weights = class_weights
        # In a list, so that the teacher is neither trained, nor moved, nor saved with the task.
        self._teacher_model = [] if teacher_model is None else [teacher_model.eval()]
        self.parts = nn.ModuleDict({"student": student})
        sides = frozenset[str]().union(*(each.term.same_width for each in terms if not each.guide))
        if teacher is None and any(name.startswith("teacher") for name in self.needs):
            wanting = [t.name for t in terms if any(name.startswith("teacher") for name in t.term.needs)]
            raise ConfigError(f"loss terms {', '.join(wanting)} need a teacher: name one, or remove them")
        if teacher is not None and student.dim != teacher.dim:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for side in sorted(sides):
                    self.parts[f"adapter_{side}"] = nn.Linear(student.dim, teacher.dim)
        # A guide never shares the student's space: each has projectors of its own.
        for number, name in enumerate(guides_of(terms)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 2 + number)
                for side in sorted(frozenset[str]().union(*(t.term.same_width for t in terms if t.guide == name))):
                    self.parts[f"adapter_{side}@{name}"] = nn.Linear(student.dim, self.guides[name].dim)
        if teacher is not None and any(each.term.fuses for each in terms):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1)
                for side in ("image", "text"):
                    self.parts[f"fusion_{side}"] = nn.Linear(student.dim + teacher.dim, student.dim)
        if balance != "none":
            self.parts["balance"] = BALANCES[balance](len(terms))
        if masks is not None:
            self.parts["masks"] = masks

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
        if self._class_weights is not None:
            tensors["sample_weight"] = self._class_weights.to(tensors["labels"].device)[tensors["labels"]]
        for name in self.guides:
            tensors |= self._guidance(name, tensors)
        values = [each.term.call(_seen(tensors, each), each.options) for each in self.terms]
        factors, extra = self._balanced(values, features)
        total = torch.zeros((), device=tensors["student_scale"].device)
        weighted, raw = {}, {}
        for each, value, factor, more in zip(self.terms, values, factors, extra, strict=True):
            total = total + each.weight * (factor * value + more)
            raw[each.name] = float(value.detach())
            weighted[each.name] = each.weight * float(torch.as_tensor(factor).detach()) * raw[each.name]
        if "masks" in self.parts:
            penalty, share = self.parts["masks"]()
            total = total + penalty
            weighted["masks"], raw["masks"] = float(penalty.detach()), float(share.detach())
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

    def _guidance(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What terms of one further teacher read: its facts, and the student's vectors in its width."""
        facts, like = self.guides[name], tensors["teacher_scale"]
        out = {
            f"teacher_scale@{name}": torch.tensor(facts.scale, device=like.device),
            f"teacher_bias@{name}": torch.tensor(facts.bias, device=like.device),
        }
        if facts.classes is not None:
            out[f"teacher_classes@{name}"] = facts.classes.to(like.device)
        for side in ("image", "text"):
            if f"adapter_{side}@{name}" in self.parts:
                out[f"adapted_{side}@{name}"] = self._adapted(f"{side}@{name}", tensors[f"student_{side}"])
        return out

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


def _seen(tensors: dict[str, Tensor], term: WeightedTerm) -> dict[str, Tensor]:
    """The tensors with one further teacher's in the place of the first's."""
    if not term.guide:
        return tensors
    mark = f"@{term.guide}"
    theirs = {name.removesuffix(mark): value for name, value in tensors.items() if name.endswith(mark)}
    return {**tensors, **theirs}
