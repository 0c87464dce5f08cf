"""Twins of clipette.losses.decoupled."""

from __future__ import annotations

import math

from reference.plain import Matrix, Vector, divided, kl, logits, mean, softmax, transpose, weighted_mean


def dkd(
    student: Matrix,
    teacher: Matrix,
    labels: list[int] | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
    sample_weight: Vector | None = None,
) -> float:
    terms = []
    for i in range(len(student)):
        s = softmax([value / temperature for value in student[i]])
        t = softmax([value / temperature for value in teacher[i]])
        y = t.index(max(t)) if labels is None else labels[i]
        rest = [c for c in range(len(s)) if c != y]
        term = 0.0
        if rest:
            s_rest, t_rest = sum(s[c] for c in rest), sum(t[c] for c in rest)
            term += alpha * kl([t[y], t_rest], [s[y], s_rest])
            term += beta * kl([t[c] / t_rest for c in rest], [s[c] / s_rest for c in rest])
        terms.append(temperature**2 * term)
    return weighted_mean(terms, sample_weight)


def pearson(a: Vector, b: Vector) -> float:
    a_mean, b_mean = mean(a), mean(b)
    covariance = sum((a[k] - a_mean) * (b[k] - b_mean) for k in range(len(a)))
    spread = math.sqrt(sum((x - a_mean) ** 2 for x in a)) * math.sqrt(sum((x - b_mean) ** 2 for x in b))
    return covariance / (spread + 1e-8)


def dist(student: Matrix, teacher: Matrix, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> float:
    s = [softmax(row) for row in divided(student, temperature)]
    t = [softmax(row) for row in divided(teacher, temperature)]
    total = 0.0
    if len(s[0]) > 1:
        total += beta * mean([1 - pearson(s[i], t[i]) for i in range(len(s))])
    if len(s) > 1:
        s, t = transpose(s), transpose(t)
        total += gamma * mean([1 - pearson(s[c], t[c]) for c in range(len(s))])
    return temperature**2 * total


def standardized_kl(
    student: Matrix, teacher: Matrix, temperature: float = 1.0, sample_weight: Vector | None = None
) -> float:
    def standardized(z: Vector) -> Vector:
        deviation = math.sqrt(mean([(value - mean(z)) ** 2 for value in z]))
        return [(value - mean(z)) / (deviation + 1e-7) / temperature for value in z]

    terms = []
    for i in range(len(student)):
        terms.append(temperature**2 * kl(softmax(standardized(teacher[i])), softmax(standardized(student[i]))))
    return weighted_mean(terms, sample_weight)


def class_text_dkd(
    student_image: Matrix,
    teacher_image: Matrix,
    student_classes: Matrix,
    teacher_classes: Matrix,
    student_scale: float,
    teacher_scale: float,
    **options: float,
) -> float:
    student = logits(student_image, student_classes, student_scale)
    teacher = logits(teacher_image, teacher_classes, teacher_scale)
    return dkd(student, teacher, **options)


def class_text_dist(
    student_image: Matrix,
    teacher_image: Matrix,
    student_classes: Matrix,
    teacher_classes: Matrix,
    student_scale: float,
    teacher_scale: float,
    **options: float,
) -> float:
    student = logits(student_image, student_classes, student_scale)
    teacher = logits(teacher_image, teacher_classes, teacher_scale)
    return dist(student, teacher, **options)


def class_text_standardized_kl(
    student_image: Matrix,
    teacher_image: Matrix,
    student_classes: Matrix,
    teacher_classes: Matrix,
    student_scale: float,
    teacher_scale: float,
    **options: float,
) -> float:
    student = logits(student_image, student_classes, student_scale)
    teacher = logits(teacher_image, teacher_classes, teacher_scale)
    return standardized_kl(student, teacher, **options)
