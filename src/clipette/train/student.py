"""The student of a recipe, with the weights it starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from clipette.adapt.packed import is_packed
from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.models.core import DualEncoder
from clipette.models.pruned import follow
from clipette.models.saved import load_model
from clipette.models.students import build_model
from clipette.train.job import Job, live_teacher
from clipette.train.recipe import InheritSettings
from clipette.types import Encoder

log = logging.getLogger(__name__)


def build_student(job: Job) -> DualEncoder:
    """The student of the recipe, with the weights it starts from. Raises ``ConfigError`` on a misfit, in words."""
    recipe, spec = job.recipe, job.recipe.student
    model = live_teacher(job.teacher)
    if spec.space == "teacher" and job.teacher is None:
        raise ConfigError("student.space: teacher, but there is no teacher: name one, or use space: own")
    if spec.space == "teacher" and model is not None and is_packed(model):
        raise ConfigError(
            "the teacher is a classifier: its logits are no image-text space for a student to live in; use "
            "student.space: own, with a text tower"
        )
    if spec.space == "teacher" and model is None and job.teacher is not None:
        if spec.dim not in (None, job.teacher.dim):
            raise ConfigError(
                f"space: teacher means the teacher's width {job.teacher.dim}, but the student says dim: {spec.dim}; "
                "remove dim, or use space: own"
            )
        spec = spec.model_copy(update={"dim": job.teacher.dim})
    captions = [caption for sample in job.data.samples for caption in sample.captions]
    student = build_model(spec, base=job.base, teacher=model, captions=captions, seed=recipe.seed)
    if spec.space == "teacher" and model is None and job.teacher is not None:
        with torch.no_grad():
            student.logit_scale.fill_(float(np.log(job.teacher.logit_scale)))
    if recipe.inherit is not None:
        _inherit(student, model, recipe.inherit)
    if recipe.init is not None:
        _start_from(student, Path(recipe.init) if Path(recipe.init).is_absolute() else job.base / recipe.init)
    if recipe.freeze_scale or spec.space == "teacher":
        # In the teacher's space the scale belongs to the teacher: its logits are what the student must reproduce.
        student.logit_scale.requires_grad_(False)
        if student.logit_bias is not None:
            student.logit_bias.requires_grad_(False)
    return student


def _inherit(student: DualEncoder, teacher: DualEncoder | None, settings: InheritSettings) -> None:
    # Lazily: it knows the insides of every family of models, and loads their libraries.
    from clipette.models.inherit import inherit_model

    if teacher is None:
        raise ConfigError("inherit: there are no weights to take: name a teacher that is a model, not stored vectors")
    report = inherit_model(student, teacher, by=settings.by, towers=settings.towers)
    log.info("%s", report)
    for note in report.notes:
        log.warning("%s", note)


def _start_from(student: DualEncoder, folder: Path) -> None:
    saved = load_model(folder).model
    # A pruned start makes the student as small as it is.
    follow(student.image, saved.image)
    follow(student.text, saved.text)
    try:
        student.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ModelError(f"init: the model in {folder} is of another architecture than the student: {error}") from error


def check_sizes(job: Job, student: DualEncoder) -> None:
    """Try one blank image of each progressive size, so that a tower that refuses it does so before training."""
    for size in sorted(set(job.recipe.train.sizes.values())):
        tower = student.image_tower()
        try:
            with torch.no_grad():
                tower.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(f"train.sizes: the student cannot read {size} px images ({error}): remove it") from error


def text_side(job: Job, student: DualEncoder) -> Encoder | None:
    """Who encodes texts for a student without a text tower of its own."""
    if student.text is not None or job.teacher is None or job.recipe.student.space == "own":
        return None
    if not job.teacher.can_encode_text:
        raise UnsupportedError(f"the student has no text tower and its teacher {job.teacher.name} no texts either")
    return job.teacher
