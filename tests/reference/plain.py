"""Arithmetic on lists of floats that the twins share."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def dot(a: Vector, b: Vector) -> float:
    total = 0.0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


def minus(a: Vector, b: Vector) -> Vector:
    return [a[k] - b[k] for k in range(len(a))]


def length(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def unit(a: Vector) -> Vector:
    return [value / length(a) for value in a]


def cos(a: Vector, b: Vector) -> float:
    return dot(a, b) / (length(a) * length(b))


def softmax(z: Vector) -> Vector:
    exponentials = [math.exp(value) for value in z]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(z: Vector, target: Vector) -> float:
    p = softmax(z)
    return -sum(target[c] * math.log(p[c]) for c in range(len(z)) if target[c] > 0)


def kl(p: Vector, q: Vector) -> float:
    return sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)))


def entropy(p: Vector) -> float:
    return -sum(value * math.log(value) for value in p if value > 0)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def logits(rows: Matrix, columns: Matrix, scale: float, bias: float = 0.0) -> Matrix:
    return [[scale * dot(row, column) + bias for column in columns] for row in rows]


def transpose(matrix: Matrix) -> Matrix:
    return [[row[c] for row in matrix] for c in range(len(matrix[0]))]


def divided(matrix: Matrix, by: float) -> Matrix:
    return [[value / by for value in row] for row in matrix]


def mean(values: Vector) -> float:
    return sum(values) / len(values)


def weighted_mean(values: Vector, weights: Vector | None) -> float:
    total = 0.0
    for i in range(len(values)):
        total += values[i] * (1.0 if weights is None else weights[i])
    return total / len(values)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5
