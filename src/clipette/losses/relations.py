"""Relational losses: the student must keep the teacher's geometry among the images (or texts) of a batch.

They compare vectors of one model with each other, so the two models' widths never meet and no adapter is needed.
Call once for images and once for texts. Each is a mean over pairs (or triples) and 0, with gradient 0, where the
batch holds too few vectors to have any.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.errors import ConfigError
from clipette.losses.numerics import Scalar, check_rows, fixed, full, kl_rows, similarity, unit


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The batch's pairwise distances, each model's relative to their own mean, must agree.

    mean_{i≠j} huber(d^s_ij / μ^s − d^t_ij / μ^t),  d_ij = ‖x_i − x_j‖,  μ = mean of the d_ij that are not 0

    Shapes: student [B, Ds], teacher [B, Dt]; any length, since distances are relative. No scale, no temperature;
    Huber's threshold is 1. The teacher receives no gradient. Range: ≥ 0; 0 at B = 1.

    Raises:
        InternalError: counts differ.

    Paper: Park et al. (RKD), CVPR 2019, L_RKD-D; weight 25 in its metric-learning runs.
    Deviation: the release averages over all B² entries, its zero diagonal included; here over the B(B−1) pairs.
    """
    check_rows(student=student, teacher=teacher)
    of_student, of_teacher = _relative_distances(full(student)), _relative_distances(full(teacher.detach()))
    total = F.huber_loss(of_student, of_teacher, reduction="sum")
    return total / max(len(student) * (len(student) - 1), 1)


def rkd_angle(student: Tensor, teacher: Tensor, *, anchors: int | None = None) -> Tensor:
    """The angles of all triangles in the batch must agree.

    mean_{i≠j, k≠j} huber(cos∠^s_ijk − cos∠^t_ijk),  cos∠_ijk = cos(x_i − x_j, x_k − x_j)

    Shapes: student [B, Ds], teacher [B, Dt]; any length. No scale, no temperature; Huber's threshold is 1.
    ``anchors``: only the first so many vectors serve as the vertex j: memory is anchors · B · (B + D) numbers, and
    all B of a large batch may not fit; in a shuffled batch the mean keeps its expectation.
    The teacher receives no gradient. Range: ≥ 0; 0 at B = 1.

    Raises:
        InternalError: counts differ.
        ConfigError: anchors not positive.

    Paper: Park et al. (RKD), CVPR 2019, L_RKD-A; weight 50 in its metric-learning runs.
    Deviation: the release averages over all B³ entries, those with i = j or k = j (zero) included; here they are left
    out.
    """
    check_rows(student=student, teacher=teacher)
    if anchors is not None and anchors < 1:
        raise ConfigError(f"anchors must be at least 1, got {anchors}: leave it out to use the whole batch")
    vertices = min(len(student), anchors or len(student))
    of_student, of_teacher = _angles(full(student), vertices), _angles(full(teacher.detach()), vertices)
    total = F.huber_loss(of_student, of_teacher, reduction="sum")
    return total / max(vertices * (len(student) - 1) ** 2, 1)


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """The batch's pairwise cosines must agree.

    mean_{i≠j} (cos(s_i, s_j) − cos(t_i, t_j))²

    Shapes: student [B, Ds], teacher [B, Dt], of any length (normalised here). No scale, no temperature.
    The teacher receives no gradient. Range: 0 to 4; 0 at B = 1.

    Raises:
        InternalError: counts differ.

    Paper: Tung and Mori (similarity-preserving distillation), ICCV 2019, eq. 4, in the form of a Gram matrix of unit
    vectors.
    Deviation: cosines rather than the paper's row-normalised products, and a mean over the B(B−1) pairs rather than
    1/B² over all entries: the diagonal is 1 for both.
    """
    check_rows(student=student, teacher=teacher)
    units_of_student, units_of_teacher = unit(student), unit(teacher.detach())
    difference = similarity(units_of_student, units_of_student) - similarity(units_of_teacher, units_of_teacher)
    total = _off_diagonal(difference).square().sum()
    return total / max(len(student) * (len(student) - 1), 1)


def intra_modal_kl(student: Tensor, teacher: Tensor, *, student_scale: Scalar, teacher_scale: Scalar) -> Tensor:
    """Each image's distribution over the batch's other images (or text's over texts) must be the teacher's.

    mean_i KL(softmax_{j≠i}(σ_t · cos(t_i, t_j)) ‖ softmax_{j≠i}(σ_s · cos(s_i, s_j)))

    Shapes: student [B, Ds], teacher [B, Dt], of any length (normalised here). The scales σ multiply cosines: nearer
    neighbours weigh more the larger they are. The teacher receives no gradient.
    Range: ≥ 0; 0 at B ≤ 2, where there is no choice. In nats.

    Raises:
        InternalError: counts differ.

    Paper: the intra-modal similarity matching of relational CLIP distillation; Fang et al. (SEED), ICLR 2021, with
    the batch in place of its queue.
    Deviation: the vector itself is left out of its own neighbourhood.
    """
    check_rows(student=student, teacher=teacher)
    units_of_student, units_of_teacher = unit(student), unit(teacher.detach())
    if len(student) == 1:
        return (units_of_student * 0).sum()
    of_student = _off_diagonal(similarity(units_of_student, units_of_student)) * student_scale
    of_teacher = _off_diagonal(similarity(units_of_teacher, units_of_teacher)) * fixed(teacher_scale)
    return kl_rows(of_student, of_teacher).mean()


