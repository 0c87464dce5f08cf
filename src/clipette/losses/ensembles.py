"""Several teachers at once: their probabilities are averaged, not their logits or vectors.

Teachers may differ in width, scale and kind, and each may know only part of the batch: a pair that a teacher never
stored is left out of that teacher's rows and columns, and the others carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipette.errors import ConfigError, InternalError
from clipette.losses.numerics import (
    Scalar,
    check_rows,
    cross_entropy_rows,
    entropy_rows,
    pair_logits,
    teacher_logits,
)


@dataclass(frozen=True, slots=True)
class Teacher:
    """One teacher's share of a batch.

    image [B, D_k] and text [N, D_k] are unit vectors (texts: the batch's captions or the class texts); ``scale``
    multiplies cosines (100 for MobileCLIP's first teachers); ``weight`` is a number or [B] per image (confidence);
    ``known`` [B] is false where this teacher has nothing stored for the image.
    """

    image: Tensor
    text: Tensor
    scale: Scalar
    bias: Scalar = 0.0
    weight: Scalar = 1.0
    known: Tensor | None = None


def average_probabilities(
    probabilities: Sequence[Tensor], weights: Sequence[Scalar], known: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Weighted mean of K teachers' distributions over those teachers that know the row.

    p_i = Σ_k w_ki m_ki p_ki / Σ_k w_ki m_ki

    Shapes: probabilities K × [B, C]; weights K × (number or [B]); known K × (None or [B] booleans).
    Returns the mean [B, C] (zeros where no teacher knows the row) and [B] booleans, true where one does.
    """
    shares = []
    for matrix, weight, mask in zip(probabilities, weights, known, strict=True):
        share = torch.ones(len(matrix), device=matrix.device, dtype=matrix.dtype) * weight
        shares.append(share if mask is None else share * mask)
    stacked = torch.stack(shares)
    total = stacked.sum(dim=0)
    mixed = (stacked[:, :, None] * torch.stack(list(probabilities))).sum(dim=0)
    return mixed / torch.where(total > 0, total, 1.0)[:, None], total > 0


def in_batch_ensemble(
    student_image: Tensor,
    student_text: Tensor,
    teachers: Sequence[Teacher],
    *,
    student_scale: Scalar,
    subtract_entropy: bool = False,
) -> Tensor:
    """MobileCLIP: cross-entropy against the mean of several teachers' softmaxes over the batch, both ways.

    ½ Σ over both directions of mean_i CE(mean_k softmax(z^k_i·), z^s_i·),  z = scale · X · Yᵀ + bias

    Shapes: student_image, student_text [B, D], unit length; teachers as ``Teacher``, pairs in the same order.
    Scales multiply cosines, each teacher's own. Teachers receive no gradient. A row that no teacher knows has no
    term; a teacher's softmax runs over the pairs it knows.
    Range: ≥ the entropy of the mean distribution; ``subtract_entropy`` takes that constant off (same gradient).

    Raises:
        ConfigError: no teacher.
        ModelError: an image's and a text's widths differ within a model.
        InternalError: counts differ.

    Paper: Vasu et al. (MobileCLIP), CVPR 2024, L_distill; two teachers of scale 100 (version 2: 70 and 60).
    Deviation: per-teacher masks and weights are ours. Its w0 · CLIP + w1 · this belongs to the recipe's weights.
    """
    _check_teachers(teachers)
    check_rows(student_image=student_image, student_text=student_text, teacher_image=teachers[0].image)
    student = pair_logits(student_image, student_text, scale=student_scale)
    logits = []
    for teacher in teachers:
        check_rows(student_image=student_image, teacher_image=teacher.image, teacher_text=teacher.text)
        logits.append(teacher_logits(teacher.image, teacher.text, scale=teacher.scale, bias=teacher.bias))
    known = [teacher.known for teacher in teachers]
    weights = [teacher.weight for teacher in teachers]
    rows = average_probabilities(
        [_masked_softmax(z, mask) for z, mask in zip(logits, known, strict=True)], weights, known
    )
    columns = average_probabilities(
        [_masked_softmax(z.T, mask) for z, mask in zip(logits, known, strict=True)], weights, known
    )
    forth = _covered_mean(student, *rows, subtract_entropy=subtract_entropy)
    back = _covered_mean(student.T, *columns, subtract_entropy=subtract_entropy)
    return (forth + back) / 2


def class_text_ensemble(
    student_image: Tensor,
    student_classes: Tensor,
    teachers: Sequence[Teacher],
    *,
    student_scale: Scalar,
    student_bias: Scalar = 0.0,
    subtract_entropy: bool = False,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy against the mean of several teachers' distributions over class texts.

    mean_i CE(mean_k softmax(scale_k · t^k_i · W_kᵀ + bias_k), scale · s_i · Wᵀ + bias)

    Shapes: student_image [B, D], student_classes [C, D], unit length; teachers as ``Teacher`` with text = the class
    texts [C, D_k]. Scales multiply cosines. Teachers receive no gradient. ``sample_weight`` [B] weighs images.
    Range: ≥ the entropy of the mean distribution; ``subtract_entropy`` takes that constant off (same gradient).

    Raises:
        ConfigError: no teacher.
        ModelError: an image's and its classes' widths differ within a model.
        InternalError: counts differ.

    Paper: MobileCLIP's averaging (CVPR 2024) applied to PromptKD's class texts (CVPR 2024).
    Deviation: the combination is ours.
    """
    _check_teachers(teachers)
    probabilities = []
    for teacher in teachers:
        check_rows(student_image=student_image, teacher_image=teacher.image)
        check_rows(student_classes=student_classes, teacher_classes=teacher.text)
        logits = teacher_logits(teacher.image, teacher.text, scale=teacher.scale, bias=teacher.bias)
        probabilities.append(logits.softmax(dim=-1))
    mixed, covered = average_probabilities(
        probabilities, [teacher.weight for teacher in teachers], [teacher.known for teacher in teachers]
    )
    student = pair_logits(student_image, student_classes, scale=student_scale, bias=student_bias)
    return _covered_mean(student, mixed, covered, subtract_entropy=subtract_entropy, sample_weight=sample_weight)


def _check_teachers(teachers: Sequence[Teacher]) -> None:
    if not teachers:
        raise ConfigError("an ensemble loss needs at least one teacher: name them in the recipe")
    for number, teacher in enumerate(teachers):
        if teacher.known is not None and teacher.known.shape != (len(teacher.image),):
            raise InternalError(
                f"known {tuple(teacher.known.shape)} of teacher {number} does not match its {len(teacher.image)} images"
            )


def _masked_softmax(logits: Tensor, known: Tensor | None) -> Tensor:
    """Softmax of each row over the known columns; the least finite number keeps a row without any finite."""
    if known is not None:
        logits = logits.masked_fill(~known[None, :], torch.finfo(logits.dtype).min)
    return logits.softmax(dim=-1)


def _covered_mean(
    student: Tensor,
    target: Tensor,
    covered: Tensor,
    *,
    subtract_entropy: bool,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy averaged over the rows that have a target."""
    loss = cross_entropy_rows(student, target)
    if subtract_entropy:
        loss = loss - entropy_rows(target)
    if sample_weight is not None:
        loss = loss * sample_weight
    return (loss * covered).sum() / covered.sum().clamp(min=1)
