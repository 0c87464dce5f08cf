"""General logit distillation over class texts: DKD, DIST and standardised logits.

Cheap variants of ``class_text_kl`` with the same tensors. Each comes twice: on logits [B, C] (to test, and for
classifiers without texts) and on image vectors and class texts, as recipes use it. ``sample_weight`` [B] weighs images
(``mean_rows``); DIST takes none, since its second part correlates over the images of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipette.errors import InternalError
from clipette.losses.numerics import (
    Scalar,
    both_logits,
    check_rows,
    check_temperature,
    full,
    kl_rows,
    mean_rows,
)


def dkd(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Decoupled distillation: how sure of the target, and how the rest is ranked, weighed apart.

    τ² · mean_i [α · KL(b^t_i ‖ b^s_i) + β · KL(q^t_i ‖ q^s_i)], with p = softmax(z / τ), target y,
    b = (p_y, 1 − p_y) and q = p without y, renormalised

    Shapes: student, teacher [B, C] logits; labels [B] integers, or None for the teacher's likeliest class.
    ``temperature`` τ divides both logits. The teacher receives no gradient. Range: ≥ 0. In nats.

    Raises:
        InternalError: shapes differ.
        ConfigError: temperature not positive.

    Paper: Zhao et al. (DKD), CVPR 2022, eq. 7; α = 1, β = 8, τ = 4 in its CIFAR-100 runs.
    Deviation: the teacher's likeliest class stands in for absent labels; the release forms q by −1000 on the target's
    logit, here it is left out exactly.
    """
    check_temperature(temperature)
    student, teacher = _checked(student, teacher)
    target = teacher.argmax(dim=-1) if labels is None else labels
    if target.shape != (len(student),):
        raise InternalError(f"{tuple(target.shape)} labels do not number the {len(student)} rows of dkd")
    log_student, log_teacher = (torch.log_softmax(z / temperature, dim=-1) for z in (student, teacher))
    is_target = torch.nn.functional.one_hot(target, student.shape[1]).bool()
    # The least finite number rather than −∞: exp of it is 0, and 0 · (least − least) is 0 where 0 · (∞ − ∞) is not.
    least = torch.finfo(log_student.dtype).min
    others_of_student, others_of_teacher = (z.masked_fill(is_target, least) for z in (log_student, log_teacher))
    binary_of_student, binary_of_teacher = (
        torch.stack([z[is_target], rest.logsumexp(dim=-1)], dim=-1)
        for z, rest in ((log_student, others_of_student), (log_teacher, others_of_teacher))
    )
    target_part = mean_rows(kl_rows(binary_of_student, binary_of_teacher), sample_weight)
    others_part = mean_rows(kl_rows(others_of_student, others_of_teacher), sample_weight)
    return (alpha * target_part + beta * others_part) * temperature**2


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """DIST: each image's ranking of classes, and each class's ranking of images, must correlate with the teacher's.

    τ² · {β · mean_i [1 − ρ(p^s_i·, p^t_i·)] + γ · mean_c [1 − ρ(p^s_·c, p^t_·c)]},  p = softmax(z / τ), ρ Pearson's

    Shapes: student, teacher [B, C] logits. ``temperature`` τ divides both. The teacher receives no gradient.
    Range: 0 to 2(β + γ)τ². The first part is 0 at C = 1, the second at B = 1, where a correlation has no meaning.

    Raises:
        InternalError: shapes differ.
        ConfigError: temperature not positive.

    Paper: Huang et al. (DIST), NeurIPS 2022, eq. 9; β = γ = 1, τ = 1.
    Deviation: the cases B = 1 and C = 1. As in the release, 1e-8 stands beside the product of norms: a class that both
    models find unlikely counts as uncorrelated, without a gradient.
    """
    check_temperature(temperature)
    student, teacher = _checked(student, teacher)
    of_student, of_teacher = (torch.softmax(z / temperature, dim=-1) for z in (student, teacher))
    between = _correlation_distance(of_student, of_teacher)
    within = _correlation_distance(of_student.T, of_teacher.T)
    return (beta * between + gamma * within) * temperature**2


def standardized_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, sample_weight: Tensor | None = None
) -> Tensor:
    """KL between standardised logits: the student matches the teacher's relations, not its range.

    τ² · mean_i KL(softmax(ẑ^t_i / τ) ‖ softmax(ẑ^s_i / τ)),  ẑ = (z − mean_c z) / std_c z

    Shapes: student, teacher [B, C] logits; scales and biases cancel. ``temperature`` τ divides both.
    The teacher receives no gradient. Range: ≥ 0; 0 at C = 1. In nats.

    Raises:
        InternalError: shapes differ.
        ConfigError: temperature not positive.

    Paper: Sun et al. (logit standardization), CVPR 2024, algorithm 1; τ = 2 and weight 9 in its runs.
    Deviation: the population's standard deviation as in the paper; its release divides by C − 1.
    """
    check_temperature(temperature)
    student, teacher = (_standardized(z) for z in _checked(student, teacher))
    return mean_rows(kl_rows(student / temperature, teacher / temperature), sample_weight) * temperature**2


def class_text_dkd(
    student_image: Tensor,
    teacher_image: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """``dkd`` on the logits of class texts; shapes, scales and errors as ``class_text_kl``."""
    student, teacher = both_logits(
        student_image,
        student_classes,
        teacher_image,
        teacher_classes,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    options = {"alpha": alpha, "beta": beta, "temperature": temperature}
    return dkd(student, teacher, labels=labels, sample_weight=sample_weight, **options)


def class_text_dist(
    student_image: Tensor,
    teacher_image: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """``dist`` on the logits of class texts; shapes, scales and errors as ``class_text_kl``."""
    student, teacher = both_logits(
        student_image,
        student_classes,
        teacher_image,
        teacher_classes,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    return dist(student, teacher, beta=beta, gamma=gamma, temperature=temperature)


def class_text_standardized_kl(
    student_image: Tensor,
    teacher_image: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    *,
    student_scale: Scalar = 1.0,
    teacher_scale: Scalar = 1.0,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """``standardized_kl`` on the logits of class texts; shapes and errors as ``class_text_kl``; scales cancel."""
    student, teacher = both_logits(
        student_image,
        student_classes,
        teacher_image,
        teacher_classes,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    return standardized_kl(student, teacher, temperature=temperature, sample_weight=sample_weight)


def _checked(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both [B, C] in float32 at least, the teacher detached."""
    check_rows(student=student, teacher=teacher)
    if student.shape != teacher.shape:
        raise InternalError(
            f"logits of {student.shape[1]} classes cannot be matched with logits of {teacher.shape[1]}: "
            "both models must rank the same class texts"
        )
    return full(student), full(teacher.detach())


def _standardized(logits: Tensor) -> Tensor:
    """Rows of mean 0 and population standard deviation 1 (0 where all logits are equal)."""
    deviation, mean = torch.std_mean(logits, dim=-1, keepdim=True, correction=0)
    return (logits - mean) / (deviation + 1e-7)


def _correlation_distance(left: Tensor, right: Tensor) -> Tensor:
    """Mean over rows of 1 − Pearson's correlation; 0 for rows of one element."""
    if left.shape[1] == 1:
        return (left * 0).sum()
    left, right = (rows - rows.mean(dim=-1, keepdim=True) for rows in (left, right))
    norms = torch.linalg.vector_norm(left, dim=-1) * torch.linalg.vector_norm(right, dim=-1)
    return torch.mean(1 - (left * right).sum(dim=-1) / (norms + 1e-8))
