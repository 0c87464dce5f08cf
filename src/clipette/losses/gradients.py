"""Gradient distillation: the student's features must be pulled where the teacher's are pulled."""

from __future__ import annotations

import torch
from torch import Tensor

from clipette.errors import ModelError
from clipette.losses.numerics import Scalar, check_rows, fixed, full, pair_logits


def gradient_distillation(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
) -> Tensor:
    """GD: squared distance between the gradients of the two models' own InfoNCE by their own features.

    Σ over the four gradients g of mean_i ‖g^s_i − g^t_i‖², where for images as anchors
    g(X) = (softmax(σ X Yᵀ) − I) Y and g(Y) = (softmax(σ X Yᵀ) − I)ᵀ X, and the same with texts as anchors

    Shapes: images and texts [B, D], unit length, all of one width. ``scale`` σ multiplies cosines, each model's own.
    The teacher receives no gradient; the student's is of second order. Range: ≥ 0; 0 at B = 1.

    Raises:
        ModelError: widths differ between teacher and student.
        InternalError: counts differ.

    Paper: Yang et al. (CLIP-KD), CVPR 2024, L_GD (weight 1e8 on an element mean).
    Deviation: gradients of each pair's own term, without the common factors σ and 1/B, and a sum over D, so that the
    size depends on neither B, D nor σ. The release divides by the scale where the paper divides by the temperature,
    so its softmax is nearly uniform; here it is the model's own. Its weight 1e8 does not carry over: start from 1.
    """
    check_rows(
        student_image=student_image, student_text=student_text, teacher_image=teacher_image, teacher_text=teacher_text
    )
    if student_image.shape[1] != teacher_image.shape[1]:
        raise ModelError(
            f"the student's vectors are {student_image.shape[1]} wide and the teacher's {teacher_image.shape[1]}: "
            "gradients can be compared at one width only; add a projector, or leave this loss out"
        )
    of_student = _gradients(student_image, student_text, student_scale)
    of_teacher = _gradients(teacher_image.detach(), teacher_text.detach(), fixed(teacher_scale))
    terms = [(s - t).square().sum(dim=-1).mean() for s, t in zip(of_student, of_teacher, strict=True)]
    return torch.stack(terms).sum()


def _gradients(image: Tensor, text: Tensor, scale: Scalar) -> list[Tensor]:
    """The four matrices [B, D]: anchor and candidate, with images and then texts as anchors."""
    found = []
    for anchor, candidate in ((image, text), (text, image)):
        excess = pair_logits(anchor, candidate, scale=scale).softmax(dim=-1)
        excess = excess - torch.eye(len(anchor), device=excess.device, dtype=excess.dtype)
        with torch.autocast(device_type=anchor.device.type, enabled=False):
            found += [excess @ full(candidate), excess.T @ full(anchor)]
    return found