def clip_rd(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    scale: Scalar,
    vertical: float = 1.0,
    cross: float = 1.0,
    held_image: Tensor | None = None,
    held_text: Tensor | None = None,
    held_scale: Scalar | None = None,
) -> Tensor:
    """How each student vector sees the teacher's of the batch must be alike for images and texts, and across both.

    V^I = σ·s^img t^imgᵀ, V^T = σ·s^txt t^txtᵀ, X = σ·s^img t^txtᵀ, Y = σ·s^txt t^imgᵀ; a bar: held still (no gradient);
    K(A‖B) and C(B): the mean over rows and columns of KL(softmax A ‖ softmax B), and of CE(B, diagonal).
    vertical · [K(V̄^T ‖ V^I) + C(V^I) + C(V^T)] + cross · ½ [K(X̄ ‖ Y) + K(Ȳ ‖ X)]

    Shapes: all [B, D] of one width, unit length; row i of each belongs to one pair. ``scale`` multiplies cosines.
    ``held_*``: what is held still, where that is not the student itself. The teacher receives no gradient.
    Range: ≥ 0; 0 at B = 1. In nats.

    Raises:
        ModelError: widths differ.
        InternalError: counts differ.

    Paper: Chung et al. (CLIP-RD), arXiv 2603.25383, 2026: VRD (with its contrastive terms) and XRD, read from the
    release; its HRD, ICL and FD are ``in_batch_kl``, ``interactive_contrastive`` and ``mse``.
    Deviation: one scale, exponentiated; the release learns three, of which the logarithm multiplies.
    """
    check_rows(student_image=student_image, teacher_image=teacher_image)
    check_rows(student_text=student_text, teacher_text=teacher_text, student_image=student_image)
    still_image = (student_image if held_image is None else held_image).detach()
    still_text = (student_text if held_text is None else held_text).detach()
    still_scale = fixed(scale if held_scale is None else held_scale)
    images, texts = teacher_image.detach(), teacher_text.detach()
    of_images, of_texts = similarity(student_image, images) * scale, similarity(student_text, texts) * scale
    x, y = similarity(student_image, texts) * scale, similarity(student_text, images) * scale
    held_x, held_y = similarity(still_image, texts) * still_scale, similarity(still_text, images) * still_scale
    held_texts = similarity(still_text, texts) * still_scale
    along = _both_kl(of_images, held_texts) + _both_ce(of_images) + _both_ce(of_texts)
    across = (_both_kl(y, held_x) + _both_kl(x, held_y)) / 2
    return vertical * along + cross * across


def _both_kl(student: Tensor, target: Tensor) -> Tensor:
    """The mean over rows and columns [B, B] of KL(target ‖ student)."""
    return (kl_rows(student, target).mean() + kl_rows(student.T, target.T).mean()) / 2


def _both_ce(logits: Tensor) -> Tensor:
    """The mean over rows and columns [B, B] of the cross-entropy of their own position."""
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _off_diagonal(square: Tensor) -> Tensor:
    """[B, B] without its diagonal: [B, B − 1], row order kept."""
    count = len(square)
    return square.flatten()[: count * count - 1].reshape(count - 1, count + 1)[:, 1:].reshape(count, count - 1)


def _safe_norm(vectors: Tensor) -> Tensor:
    """Length along the last axis, with gradient 0 rather than NaN where it is 0."""
    squared = vectors.square().sum(dim=-1)
    present = squared > 0
    return torch.where(present, torch.where(present, squared, 1.0).sqrt(), 0.0)


def _relative_distances(vectors: Tensor) -> Tensor:
    """[B, B] distances over the mean of those that are not 0."""
    # Not by products: those cancel for near neighbours. cdist's own gradient at distance 0 is 0.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(vectors: Tensor, vertices: int) -> Tensor:
    """[J, B, B] cosines at vertex j between the directions to i and to k; 0 where a direction has no length."""
    differences = vectors[None, :, :] - vectors[:vertices, None, :]
    lengths = _safe_norm(differences)[..., None]
    directions = differences / torch.where(lengths > 0, lengths, 1.0)
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        return directions @ directions.transpose(1, 2)
