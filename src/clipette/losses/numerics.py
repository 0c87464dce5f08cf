"""What every loss shares: products and softmaxes in float32, detached teachers, shapes checked in words."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from clipette.errors import ConfigError, InternalError, ModelError

Scalar: TypeAlias = Tensor | float
"""A scale or bias: a number, or a 0-dimensional tensor, which then receives its gradient."""


def full(values: Tensor) -> Tensor:
    """The tensor in float32 where it was float16 or bfloat16; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def fixed(value: Scalar) -> Scalar:
    """A teacher's scale or bias, cut from the graph."""
    return value.detach() if isinstance(value, Tensor) else value


def similarity(rows: Tensor, columns: Tensor) -> Tensor:
    """All inner products, [B, D] and [N, D] to [B, N], never in half precision.

    Autocast is switched off here: at a scale of 100, bfloat16's 8 bits would move each logit by up to 0.4.

    Raises:
        ModelError: where the widths differ.
    """
    if rows.shape[-1] != columns.shape[-1]:
        raise ModelError(
            f"vectors of width {rows.shape[-1]} cannot be compared with vectors of width {columns.shape[-1]}: "
            "give the student an output of the other's width (a projector or an adapter), "
            "or choose a loss that compares logits or relations"
        )
    with torch.autocast(device_type=rows.device.type, enabled=False):
        return full(rows) @ full(columns).T


def pair_logits(image: Tensor, text: Tensor, *, scale: Scalar, bias: Scalar = 0.0) -> Tensor:
    """Logits scale · image · textᵀ + bias, [B, D] and [N, D] to [B, N], in float32 (float64 stays)."""
    return similarity(image, text) * scale + bias


def teacher_logits(image: Tensor, text: Tensor, *, scale: Scalar, bias: Scalar = 0.0) -> Tensor:
    """As ``pair_logits``, with no path for a gradient."""
    return pair_logits(image.detach(), text.detach(), scale=fixed(scale), bias=fixed(bias))


def both_logits(
    student_rows: Tensor,
    student_columns: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    *,
    student_affine: tuple[Scalar, Scalar],
    teacher_affine: tuple[Scalar, Scalar],
) -> tuple[Tensor, Tensor]:
    """The student's and the detached teacher's logits [B, N] of the same rows and columns; affine = (scale, bias).

    Raises:
        ModelError: widths differ within a model.
        InternalError: counts differ between the models.
    """
    check_rows(student_rows=student_rows, teacher_rows=teacher_rows)
    check_rows(student_columns=student_columns, teacher_columns=teacher_columns)
    student = pair_logits(student_rows, student_columns, scale=student_affine[0], bias=student_affine[1])
    teacher = teacher_logits(teacher_rows, teacher_columns, scale=teacher_affine[0], bias=teacher_affine[1])
    return student, teacher


def unit(vectors: Tensor) -> Tensor:
    """[B, D] scaled to unit length in float32: half-precision vectors are unit only to three digits."""
    return torch.nn.functional.normalize(full(vectors), dim=-1)


def check_rows(**tensors: Tensor) -> None:
    """Each tensor is [B, ·] with the same B ≥ 1.

    Raises:
        InternalError: naming the tensors and their shapes.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()):
        raise InternalError(f"a loss expects matrices [rows, width], got {shapes}")
    counts = {shape[0] for shape in shapes.values()}
    if len(counts) != 1 or 0 in counts:
        raise InternalError(f"a loss expects the same number of rows, at least one, in each tensor, got {shapes}")


def check_temperature(temperature: float) -> None:
    """A softmax temperature is positive.

    Raises:
        ConfigError: where it is not.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}: 1 leaves the logits as they are")


def kl_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each row, [B, C] logits to [B], in nats, ≥ 0."""
    log_teacher = torch.log_softmax(teacher, dim=-1)
    log_student = torch.log_softmax(student, dim=-1)
    return torch.sum(log_teacher.exp() * (log_teacher - log_student), dim=-1)


def mean_rows(rows: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Mean of one value per image [B]; with ``sample_weight`` [B], (1/B) Σ_i w_i · row_i.

    Not divided by Σ w_i: weights of mean 1 over the data then ask the same of an image whatever batch it is in.

    Raises:
        InternalError: the weights do not number the images.
    """
    if sample_weight is None:
        return rows.mean()
    if sample_weight.shape != rows.shape:
        raise InternalError(
            f"{tuple(sample_weight.shape)} sample weights do not number the {len(rows)} images of a loss"
        )
    return (rows * sample_weight).mean()


def cross_entropy_rows(student: Tensor, target: Tensor) -> Tensor:
    """−Σ_c target_c · log softmax(student)_c of each row: [B, C] logits and probabilities to [B], in nats."""
    return -(target * torch.log_softmax(student, dim=-1)).sum(dim=-1)


def entropy_rows(target: Tensor) -> Tensor:
    """Entropy −Σ_c p_c · log p_c of each row of probabilities, [B, C] to [B], in nats."""
    return torch.sum(torch.special.entr(target), dim=-1)
