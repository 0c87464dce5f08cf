"""Twins of clipette.losses.relations."""

from __future__ import annotations

from reference.plain import Matrix, cos, huber, kl, length, mean, minus, softmax


def rkd_distance(student: Matrix, teacher: Matrix) -> float:
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    if not pairs:
        return 0.0

    def relative(vectors: Matrix) -> list[float]:
        distances = [length(minus(vectors[i], vectors[j])) for i, j in pairs]
        positive = [d for d in distances if d > 0]
        return [d / mean(positive) for d in distances] if positive else distances

    s, t = relative(student), relative(teacher)
    return mean([huber(s[n] - t[n]) for n in range(len(pairs))])


def rkd_angle(student: Matrix, teacher: Matrix, anchors: int | None = None) -> float:
    def angle(vectors: Matrix, i: int, j: int, k: int) -> float:
        to_i, to_k = minus(vectors[i], vectors[j]), minus(vectors[k], vectors[j])
        return cos(to_i, to_k) if length(to_i) > 0 and length(to_k) > 0 else 0.0

    count = len(student)
    terms = []
    for j in range(min(count, anchors or count)):
        for i in range(count):
            for k in range(count):
                if i != j and k != j:
                    terms.append(huber(angle(student, i, j, k) - angle(teacher, i, j, k)))
    return mean(terms) if terms else 0.0


def gram(student: Matrix, teacher: Matrix) -> float:
    terms = []
    for i in range(len(student)):
        for j in range(len(student)):
            if i != j:
                terms.append((cos(student[i], student[j]) - cos(teacher[i], teacher[j])) ** 2)
    return mean(terms) if terms else 0.0


def intra_modal_kl(student: Matrix, teacher: Matrix, student_scale: float, teacher_scale: float) -> float:
    if len(student) == 1:
        return 0.0
    terms = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        p = softmax([teacher_scale * cos(teacher[i], teacher[j]) for j in others])
        q = softmax([student_scale * cos(student[i], student[j]) for j in others])
        terms.append(kl(p, q))
    return mean(terms)
