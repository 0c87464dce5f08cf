"""Losses: tensors in, one scalar out. A batch mean, dimensionless, so that a weight means the same at any B, C or D;
losses among the batch's own candidates follow their number, as published (tests/losses/test_sizes.py says how).

Every argument after the tensors is keyword-only and named alike everywhere: ``scale`` (or ``student_scale``,
``teacher_scale``) multiplies cosines, ``temperature`` divides logits. Vectors are expected at unit length unless a
loss says that it normalises. Products and softmaxes run in float32 under any autocast. Teachers get no gradient.
In-batch losses take the features of the whole batch, gathered over ranks and accumulation steps by the caller.

To add one: a function in one of these files, a line below, a row in docs/PAPERS.md, a twin in tests/reference/, and
its size in tests/losses/test_sizes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from clipette.losses.contrastive import clip_loss, image_to_teacher, interactive_contrastive, siglip_loss
from clipette.losses.decoupled import (
    class_text_dist,
    class_text_dkd,
    class_text_standardized_kl,
    dist,
    dkd,
    standardized_kl,
)
from clipette.losses.ensembles import Teacher, average_probabilities, class_text_ensemble, in_batch_ensemble
from clipette.losses.features import cosine, mse
from clipette.losses.gradients import gradient_distillation
from clipette.losses.logits import (
    affinity_mimicking,
    class_text_bce,
    class_text_ce,
    class_text_kl,
    distill_clip_loss,
    in_batch_bce,
    in_batch_kl,
)
from clipette.losses.relations import clip_rd, gram, intra_modal_kl, rkd_angle, rkd_distance

LOSSES: Mapping[str, Callable[..., Tensor]] = {
    # (image, text): one model's own image-text pairs.
    "clip": clip_loss,
    "siglip": siglip_loss,
    # (image, classes, labels): supervised.
    "class_text_ce": class_text_ce,
    # (student, teacher): vectors of the same images, or of the same texts.
    "cosine": cosine,
    "mse": mse,
    "image_to_teacher": image_to_teacher,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "gram": gram,
    "intra_modal_kl": intra_modal_kl,
    # (student_image, student_text, teacher_image, teacher_text): both models' image-text pairs.
    "interactive_contrastive": interactive_contrastive,
    "in_batch_kl": in_batch_kl,
    "in_batch_bce": in_batch_bce,
    "distill_clip": distill_clip_loss,
    "affinity_mimicking": affinity_mimicking,
    "gradient_distillation": gradient_distillation,
    "clip_rd": clip_rd,
    # (student_image, teacher_image, student_classes, teacher_classes): images against class texts.
    "class_text_kl": class_text_kl,
    "class_text_bce": class_text_bce,
    "class_text_dkd": class_text_dkd,
    "class_text_dist": class_text_dist,
    "class_text_standardized_kl": class_text_standardized_kl,
    # (student_image, student_text or student_classes, teachers): several teachers.
    "in_batch_ensemble": in_batch_ensemble,
    "class_text_ensemble": class_text_ensemble,
    # (student, teacher): logits [B, C], for classifiers without texts.
    "dkd": dkd,
    "dist": dist,
    "standardized_kl": standardized_kl,
}

__all__ = [
    "LOSSES",
    "Teacher",
    "affinity_mimicking",
    "average_probabilities",
    "class_text_bce",
    "class_text_ce",
    "class_text_dist",
    "class_text_dkd",
    "class_text_ensemble",
    "class_text_kl",
    "class_text_standardized_kl",
    "clip_loss",
    "clip_rd",
    "cosine",
    "dist",
    "distill_clip_loss",
    "dkd",
    "gradient_distillation",
    "gram",
    "image_to_teacher",
    "in_batch_bce",
    "in_batch_ensemble",
    "in_batch_kl",
    "interactive_contrastive",
    "intra_modal_kl",
    "mse",
    "rkd_angle",
    "rkd_distance",
    "siglip_loss",
    "standardized_kl",
]
