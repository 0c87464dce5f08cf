"""Logit losses: the student must rank texts for an image, and images for a text, as its teacher does.

Teacher and student each bring their own width, scale and bias; only the logits meet. A bias shifts all logits of a
row alike and cancels in a softmax, so it matters to the sigmoid losses alone; all take it, so that SigLIP models need
no case of their own.

``sample_weight`` [B] of the losses over class texts weighs images (``mean_rows``), rare classes more for example;
without it they are plain means.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.errors import ConfigError, InternalError
from clipette.losses.numerics import (
    Scalar,
    both_logits,
    check_temperature,
    cross_entropy_rows,
    entropy_rows,
    kl_rows,
    mean_rows,
    pair_logits,
)


def class_text_ce(
    image: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    scale: Scalar,
    bias: Scalar = 0.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the labels over class texts: the supervised term.

    mean_i CE(scale · x_i · Wᵀ, label_i)

    Shapes: image [B, D], classes [C, D], unit length; labels [B] integers in [0, C). ``scale`` multiplies cosines.
    Range: ≥ 0; ln C where all logits are equal. In nats.

    Raises:
        ModelError: widths differ.
        InternalError: counts differ.

    Paper: Li et al. (OOD distillation), ICCV 2023, L_cls (scale 1/0.07); Zhou et al. (CoOp), IJCV 2022.
    Deviation: none.
    """
    if labels.shape != (len(image),) or not len(image):
        raise InternalError(f"{tuple(labels.shape)} labels do not number the {len(image)} images of class_text_ce")
    logits = pair_logits(image, classes, scale=scale, bias=bias)
    if sample_weight is None:
        return F.cross_entropy(logits, labels)
    return mean_rows(F.cross_entropy(logits, labels, reduction="none"), sample_weight)


