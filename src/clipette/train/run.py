"""One recipe, run: student, teacher's outputs, objective, feed, loop, and the run directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from clipette.config import dump_yaml
from clipette.errors import ConfigError, StoreError
from clipette.evaluate.run_report import write_run_report
from clipette.io import write_atomic, write_json
from clipette.models.core import DualEncoder, set_trainable, weights_digest
from clipette.models.inference import default_device
from clipette.models.rebuild import table_text_tower
from clipette.models.saved import save_model
from clipette.tasks.feed import Feed
from clipette.tasks.masks import Masks
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.classes import class_names, class_side, class_texts, guide_classes, trained_on, weights_of_classes
from clipette.train.dev import DevMeter
from clipette.train.feeding import build_feed
from clipette.train.job import Job, identity_of, live_teacher
from clipette.train.lock import only_one
from clipette.train.loop import Dev, Loop, LoopResult
from clipette.train.ranks import barrier, rank
from clipette.train.student import build_student, check_sizes, text_side
from clipette.version import VERSION, commit


def run_job(job: Job) -> LoopResult:
    """Train the job's student, resuming what ``job.out`` holds, and write ``job.out/model``.

    Raises ``ConfigError`` or ``ModelError`` at the start for parts that cannot work together; ``ConfigError`` where
    another process trains in ``job.out``.
    """
    device = default_device(job.device)
    threads = torch.get_num_threads()
    if job.recipe.train.threads is not None and device.type == "cpu":
        torch.set_num_threads(job.recipe.train.threads)
    try:
        with only_one(job.out):
            return _run(job, device)
    finally:
        torch.set_num_threads(threads)


def _run(job: Job, device: torch.device) -> LoopResult:
    recipe = job.recipe
    if job.store is not None and job.teacher is not None and job.store.dim != job.teacher.dim:
        raise StoreError(
            f"store {job.store.path} is {job.store.dim} wide but the teacher {job.teacher.name} {job.teacher.dim}: "
            "it is another teacher's; pour again"
        )
    student = build_student(job)
    check_sizes(job, student)
    if device.type != "cpu":
        student.to(device)
    settings = recipe.masks
    masks = None if settings is None else Masks(student, settings.towers, keep=settings.keep)
    objective, texts = build_objective(job, student, masks)
    feed = build_feed(job, student, objective, device)
    if masks is not None and settings is not None:
        masks.schedule(round(settings.warmup * recipe.train.total_steps(feed.steps_per_epoch)))
    dev = None
    if job.dev is not None:
        meter = DevMeter(
            student, job.dev, templates=recipe.classes.templates, device=str(device), texts=text_side(job, student)
        )
        dev = Dev(meter.measure, recipe.figure or meter.figure)
    if rank() == 0:
        write_atomic(job.out / "recipe.yaml", dump_yaml(recipe).encode())
    barrier()
    loop = Loop(
        objective,
        feed,
        recipe.train,
        folder=job.out,
        seed=recipe.seed,
        device=device,
        dev=dev,
        identity=identity_of(job),
        rates=None if settings is None else {"masks": settings.lr},
    )
    try:
        result = loop.run(progress=job.progress)
    finally:
        feed.close()
    if masks is not None:
        masks.harden(student)
    if rank() == 0:
        _save(job, student, texts, result, feed)
    barrier()
    return result


def build_objective(
    job: Job, student: DualEncoder, masks: Masks | None
) -> tuple[Objective, tuple[tuple[str, ...], Tensor] | None]:
    """The task, and (texts, vectors) for an image-only student to carry."""
    terms = read_terms(job.recipe.loss)
    needs = needs_of(terms)
    classes: Tensor | None = None
    tokens: dict[str, Tensor] = {}
    carried = None
    if needs & {"student_classes", "teacher_classes"}:
        names, vectors, tokens = class_side(job, student)
        classes = vectors if len(vectors) else None
        carried = (names, vectors) if len(vectors) else None
    facts = None
    if job.teacher is not None:
        facts = TeacherFacts(job.teacher.dim, job.teacher.logit_scale, job.teacher.logit_bias, classes)
    if job.recipe.student.space == "own" and student.text is None and "student_classes" in needs:
        raise ConfigError(
            "without a text tower a student ranks class texts only in its teacher's space: space: teacher"
        )
    if "labels" in needs and class_names(job) != job.data.class_names:
        raise ConfigError(
            "class_text_ce reads the data's labels, which number the data's own classes: remove classes.names, "
            "classes.file and classes.source"
        )
    guides = {}
    for name, each in job.also.items():
        reads = "teacher_classes" in needs_of(terms, name)
        theirs = guide_classes(job, each.teacher) if reads else None
        guides[name] = TeacherFacts(each.teacher.dim, each.teacher.logit_scale, each.teacher.logit_bias, theirs)
    task = Objective(
        student,
        terms,
        teacher=facts,
        guides=guides,
        class_tokens=tokens,
        teacher_model=live_teacher(job.teacher) if job.online else None,
        balance=job.recipe.balance,
        class_weights=weights_of_classes(job, terms),
        masks=masks,
        seed=job.recipe.seed,
    )
    return task, carried


def _save(
    job: Job, student: DualEncoder, carried: tuple[tuple[str, ...], Tensor] | None, result: LoopResult, feed: Feed
) -> None:
    """Write the model, the summary and the card of a finished run."""
    recipe = job.recipe
    if student.text is None and carried is not None:
        student.text = table_text_tower(class_texts(job, carried[0]), carried[1])
        set_trainable(student.text, False)
    space = job.teacher.space if recipe.student.space == "teacher" and job.teacher is not None else None
    seen = trained_on(job)
    card: dict[str, Any] = {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "teacher": None if job.teacher is None else {"name": job.teacher.name, "space": job.teacher.space},
        "data": job.data.reference,
        "trained_on": {"images": len(job.data), "classes": len(seen.classes)},
        "seed": recipe.seed,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "loss": dict(recipe.loss),
        "dev": result.best,
        "clipette": {"version": VERSION, "commit": commit()},
    }
    if job.dev is not None and job.dev.class_names and (protocol := seen.protocol(job.dev, job.dev.class_names)):
        card["dev_protocol"] = protocol
    save_model(student, job.out / "model", name=job.out.name, space=space, card=card)
    seen.write(job.out / "model")
    summary = {
        **card,
        "images_per_second": round(result.images_per_second, 2),
        "weights": weights_digest(student),
        "best": result.best,
        "best_step": result.best_step,
        "failures": [asdict(failure) for failure in (*job.data.failures, *feed.failures)],
    }
    write_json(job.out / "summary.json", json.loads(json.dumps(summary)))
    write_run_report(job.out)
