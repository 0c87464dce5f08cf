"""Every loss with its twin, on small float64 tensors of many shapes: what tests/losses runs through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipette.losses import LOSSES, Teacher
from reference import contrastive, decoupled, ensembles, features, gradients, logits, relations

# (B, N, student's width, teacher's width): one image, B < N, B > N, widths either way round.
FREE = [(1, 1, 3, 4), (1, 4, 3, 5), (3, 3, 3, 3), (3, 5, 4, 2), (4, 2, 2, 5)]
SQUARE = [(1, 1, 3, 4), (2, 2, 4, 2), (4, 4, 3, 5)]
ONE_WIDTH = [(1, 1, 3, 3), (2, 2, 4, 4), (4, 4, 3, 3)]


@dataclass(frozen=True)
class Case:
    """One call: the student's tensors and numbers may move, the teacher's may not."""

    name: str
    label: str
    student: dict[str, Tensor]
    teacher: dict[str, Tensor] = field(default_factory=dict)
    student_numbers: dict[str, float] = field(default_factory=dict)
    teacher_numbers: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.label}"

    def ours(self, **changed: Any) -> Tensor:
        """Our loss with some arguments replaced."""
        numbers = {**self.student_numbers, **self.teacher_numbers}
        return LOSSES[self.name](**{**self.student, **self.teacher, **numbers, **self.options, **changed})

    def twin(self, **changed: Any) -> float:
        """The twin's value on plain lists."""
        numbers = {**self.student_numbers, **self.teacher_numbers}
        arguments = {**self.student, **self.teacher, **numbers, **self.options, **changed}
        return TWINS[self.name](**{key: plain(value) for key, value in arguments.items()})