def class_text_kl(
    student_image: Tensor,
    teacher_image: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """KL from the teacher's to the student's distribution over class texts: needs images, but no labels.

    τ² · mean_i KL(softmax(z^t_i / τ) ‖ softmax(z^s_i / τ)),  z = scale · x_i · Wᵀ + bias

    Shapes: student_image [B, Ds], student_classes [C, Ds]; teacher_image [B, Dt], teacher_classes [C, Dt]; unit
    length; Ds and Dt may differ. Scales multiply cosines; ``temperature`` τ divides both logits, and τ² keeps the
    gradient's size. ``top_k``: both distributions over the teacher's k likeliest texts of each image only.
    The teacher receives no gradient. Range: ≥ 0, 0 where the distributions agree. In nats per image.

    Raises:
        ModelError: an image's and its classes' widths differ.
        InternalError: counts differ.
        ConfigError: temperature or top_k not positive.

    Paper: Li et al. (PromptKD), CVPR 2024, stage 2 (τ = 1); with top_k = 256, Li et al. (OOD distillation), ICCV 2023,
    L_vlalign.
    Deviation: a mean over images of a sum over classes. PromptKD's release divides by B·C too: its weight 1000 is
    1000/C here.
    """
    check_temperature(temperature)
    student, teacher = both_logits(
        student_image,
        student_classes,
        teacher_image,
        teacher_classes,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    if top_k is not None:
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}: leave it out to use all class texts")
        teacher, chosen = teacher.topk(min(top_k, teacher.shape[1]), dim=-1)
        student = student.gather(-1, chosen)
    return mean_rows(kl_rows(student / temperature, teacher / temperature), sample_weight) * temperature**2


def class_text_bce(
    student_image: Tensor,
    teacher_image: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    subtract_entropy: bool = False,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """For SigLIP teachers: each class text judged alone, the student's sigmoid against the teacher's.

    mean_i Σ_c BCE(σ(z^t_ic), σ(z^s_ic)),  z = scale · x_i · w_c + bias

    Shapes: student_image [B, Ds], student_classes [C, Ds]; teacher_image [B, Dt], teacher_classes [C, Dt]; unit
    length. Scales multiply cosines, biases are added and matter. The teacher receives no gradient.
    Range: ≥ the teacher's own entropy; ``subtract_entropy`` takes that constant off (then 0 where both agree, same
    gradient).

    Raises:
        ModelError: an image's and its classes' widths differ.
        InternalError: counts differ.

    Paper: the sigmoid of Zhai et al. (SigLIP), ICCV 2023, with the teacher's probabilities in place of labels.
    Deviation: ours; SigLIP has no distillation term.
    """
    student, teacher = both_logits(
        student_image,
        student_classes,
        teacher_image,
        teacher_classes,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    return _sigmoid_match(student, teacher, subtract_entropy, sample_weight)


def in_batch_kl(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """KL from the teacher's to the student's image-text similarities of the batch, both ways.

    τ² · ½ [mean_i KL(softmax(z^t_i· / τ) ‖ softmax(z^s_i· / τ)) + the same over columns],  z = scale · X · Yᵀ + bias

    Shapes: images [B, D], texts [N, D], unit length; teacher and student may differ in D; N may differ from B, since
    the teacher says what belongs together. Scales multiply cosines, each model's own; τ divides both logits.
    The teacher receives no gradient. Range: ≥ 0; 0 where both agree, and at B = N = 1. In nats.

    Raises:
        ModelError: an image's and a text's widths differ within a model.
        InternalError: counts differ between teacher and student.
        ConfigError: temperature not positive.

    Paper: LightCLIP (τ = 2, mixed with the hard loss by α = ½); CRD of Yang et al. (CLIP-KD), CVPR 2024, L_CRD
    (τ = 1).
    Deviation: the mix α belongs to the recipe's weights.
    """
    check_temperature(temperature)
    student, teacher = both_logits(
        student_image,
        student_text,
        teacher_image,
        teacher_text,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    student, teacher = student / temperature, teacher / temperature
    return (kl_rows(student, teacher).mean() + kl_rows(student.T, teacher.T).mean()) / 2 * temperature**2


def in_batch_bce(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    subtract_entropy: bool = False,
) -> Tensor:
    """For SigLIP teachers: each image-text pair judged alone, the student's sigmoid against the teacher's.

    (1/B) Σ_i Σ_j BCE(σ(z^t_ij), σ(z^s_ij)),  z = scale · x_i · y_j + bias

    Shapes: images [B, D], texts [N, D], unit length; teacher and student may differ in D. Scales multiply cosines,
    biases are added and matter: a CLIP teacher (bias 0) would call nearly every pair a match. The teacher receives no
    gradient. Range: ≥ the teacher's own entropy; ``subtract_entropy`` takes that constant off (same gradient).

    Raises:
        ModelError: an image's and a text's widths differ within a model.
        InternalError: counts differ between teacher and student.

    Paper: Zhai et al. (SigLIP), ICCV 2023, algorithm 1, with the teacher's probabilities in place of its ±1 labels.
    Deviation: ours; a sum over texts and a mean over images as in SigLIP.
    """
    student, teacher = both_logits(
        student_image,
        student_text,
        teacher_image,
        teacher_text,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    return _sigmoid_match(student, teacher, subtract_entropy)


def distill_clip_loss(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    student_bias: Scalar = 0.0,
    teacher_bias: Scalar = 0.0,
    subtract_entropy: bool = False,
) -> Tensor:
    """open_clip's distillation term: cross-entropy against the teacher's softmax over the batch, both ways.

    ½ [mean_i CE(softmax(z^t_i·), z^s_i·) + the same over columns],  z = scale · X · Yᵀ + bias

    Shapes: images [B, D], texts [N, D], unit length; teacher and student may differ in D. Scales multiply cosines.
    The teacher receives no gradient. Range: ≥ the mean entropy of the teacher's rows and columns;
    ``subtract_entropy`` takes that constant off: then it is ``in_batch_kl`` at τ = 1, with the same gradient.

    Raises:
        ModelError: an image's and a text's widths differ within a model.
        InternalError: counts differ between teacher and student.

    Paper: the ``distill_loss`` of open_clip's ``DistillClipLoss``, equal to it; MobileCLIP's L_distill with one
    teacher.
    Deviation: open_clip returns the hard contrastive loss beside it; here that is ``clip_loss``.
    """
    student, teacher = both_logits(
        student_image,
        student_text,
        teacher_image,
        teacher_text,
        student_affine=(student_scale, student_bias),
        teacher_affine=(teacher_scale, teacher_bias),
    )
    if subtract_entropy:
        return (kl_rows(student, teacher).mean() + kl_rows(student.T, teacher.T).mean()) / 2
    rows = cross_entropy_rows(student, teacher.softmax(dim=-1)).mean()
    columns = cross_entropy_rows(student.T, teacher.T.softmax(dim=-1)).mean()
    return (rows + columns) / 2


def affinity_mimicking(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    student_scale: Scalar = 50.0,
    teacher_scale: Scalar = 50.0,
    subtract_entropy: bool = False,
) -> Tensor:
    """TinyCLIP: the student's affinities of the batch mimic the teacher's, both ways, at one fixed scale.

    ½ [mean_i CE(softmax(50 · t^img_i · T^txtᵀ), 50 · s^img_i · S^txtᵀ) + the same from the texts]

    Shapes: images [B, D], texts [N, D], unit length; teacher and student may differ in D. Scales multiply cosines:
    50 for both in the paper, whatever the models' own. The teacher receives no gradient.
    Range: ≥ the mean entropy of the teacher's rows and columns; ``subtract_entropy`` takes that constant off.

    Raises:
        ModelError: an image's and a text's widths differ within a model.
        InternalError: counts differ between teacher and student.

    Paper: Wu et al. (TinyCLIP), ICCV 2023, L_distill.
    Deviation: none; it is ``distill_clip_loss`` at fixed scales, with no hard loss beside it.
    """
    return distill_clip_loss(
        student_image,
        student_text,
        teacher_image,
        teacher_text,
        student_scale=student_scale,
        teacher_scale=teacher_scale,
        subtract_entropy=subtract_entropy,
    )


def _sigmoid_match(
    student: Tensor, teacher: Tensor, subtract_entropy: bool, sample_weight: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of two [B, N] logit matrices, summed over columns, averaged over rows."""
    target = torch.sigmoid(teacher)
    if sample_weight is None:
        loss = F.binary_cross_entropy_with_logits(student, target, reduction="sum") / len(student)
    else:
        each = F.binary_cross_entropy_with_logits(student, target, reduction="none")
        loss = mean_rows(each.sum(dim=-1), sample_weight)
    if subtract_entropy:
        # σ(−z) rather than 1 − σ(z): the latter is 0 in float32 from z = 17 on.
        loss = loss - mean_rows(entropy_rows(target) + entropy_rows(torch.sigmoid(-teacher)), sample_weight)
    return loss
