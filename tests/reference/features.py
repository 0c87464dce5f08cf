"""Twins of clipette.losses.features."""

from __future__ import annotations

from reference.plain import Matrix, cos, mean, unit


def cosine(student: Matrix, teacher: Matrix) -> float:
    return mean([1 - cos(student[i], teacher[i]) for i in range(len(student))])


def mse(student: Matrix, teacher: Matrix) -> float:
    terms = []
    for i in range(len(student)):
        s, t = unit(student[i]), unit(teacher[i])
        terms.append(sum((s[k] - t[k]) ** 2 for k in range(len(s))))
    return mean(terms)