def plain(value: Any) -> Any:
    """Tensors as lists, teachers as their plain twins."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], Teacher):
        return [
            ensembles.PlainTeacher(*map(plain, (t.image, t.text, t.scale, t.bias, t.weight, t.known))) for t in value
        ]
    return value


TWINS: dict[str, Callable[..., float]] = {
    "clip": contrastive.clip_loss,
    "siglip": contrastive.siglip_loss,
    "class_text_ce": logits.class_text_ce,
    "cosine": features.cosine,
    "mse": features.mse,
    "image_to_teacher": contrastive.image_to_teacher,
    "rkd_distance": relations.rkd_distance,
    "rkd_angle": relations.rkd_angle,
    "gram": relations.gram,
    "intra_modal_kl": relations.intra_modal_kl,
    "interactive_contrastive": contrastive.interactive_contrastive,
    "in_batch_kl": logits.in_batch_kl,
    "in_batch_bce": logits.in_batch_bce,
    "distill_clip": logits.distill_clip,
    "affinity_mimicking": logits.affinity_mimicking,
    "gradient_distillation": gradients.gradient_distillation,
    "clip_rd": relations.clip_rd,
    "class_text_kl": logits.class_text_kl,
    "class_text_bce": logits.class_text_bce,
    "class_text_dkd": decoupled.class_text_dkd,
    "class_text_dist": decoupled.class_text_dist,
    "class_text_standardized_kl": decoupled.class_text_standardized_kl,
    "in_batch_ensemble": ensembles.in_batch_ensemble,
    "class_text_ensemble": ensembles.class_text_ensemble,
    "dkd": decoupled.dkd,
    "dist": decoupled.dist,
    "standardized_kl": decoupled.standardized_kl,
}


def units(generator: torch.Generator, count: int, width: int) -> Tensor:
    vectors = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def raw(generator: torch.Generator, count: int, width: int) -> Tensor:
    return 2 * torch.randn(count, width, generator=generator, dtype=torch.float64)


def seeded(shape: tuple[int, ...]) -> torch.Generator:
    return torch.Generator().manual_seed(sum(size * 7**place for place, size in enumerate(shape)))


def own_pairs() -> Iterator[Case]:
    """(image, text), with and without ids."""
    for b, _, d, _ in SQUARE:
        make = seeded((b, d))
        pair = {"image": units(make, b, d), "text": units(make, b, d)}
        yield Case("clip", f"B{b}-D{d}", pair, student_numbers={"scale": 4.0, "bias": 0.5})
        yield Case("siglip", f"B{b}-D{d}", pair, student_numbers={"scale": 4.0, "bias": -2.0})
    # Two captions of image 7 as two rows; then five texts of three images, one of no image here and one without text.
    for ids, text_ids in (([7, 3, 7, 5], None), ([7, 3, 9], [3, 7, 7, 3, 1]), ([1], [1, 1, 1])):
        make = seeded((len(ids), 3))
        pair = {"image": units(make, len(ids), 3), "text": units(make, len(text_ids or ids), 3)}
        options: dict[str, Any] = {"ids": torch.tensor(ids)}
        if text_ids is not None:
            options["text_ids"] = torch.tensor(text_ids)
        label = f"ids{len(ids)}-{len(text_ids or ids)}"
        yield Case("clip", label, pair, student_numbers={"scale": 4.0, "bias": 0.5}, options=options)
        yield Case("siglip", label, pair, student_numbers={"scale": 4.0, "bias": -2.0}, options=options)


def same_inputs() -> Iterator[Case]:
    """(student, teacher): vectors of the same inputs."""
    for b, _, d, _ in ONE_WIDTH:
        make = seeded((b, d, 1))
        student, teacher = raw(make, b, d), raw(make, b, d)
        label = f"B{b}-D{d}"
        for name in ("cosine", "mse"):
            yield Case(name, label, {"student": student}, {"teacher": teacher})
        vectors = {"student": units(make, b, d)}, {"teacher": units(make, b, d)}
        yield Case("image_to_teacher", label, *vectors, {"scale": 5.0})
    make = seeded((4, 3))
    vectors = {"student": units(make, 4, 3)}, {"teacher": units(make, 4, 3)}
    options = {"ids": torch.tensor([2, 4, 2, 6])}
    yield Case("image_to_teacher", "ids", *vectors, {"scale": 5.0}, options=options)
    for b, _, ds, dt in [*SQUARE, (3, 3, 2, 2)]:
        make = seeded((b, ds, dt))
        student, teacher = {"student": raw(make, b, ds)}, {"teacher": raw(make, b, dt)}
        label = f"B{b}-D{ds}-{dt}"
        for name in ("rkd_distance", "rkd_angle", "gram"):
            yield Case(name, label, student, teacher)
        yield Case("intra_modal_kl", label, student, teacher, {"student_scale": 3.0}, {"teacher_scale": 6.0})
    yield Case("rkd_angle", "anchors2", student, teacher, options={"anchors": 2})
    repeated = {"student": student["student"][[0, 1, 0]]}, {"teacher": teacher["teacher"][[0, 0, 1]]}
    yield Case("rkd_distance", "repeated-teacher", student, repeated[1])
    yield Case("rkd_angle", "repeated-teacher", student, repeated[1])


def both_pairs() -> Iterator[Case]:
    """(student_image, student_text, teacher_image, teacher_text)."""
    for b, n, ds, dt in FREE:
        make = seeded((b, n, ds, dt))
        student = {"student_image": units(make, b, ds), "student_text": units(make, n, ds)}
        teacher = {"teacher_image": units(make, b, dt), "teacher_text": units(make, n, dt)}
        label = f"B{b}-N{n}-D{ds}-{dt}"
        scales = {"student_scale": 3.0}, {"teacher_scale": 6.0}
        biased = {**scales[0], "student_bias": -1.0}, {**scales[1], "teacher_bias": -3.0}
        for temperature in (1.0, 2.0):
            options = {"temperature": temperature}
            yield Case("in_batch_kl", f"{label}-T{temperature:g}", student, teacher, *biased, options)
        for off in (False, True):
            for name in ("in_batch_bce", "distill_clip"):
                yield Case(name, f"{label}-{off}", student, teacher, *biased, {"subtract_entropy": off})
            yield Case("affinity_mimicking", f"{label}-{off}", student, teacher, *scales, {"subtract_entropy": off})
    yield Case("affinity_mimicking", "published-scales", student, teacher)
    for b, _, d, _ in ONE_WIDTH:
        make = seeded((b, d, 2))
        student = {"student_image": units(make, b, d), "student_text": units(make, b, d)}
        teacher = {"teacher_image": units(make, b, d), "teacher_text": units(make, b, d)}
        yield Case("interactive_contrastive", f"B{b}-D{d}", student, teacher, {"scale": 5.0})
        yield Case("gradient_distillation", f"B{b}-D{d}", student, teacher, *scales)
        # What is held still is another tensor here: a twin cannot move one use of a vector and not the other.
        held = {**teacher, "held_image": units(make, b, d), "held_text": units(make, b, d)}
        for number, weights in enumerate(({}, {"vertical": 0.5, "cross": 3.0})):
            yield Case("clip_rd", f"B{b}-D{d}-{number}", student, held, {"scale": 5.0}, {"held_scale": 4.0}, weights)
    student = {**student, "student_text": units(make, 5, 3)}
    teacher = {**teacher, "teacher_text": units(make, 5, 3)}
    options = {"ids": torch.tensor([1, 2, 1, 4]), "text_ids": torch.tensor([2, 1, 1, 9, 4])}
    yield Case("interactive_contrastive", "ids", student, teacher, {"scale": 5.0}, options=options)


def class_texts() -> Iterator[Case]:
    """(student_image, teacher_image, student_classes, teacher_classes)."""
    for b, c, ds, dt in [*FREE, (3, 1, 4, 2)]:
        make = seeded((b, c, ds, dt, 1))
        student = {"student_image": units(make, b, ds), "student_classes": units(make, c, ds)}
        teacher = {"teacher_image": units(make, b, dt), "teacher_classes": units(make, c, dt)}
        label = f"B{b}-C{c}-D{ds}-{dt}"
        scales = {"student_scale": 3.0}, {"teacher_scale": 6.0}
        biased = {**scales[0], "student_bias": -1.0}, {**scales[1], "teacher_bias": -3.0}
        for number, options in enumerate(({}, {"temperature": 4.0}, {"top_k": 2}, {"top_k": 256, "temperature": 0.5})):
            yield Case("class_text_kl", f"{label}-{number}", student, teacher, *biased, options)
        for off in (False, True):
            yield Case("class_text_bce", f"{label}-{off}", student, teacher, *biased, {"subtract_entropy": off})
        for name in ("class_text_dkd", "class_text_dist", "class_text_standardized_kl"):
            yield Case(name, label, student, teacher, *scales, {"temperature": 2.0})
        labels = torch.arange(b) % c
        pair = {"image": student["student_image"], "classes": student["student_classes"]}
        numbers = {"scale": 3.0, "bias": -1.0}
        yield Case("class_text_ce", label, pair, student_numbers=numbers, options={"labels": labels})
    # Images that weigh differently, one of them nothing.
    weighed = {"sample_weight": torch.arange(b, dtype=torch.float64) / 2}
    options = {"labels": labels, **weighed}
    yield Case("class_text_ce", "weighed", pair, student_numbers=numbers, options=options)
    yield Case("class_text_kl", "weighed", student, teacher, *biased, {"top_k": 2, **weighed})
    for off in (False, True):
        yield Case("class_text_bce", f"weighed-{off}", student, teacher, *biased, {"subtract_entropy": off, **weighed})
    for name in ("class_text_dkd", "class_text_standardized_kl"):
        yield Case(name, "weighed", student, teacher, *scales, {"temperature": 2.0, **weighed})


def raw_logits() -> Iterator[Case]:
    """(student, teacher): logits."""
    for b, c in ((1, 1), (1, 4), (4, 1), (3, 5), (5, 3)):
        make = seeded((b, c, 3))
        student, teacher = {"student": raw(make, b, c)}, {"teacher": raw(make, b, c)}
        label = f"B{b}-C{c}"
        for name in ("dkd", "dist", "standardized_kl"):
            yield Case(name, label, student, teacher)
            yield Case(name, f"{label}-T3", student, teacher, options={"temperature": 3.0})
        weights = {"alpha": 0.5, "beta": 2.0, "labels": torch.arange(b) % c}
        yield Case("dkd", f"{label}-labels", student, teacher, options=weights)
        confidence = {"sample_weight": torch.rand(b, generator=make, dtype=torch.float64)}
        yield Case("dkd", f"{label}-weighed", student, teacher, options={**weights, **confidence})
        yield Case("standardized_kl", f"{label}-weighed", student, teacher, options=confidence)
        yield Case("dist", f"{label}-weights", student, teacher, options={"beta": 0.5, "gamma": 3.0})


def several_teachers() -> Iterator[Case]:
    """(student_image, student_text or student_classes, teachers)."""
    for b, c, d, _ in FREE[1:]:
        make = seeded((b, c, d, 5))
        known = torch.arange(b) % 2 == 0
        confidence = torch.rand(b, generator=make, dtype=torch.float64) + 0.1
        mixes = {
            "one": [{}],
            "two": [{"weight": 0.5}, {"bias": -2.0}],
            "masked": [{"known": known}, {"weight": confidence}],
            "gaps": [{"known": known}, {"known": known}],
        }
        for mix, kinds in mixes.items():
            widths = (d + 1, d + 3)
            ensemble_losses = (("in_batch_ensemble", "student_text", b), ("class_text_ensemble", "student_classes", c))
            for name, key, count in ensemble_losses:
                student = {"student_image": units(make, b, d), key: units(make, count, d)}
                teachers = [
                    Teacher(units(make, b, width), units(make, count, width), scale=3.0 + 2 * number, **kind)
                    for number, (width, kind) in enumerate(zip(widths, kinds, strict=False))
                ]
                options = {"teachers": teachers, "subtract_entropy": mix == "masked"}
                yield Case(name, f"B{b}-C{c}-{mix}", student, {}, {"student_scale": 4.0}, {}, options)
                if name == "class_text_ensemble":
                    weighed = {**options, "sample_weight": torch.arange(b, dtype=torch.float64)}
                    yield Case(name, f"B{b}-C{c}-{mix}-weighed", student, {}, {"student_scale": 4.0}, {}, weighed)


CASES = [
    *own_pairs(),
    *same_inputs(),
    *both_pairs(),
    *class_texts(),
    *raw_logits(),
    *several_teachers(),
]
