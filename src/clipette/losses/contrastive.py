"""Contrastive losses: each vector must find its partner among all others of the batch.

**Several captions of one image in a batch.** Plain InfoNCE calls the second caption of the same image a negative.
``ids`` says which rows belong together: rows and columns of equal id are all positives, and the target of a row is
uniform over them (UniCL's soft targets, Yang et al., CVPR 2022). Nothing is masked out of the denominator:
the positives share the mass instead. With all ids distinct the loss is the plain one. ``text_ids`` (default: ``ids``)
lets the batch hold a different number of texts than images, for example five captions of each image encoded once.
A row without any positive (a text with no image here) serves the others as a negative and has no term of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipette.errors import InternalError
from clipette.losses.numerics import Scalar, check_rows, cross_entropy_rows, pair_logits


def clip_loss(
    image: Tensor,
    text: Tensor,
    *,
    scale: Scalar,
    bias: Scalar = 0.0,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: each image must find its text among the batch's texts, each text its image.

    ½ [mean_i CE(scale · x_i · Yᵀ, i) + mean_j CE(scale · y_j · Xᵀ, j)]

    Shapes: image [B, D], text [N, D], unit length; N = B unless ids are given; ids [B], text_ids [N] integers.
    ``scale`` multiplies cosines (exp of the learned parameter, the inverse of a temperature; 1/0.07 at the start).
    ``bias`` cancels in the softmax: it is taken so that SigLIP models need no case of their own, and gets gradient 0.
    Range: ≥ 0; ln B where all logits are equal; 0 at B = 1. In nats.

    Raises:
        ModelError: widths differ.
        InternalError: counts of images, texts and ids disagree.

    Paper: Radford et al., ICML 2021, figure 3; soft targets: Yang et al. (UniCL), CVPR 2022, L_BiC.
    Deviation: none without ids (equals open_clip's ``ClipLoss``). UniCL's ids are class labels, with captions each its
    own label; here any integers.
    """
    positives = _positives(image, text, ids, text_ids)
    return _two_way(pair_logits(image, text, scale=scale, bias=bias), positives)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    *,
    scale: Scalar,
    bias: Scalar,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss: each pair of image and text is judged alone, partners or not.

    −(1/B) Σ_i Σ_j log σ(z_ij · (scale · x_i · y_j + bias)),  z_ij = 1 for partners, −1 otherwise

    Shapes: image [B, D], text [N, D], unit length; N = B unless ids are given; ids [B], text_ids [N] integers.
    ``scale`` multiplies cosines (10 at the start), ``bias`` is added (−10 at the start).
    Range: ≥ 0; a sum over texts and a mean over images, as published, so that one image's term is of order 1.

    Raises:
        ModelError: widths differ.
        InternalError: counts of images, texts and ids disagree.

    Paper: Zhai et al., ICCV 2023, algorithm 1 (equals open_clip's ``SigLipLoss``).
    Deviation: none without ids; with ids, all rows and columns of equal id are partners.
    """
    positives = _positives(image, text, ids, text_ids)
    logits = pair_logits(image, text, scale=scale, bias=bias)
    partner = torch.eye(len(image), device=logits.device, dtype=torch.bool) if positives is None else positives
    signs = torch.where(partner, 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(signs * logits).sum() / len(image)


def image_to_teacher(student: Tensor, teacher: Tensor, *, scale: Scalar, ids: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between the student's and the teacher's vectors of the same images (or texts).

    ½ [mean_i CE(scale · s_i · Tᵀ, i) + mean_j CE(scale · t_j · Sᵀ, j)]

    Shapes: student, teacher [B, D], unit length, of one width; ids [B] integers mark repeated images.
    ``scale`` multiplies cosines (1/0.07 in the paper). The teacher receives no gradient.
    Range: ≥ 0; 0 at B = 1. In nats.

    Raises:
        ModelError: widths differ.
        InternalError: counts differ.

    Paper: Li et al. (OOD distillation), ICCV 2023, L_im-cst.
    Deviation: symmetric, the release's ``bidirectional`` mode; its default is the student's rows alone.
    """
    return clip_loss(student, teacher.detach(), scale=scale, ids=ids)


def interactive_contrastive(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    scale: Scalar,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> Tensor:
    """ICL: the student's images must find the teacher's texts, and the student's texts the teacher's images.

    ½ [mean_i CE(scale · s^img_i · T^txtᵀ, i) + mean_j CE(scale · s^txt_j · T^imgᵀ, j)]

    Shapes: images [B, D], texts [N, D], unit length, all of one width; N = B unless ids are given.
    ``scale`` multiplies cosines (a learned one of its own in the paper). The teacher receives no gradient.
    Range: ≥ 0; 0 at B = 1. In nats.

    Raises:
        ModelError: widths differ.
        InternalError: counts disagree.

    Paper: Yang et al. (CLIP-KD), CVPR 2024, L_ICL.
    Deviation: the release multiplies by the logarithm of the scale (never exponentiated); here ``scale`` is the factor.
    """
    check_rows(student_image=student_image, teacher_image=teacher_image)
    check_rows(student_text=student_text, teacher_text=teacher_text)
    positives = _positives(student_image, student_text, ids, text_ids)
    from_images = pair_logits(student_image, teacher_text.detach(), scale=scale)
    from_texts = pair_logits(student_text, teacher_image.detach(), scale=scale)
    backwards = None if positives is None else positives.T
    return (_one_way(from_images, positives) + _one_way(from_texts, backwards)) / 2


def _positives(image: Tensor, text: Tensor, ids: Tensor | None, text_ids: Tensor | None) -> Tensor | None:
    """[B, N] booleans, true where row and column belong together; None for the plain one-to-one pairing."""
    if ids is None:
        if text_ids is not None:
            raise InternalError("text_ids were given without ids: a contrastive loss needs both or ids alone")
        check_rows(image=image, text=text)
        return None
    columns = ids if text_ids is None else text_ids
    if ids.shape != (len(image),) or columns.shape != (len(text),) or not (len(image) and len(text)):
        raise InternalError(
            f"ids {tuple(ids.shape)} and {tuple(columns.shape)} do not number the {len(image)} images "
            f"and {len(text)} texts of a contrastive loss"
        )
    return ids[:, None] == columns[None, :]


def _one_way(logits: Tensor, positives: Tensor | None) -> Tensor:
    """Cross-entropy of each row against its positives, averaged over the rows that have any."""
    if positives is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    counts = positives.sum(dim=-1, keepdim=True).to(logits.dtype)
    targets = positives.to(logits.dtype) / counts.clamp(min=1)
    return cross_entropy_rows(logits, targets).sum() / (counts > 0).sum().clamp(min=1)


def _two_way(logits: Tensor, positives: Tensor | None) -> Tensor:
    """Mean of the rows' and the columns' cross-entropies."""
    backwards = None if positives is None else positives.T
    return (_one_way(logits, positives) + _one_way(logits.T, backwards)) / 2
