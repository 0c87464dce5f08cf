"""The batches of a run: what they carry of images, texts and the teacher's word on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clipette.data.images import DecodeSettings
from clipette.errors import ConfigError, StoreError
from clipette.models.core import DualEncoder
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan, Guide, Outputs
from clipette.tasks.labels import labels_of
from clipette.tasks.objective import Objective
from clipette.tasks.outputs import EncodedOutputs, StoredOutputs
from clipette.tasks.sampling import BalancedOrder, NeighbourOrder, Order
from clipette.tasks.terms import needs_of
from clipette.train.frozen import cache_folder, image_trunk_features, text_trunk_features, trunk_is_frozen
from clipette.train.job import Job, live_teacher, shares_text
from clipette.train.ranks import rank, world_size
from clipette.types import View


def build_feed(job: Job, student: DualEncoder, task: Objective, device: torch.device) -> Feed:
    """The feed of ``job``, frozen trunks run once. Raises ``StoreError`` where the store lacks what losses read."""
    recipe, needs = job.recipe, task.needs
    samples = job.data.samples
    captions = CaptionIndex(samples).texts
    reads_teacher = bool(needs & {"teacher_image", "teacher_text"})
    shares = "student_text" in needs and (student.text is None or shares_text(recipe))
    outputs: Outputs | None = None
    if (reads_teacher or shares) and not job.online:
        if job.store is not None:
            wanted = captions if "teacher_text" in needs or shares else ()
            outputs = StoredOutputs(job.store, samples, wanted, seed=recipe.seed, images="teacher_image" in needs)
        elif job.teacher is not None and reads_teacher:
            outputs = EncodedOutputs(job.teacher, samples, captions if "teacher_text" in needs else ())
    if "teacher_text" in needs and outputs is not None and not outputs.has_texts:
        raise StoreError("the losses read captions, but the store has none: pour them, or use image-only losses")
    plan = FeedPlan(
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        preprocess=student.image_tower().preprocess,
        policy=recipe.views.policy(),
        own_views=recipe.views.student_only,
        sizes=recipe.train.sizes,
        images=bool(needs & {"student_image", "teacher_image"}),
        texts="student_text" in needs,
        captions_per_image=recipe.captions_per_image,
        teacher_texts="teacher_text" in needs,
        teacher_images="teacher_image" in needs,
        threads=recipe.train.loader_threads,
        cache_mb=recipe.train.cache_mb,
        settings=DecodeSettings(scaled=recipe.scaled_decode),
        max_failures=recipe.train.max_failures,
    )
    guides = _guides(plan, job, task, captions, outputs)
    if "student_text" in needs:
        plan = _with_texts(plan, job, student, captions, outputs, device)
    model = live_teacher(job.teacher)
    if job.online:
        if model is None:
            raise ConfigError("--teacher-online needs a teacher that can run, not stored embeddings")
        plan = replace(plan, teacher_preprocess=model.image_tower().preprocess)
        if "teacher_text" in needs:
            plan = replace(plan, teacher_tokenizer=model.text_tower().tokenizer)
    elif plan.images and trunk_is_frozen(student.image_tower()):
        plan = replace(plan, image_trunk=_image_trunk(plan, job, student, outputs, device))
    return Feed(
        samples,
        plan,
        outputs,
        order=_order(job, outputs if plan.teacher_images else None),
        guides=guides,
        rank=rank(),
        world=world_size(),
    )


def _image_trunk(
    plan: FeedPlan, job: Job, student: DualEncoder, outputs: Outputs | None, device: torch.device
) -> Tensor:
    """[n, views, W] what the frozen trunk says of the stored views, or of the student's own."""
    samples = job.data.samples
    stored = None
    if outputs is not None and plan.teacher_images and not plan.own_views:
        stored = [outputs.views_of(position) for position in range(len(samples))]
    return image_trunk_features(
        student.image_tower(),
        samples,
        policy=plan.policy,
        views=job.recipe.trunk_views if stored is None else len(stored[0]),
        seed=plan.seed,
        folder=cache_folder(),
        device=device,
        settings=plan.settings,
        stored=stored,
    )


def _guides(
    plan: FeedPlan, job: Job, task: Objective, captions: Sequence[str], outputs: Outputs | None
) -> dict[str, Guide]:
    """What the further teachers bring. Raises ``StoreError`` where they poured other views than the student sees."""
    if job.also and job.online:
        raise ConfigError("--teacher-online runs one teacher in the loop: pour the further ones (also), or remove them")
    out = {}
    for name, each in job.also.items():
        needs = needs_of(task.terms, name)
        images, texts = "teacher_image" in needs, "teacher_text" in needs
        if not images and not texts:
            continue
        if images and not plan.teacher_images and plan.policy is not None and not plan.own_views:
            raise ConfigError(
                f"the losses read the images of '{name}' and none of the first teacher's, whose stored views the "
                f"student sees: make '{name}' the first teacher"
            )
        theirs: Outputs
        if each.store is not None:
            wanted = captions if texts else ()
            theirs = StoredOutputs(each.store, job.data.samples, wanted, seed=job.recipe.seed, images=images)
        else:
            theirs = EncodedOutputs(each.teacher, job.data.samples, captions if texts else ())
        if images:
            for position, sample in enumerate(job.data.samples):
                if theirs.views_of(position) != (outputs.views_of(position) if outputs is not None else [View()]):
                    raise StoreError(
                        f"the teacher '{name}' poured other views of '{sample.key}' than the first: pour both with the "
                        "same --views, --view-policy and --seed"
                    )
        out[name] = Guide(theirs, images, texts)
    return out


def _order(job: Job, outputs: Outputs | None) -> Order | None:
    """The order of the recipe's ``sampling``; None for every sample once."""
    sampling, samples = job.recipe.sampling, job.data.samples
    if sampling.balance:
        labels = labels_of(samples, "sampling.balance")
        return BalancedOrder(labels, job.recipe.seed, power=sampling.balance)
    if not sampling.neighbours:
        return None
    if outputs is None:
        raise ConfigError(
            "sampling.neighbours reads the teacher's stored image vectors, and the losses none: remove it"
        )
    everyone = np.arange(len(samples), dtype=np.int64)
    return NeighbourOrder(outputs.draw(everyone, 0).vectors, job.recipe.seed, group=sampling.neighbours)


def _with_texts(
    plan: FeedPlan,
    job: Job,
    student: DualEncoder,
    captions: Sequence[str],
    outputs: Outputs | None,
    device: torch.device,
) -> FeedPlan:
    """How the batches carry the student's captions: as tokens, or as what a frozen trunk or tower says of them."""
    if student.text is None and job.recipe.student.space == "own":
        raise ConfigError("the losses read the student's captions, but the student has no text tower: give it one")
    if student.text is None or (shares_text(job.recipe) and outputs is not None and outputs.has_texts):
        if outputs is None or not outputs.has_texts:
            raise ConfigError("the student shares its teacher's texts: pour the captions (--captions)")
        return replace(plan, text_fixed=torch.from_numpy(outputs.texts(np.arange(len(captions)))))
    tower = student.text_tower()
    if not trunk_is_frozen(tower):
        return replace(plan, tokenizer=tower.tokenizer)
    trunk = text_trunk_features(tower, captions, folder=cache_folder(), device=device)
    if any(p.requires_grad for p in tower.head.parameters()):
        return replace(plan, text_trunk=trunk)
    with torch.no_grad():
        fixed = torch.nn.functional.normalize(tower.head(trunk), dim=-1)
    return replace(plan, text_fixed=fixed)
