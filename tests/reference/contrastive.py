"""Twins of clipette.losses.contrastive."""

from __future__ import annotations

import math

from reference.plain import Matrix, cross_entropy, logits, mean, sigmoid, transpose


def one_way(z: Matrix, row_ids: list[int], column_ids: list[int]) -> float:
    terms = []
    for i in range(len(z)):
        partners = [j for j in range(len(z[i])) if column_ids[j] == row_ids[i]]
        if not partners:
            continue
        target = [1 / len(partners) if j in partners else 0.0 for j in range(len(z[i]))]
        terms.append(cross_entropy(z[i], target))
    return mean(terms) if terms else 0.0


def clip_loss(
    image: Matrix,
    text: Matrix,
    scale: float,
    bias: float = 0.0,
    ids: list[int] | None = None,
    text_ids: list[int] | None = None,
) -> float:
    image_ids = list(range(len(image))) if ids is None else ids
    text_ids = image_ids if text_ids is None else text_ids
    z = logits(image, text, scale, bias)
    return (one_way(z, image_ids, text_ids) + one_way(transpose(z), text_ids, image_ids)) / 2


def siglip_loss(
    image: Matrix,
    text: Matrix,
    scale: float,
    bias: float,
    ids: list[int] | None = None,
    text_ids: list[int] | None = None,
) -> float:
    image_ids = list(range(len(image))) if ids is None else ids
    text_ids = image_ids if text_ids is None else text_ids
    z = logits(image, text, scale, bias)
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            sign = 1 if image_ids[i] == text_ids[j] else -1
            total -= math.log(sigmoid(sign * z[i][j]))
    return total / len(image)


def image_to_teacher(student: Matrix, teacher: Matrix, scale: float, ids: list[int] | None = None) -> float:
    return clip_loss(student, teacher, scale, ids=ids)


def interactive_contrastive(
    student_image: Matrix,
    student_text: Matrix,
    teacher_image: Matrix,
    teacher_text: Matrix,
    scale: float,
    ids: list[int] | None = None,
    text_ids: list[int] | None = None,
) -> float:
    image_ids = list(range(len(student_image))) if ids is None else ids
    text_ids = image_ids if text_ids is None else text_ids
    from_images = one_way(logits(student_image, teacher_text, scale), image_ids, text_ids)
    from_texts = one_way(logits(student_text, teacher_image, scale), text_ids, image_ids)
    return (from_images + from_texts) / 2
