"""Twins of clipette.losses.ensembles."""

from __future__ import annotations

from dataclasses import dataclass

from reference.plain import Matrix, Vector, cross_entropy, entropy, logits, mean, softmax, transpose


@dataclass
class PlainTeacher:
    image: Matrix
    text: Matrix
    scale: float
    bias: float = 0.0
    weight: float | list[float] = 1.0
    known: list[bool] | None = None

    def knows(self, i: int) -> bool:
        return self.known is None or self.known[i]

    def weight_of(self, i: int) -> float:
        return self.weight[i] if isinstance(self.weight, list) else self.weight


def mixed(rows: list[tuple[float, Vector]]) -> Vector | None:
    total = sum(weight for weight, _ in rows)
    if total == 0:
        return None
    return [sum(weight * p[c] for weight, p in rows) / total for c in range(len(rows[0][1]))]


def covered_mean(
    student: Matrix, targets: list[Vector | None], subtract_entropy: bool, weights: Vector | None = None
) -> float:
    terms = []
    for i, target in enumerate(targets):
        if target is not None:
            term = cross_entropy(student[i], target) - (entropy(target) if subtract_entropy else 0.0)
            terms.append(term if weights is None else weights[i] * term)
    return mean(terms) if terms else 0.0


def in_batch_ensemble(
    student_image: Matrix,
    student_text: Matrix,
    teachers: list[PlainTeacher],
    student_scale: float,
    subtract_entropy: bool = False,
) -> float:
    student = logits(student_image, student_text, student_scale)
    total = 0.0
    for backwards in (False, True):
        targets: list[Vector | None] = []
        for i in range(len(student)):
            rows = []
            for teacher in teachers:
                z = logits(teacher.image, teacher.text, teacher.scale, teacher.bias)
                z = transpose(z) if backwards else z
                if teacher.knows(i):
                    columns = [j for j in range(len(z)) if teacher.knows(j)]
                    p = softmax([z[i][j] for j in columns])
                    spread = [p[columns.index(j)] if j in columns else 0.0 for j in range(len(z))]
                    rows.append((teacher.weight_of(i), spread))
            targets.append(mixed(rows))
        total += covered_mean(transpose(student) if backwards else student, targets, subtract_entropy) / 2
    return total


def class_text_ensemble(
    student_image: Matrix,
    student_classes: Matrix,
    teachers: list[PlainTeacher],
    student_scale: float,
    student_bias: float = 0.0,
    subtract_entropy: bool = False,
    sample_weight: Vector | None = None,
) -> float:
    student = logits(student_image, student_classes, student_scale, student_bias)
    targets: list[Vector | None] = []
    for i in range(len(student)):
        rows = []
        for teacher in teachers:
            if teacher.knows(i):
                z = logits(teacher.image, teacher.text, teacher.scale, teacher.bias)
                rows.append((teacher.weight_of(i), softmax(z[i])))
        targets.append(mixed(rows))
    return covered_mean(student, targets, subtract_entropy, sample_weight)
