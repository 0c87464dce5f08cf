"""Twins of clipette.losses.logits."""

from __future__ import annotations

import math

from reference.plain import (
    Matrix,
    Vector,
    cross_entropy,
    divided,
    entropy,
    kl,
    logits,
    mean,
    sigmoid,
    softmax,
    transpose,
    weighted_mean,
)


def class_text_ce(
    image: Matrix,
    classes: Matrix,
    labels: list[int],
    scale: float,
    bias: float = 0.0,
    sample_weight: Vector | None = None,
) -> float:
    z = logits(image, classes, scale, bias)
    return weighted_mean([-math.log(softmax(z[i])[labels[i]]) for i in range(len(z))], sample_weight)


def class_text_kl(
    student_image: Matrix,
    teacher_image: Matrix,
    student_classes: Matrix,
    teacher_classes: Matrix,
    student_scale: float,
    teacher_scale: float,
    student_bias: float = 0.0,
    teacher_bias: float = 0.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    sample_weight: Vector | None = None,
) -> float:
    student = logits(student_image, student_classes, student_scale, student_bias)
    teacher = logits(teacher_image, teacher_classes, teacher_scale, teacher_bias)
    terms = []
    for i in range(len(student)):
        kept = sorted(range(len(teacher[i])), key=lambda c: -teacher[i][c])[:top_k]
        p = softmax([teacher[i][c] / temperature for c in kept])
        q = softmax([student[i][c] / temperature for c in kept])
        terms.append(temperature**2 * kl(p, q))
    return weighted_mean(terms, sample_weight)


def sigmoid_match(
    student: Matrix, teacher: Matrix, subtract_entropy: bool, sample_weight: Vector | None = None
) -> float:
    terms = []
    for i in range(len(student)):
        term = 0.0
        for j in range(len(student[i])):
            p, q = sigmoid(teacher[i][j]), sigmoid(student[i][j])
            term -= p * math.log(q) + (1 - p) * math.log(1 - q)
            if subtract_entropy:
                term -= entropy([p, 1 - p])
        terms.append(term)
    return weighted_mean(terms, sample_weight)


def class_text_bce(
    student_image: Matrix,
    teacher_image: Matrix,
    student_classes: Matrix,
    teacher_classes: Matrix,
    student_scale: float,
    teacher_scale: float,
    student_bias: float = 0.0,
    teacher_bias: float = 0.0,
    subtract_entropy: bool = False,
    sample_weight: Vector | None = None,
) -> float:
    student = logits(student_image, student_classes, student_scale, student_bias)
    teacher = logits(teacher_image, teacher_classes, teacher_scale, teacher_bias)
    return sigmoid_match(student, teacher, subtract_entropy, sample_weight)


def in_batch_kl(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    student_scale: float,
    teacher_scale: float,
    student_bias: float = 0.0,
    teacher_bias: float = 0.0,
    temperature: float = 1.0,
) -> float:
    student = divided(logits(student_image, student_text, student_scale, student_bias), temperature)
    teacher = divided(logits(teacher_image, teacher_text, teacher_scale, teacher_bias), temperature)
    i2t = mean([kl(softmax(teacher[i]), softmax(student[i])) for i in range(len(student))])
    student, teacher = transpose(student), transpose(teacher)
    t2i = mean([kl(softmax(teacher[j]), softmax(student[j])) for j in range(len(student))])
    return temperature**2 * (i2t + t2i) / 2


def in_batch_bce(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    student_scale: float,
    teacher_scale: float,
    student_bias: float = 0.0,
    teacher_bias: float = 0.0,
    subtract_entropy: bool = False,
) -> float:
    student = logits(student_image, student_text, student_scale, student_bias)
    teacher = logits(teacher_image, teacher_text, teacher_scale, teacher_bias)
    return sigmoid_match(student, teacher, subtract_entropy)


def distill_clip(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    student_scale: float,
    teacher_scale: float,
    student_bias: float = 0.0,
    teacher_bias: float = 0.0,
    subtract_entropy: bool = False,
) -> float:
    student = logits(student_image, student_text, student_scale, student_bias)
    teacher = logits(teacher_image, teacher_text, teacher_scale, teacher_bias)
    total = 0.0
    for s, t in ((student, teacher), (transpose(student), transpose(teacher))):
        total += mean([cross_entropy(s[i], softmax(t[i])) for i in range(len(s))]) / 2
        if subtract_entropy:
            total -= mean([entropy(softmax(t[i])) for i in range(len(s))]) / 2
    return total


def affinity_mimicking(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    student_scale: float = 50.0,
    teacher_scale: float = 50.0,
    subtract_entropy: bool = False,
) -> float:
    return distill_clip(
        student_image,
        student_text,
        teacher_image,
        teacher_text,
        student_scale,
        teacher_scale,
        subtract_entropy=subtract_entropy,
    )
