"""Class texts of a run: their names, the teacher's vectors of them, the student's tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipette.data.prompts import class_prompts
from clipette.errors import ConfigError
from clipette.evaluate.protocol import TrainedOn, read_trained_on
from clipette.evaluate.zero_shot import class_vectors
from clipette.models.core import DualEncoder
from clipette.models.stored import StoredEncoder
from clipette.tasks.labels import labels_of
from clipette.tasks.reweight import class_weights
from clipette.tasks.terms import WeightedTerm, needs_of, read_terms
from clipette.train.job import Job
from clipette.types import Encoder


def class_names(job: Job) -> tuple[str, ...]:
    """The classes of class-text losses. Raises ``ConfigError`` where nothing names them."""
    settings = job.recipe.classes
    if settings.names:
        return settings.names
    if settings.file is not None:
        path = job.base / settings.file
        if not path.is_file():
            raise ConfigError(f"classes.file not found: {path}")
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if settings.source == "teacher":
        if isinstance(job.teacher, StoredEncoder):
            return job.teacher.texts
        raise ConfigError("classes.source: teacher needs a teacher of stored embeddings that holds texts")
    if not job.data.class_names:
        raise ConfigError("a class-text loss needs class names, the data has none: set classes.names or classes.file")
    return job.data.class_names


def trained_on(job: Job) -> TrainedOn:
    """What this run sees of images and classes, what the run that it starts from has, and its teachers of images."""
    reads = needs_of(read_terms(job.recipe.loss)) & {"student_classes", "teacher_classes"}
    labelled = "labels" in needs_of(read_terms(job.recipe.loss))
    found = TrainedOn.of(job.data, class_names(job) if reads else (), labelled=labelled)
    if job.recipe.init is not None:
        found = found.joined(read_trained_on(job.base / job.recipe.init))
    for teacher in (job.recipe.teacher, *job.recipe.also.values()):
        found = found.upon(teacher)
    return found


def class_side(job: Job, student: DualEncoder) -> tuple[tuple[str, ...], Tensor, dict[str, Tensor]]:
    """Class names; the teacher's class vectors [C, Dt]; the student's tokens of them where its own texts learn."""
    names = class_names(job)
    twice = next((name for row, name in enumerate(names) if name in names[:row]), None)
    if twice is not None:
        raise ConfigError(f"class '{twice}' is named twice: a class needs a name of its own")
    vectors = torch.zeros(0) if job.teacher is None else _vectors(job, job.teacher, names)
    tokens: dict[str, Tensor] = {}
    if student.text is not None and job.recipe.student.space == "own":
        arrays = student.text_tower().tokenizer(class_texts(job, names))
        tokens = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return names, vectors, tokens


def guide_classes(job: Job, guide: Encoder) -> Tensor:
    """[C, Dk] a further teacher's own vectors of the run's classes."""
    return _vectors(job, guide, class_names(job))


def weights_of_classes(job: Job, terms: tuple[WeightedTerm, ...]) -> Tensor | None:
    """[C] what an image of each class weighs in class-text losses; None where all weigh the same.

    Raises ``ConfigError`` where no loss would be weighed, where batches are balanced already, or an image has no class.
    """
    rule = job.recipe.classes.reweight
    if rule == "none":
        return None
    if not any(each.term.per_sample for each in terms):
        raise ConfigError(
            "classes.reweight weighs images in losses over class texts, and the recipe has none that can be weighed "
            "(class_text_kl, class_text_ce, ...): remove it"
        )
    if job.recipe.sampling.balance:
        raise ConfigError("classes.reweight and sampling.balance both make up for rare classes: choose one")
    return torch.from_numpy(class_weights(labels_of(job.data.samples, "classes.reweight"), rule))


def _vectors(job: Job, teacher: Encoder, names: tuple[str, ...]) -> Tensor:
    whole = job.recipe.classes.source == "teacher"
    values = teacher.encode_texts(names) if whole else class_vectors(teacher, names, job.recipe.classes.templates)
    return torch.from_numpy(np.ascontiguousarray(values))


def class_texts(job: Job, names: tuple[str, ...]) -> tuple[str, ...]:
    """One text for each class: in the first template's wording, or a stored teacher's own texts as they are."""
    if job.recipe.classes.source == "teacher":
        return names
    return tuple(prompts[0] for prompts in class_prompts(names, job.recipe.classes.templates))
