"""One recipe, run: student, teacher's outputs, objective, feed, loop, and the run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipette.config import dump_yaml
from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings
from clipette.errors import ConfigError, ModelError, StoreError, UnsupportedError
from clipette.evaluate.run_report import write_run_report
from clipette.evaluate.zero_shot import class_vectors
from clipette.io import digest_json, write_atomic, write_json
from clipette.models.core import DualEncoder, set_trainable, weights_digest
from clipette.models.inference import TorchEncoder, default_device
from clipette.models.rebuild import table_text_tower
from clipette.models.saved import load_model, save_model
from clipette.models.spec import TeacherText
from clipette.models.stored import StoredEncoder
from clipette.models.students import build_model
from clipette.store.reader import Store
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan, Outputs
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.outputs import EncodedOutputs, StoredOutputs
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.dev import DevMeter
from clipette.train.frozen import cache_folder, image_trunk_features, text_trunk_features, trunk_is_frozen
from clipette.train.loop import Dev, Loop, LoopResult
from clipette.train.ranks import barrier, rank, world_size
from clipette.train.recipe import Recipe
from clipette.types import Encoder


@dataclass(frozen=True)
class Job:
    """All that a run needs, resolved.

    ``teacher``: the live teacher where there is one (its text tower may be shared, its forward run online), or stored
    embeddings; ``store``: what it poured. ``base``: the folder that the recipe's relative paths start from.
    """

    recipe: Recipe
    data: Dataset
    out: Path
    dev: Dataset | None = None
    teacher: Encoder | None = None
    store: Store | None = None
    online: bool = False
    base: Path = Path()
    device: str | None = None
    progress: bool = True


def run_job(job: Job) -> LoopResult:
    """Train the job's student, resuming what ``job.out`` holds, and write ``job.out/model``.

    Raises ``ConfigError`` or ``ModelError`` at the start for parts that cannot work together.
    """
    recipe = job.recipe
    device = default_device(job.device)
    if recipe.train.threads is not None and device.type == "cpu":
        torch.set_num_threads(recipe.train.threads)
    if job.store is not None and job.teacher is not None and job.store.dim != job.teacher.dim:
        raise StoreError(
            f"store {job.store.path} is {job.store.dim} wide but the teacher {job.teacher.name} {job.teacher.dim}: "
            "it is another teacher's; pour again"
        )
    student = build_student(job)
    _check_sizes(recipe, student)
    if device.type != "cpu":
        student.to(device)
    objective, texts = _objective(job, student)
    feed = _feed(job, student, objective, device)
    dev = None
    if job.dev is not None:
        meter = DevMeter(
            student, job.dev, templates=recipe.classes.templates, device=str(device), texts=_text_side(job, student)
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
    )
    try:
        result = loop.run(progress=job.progress)
    finally:
        feed.close()
    if rank() == 0:
        _save(job, student, texts, result, feed)
    barrier()
    return result


def _check_sizes(recipe: Recipe, student: DualEncoder) -> None:
    """Try one blank image of each progressive size, so that a tower that refuses it does so before training."""
    for size in sorted(set(recipe.train.sizes.values())):
        tower = student.image_tower()
        try:
            with torch.no_grad():
                tower.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(f"train.sizes: the student cannot read {size} px images ({error}): remove it") from error


def identity_of(job: Job) -> str:
    """Digest of everything that changes the weights: recipe, data, teacher, processes."""
    recipe = job.recipe.model_dump(mode="json")
    for cosmetic in ("about", "paper", "name", "dev"):
        recipe.pop(cosmetic)
    # Dev data changes the weights only where it chooses them.
    dev = {"dev": job.dev.fingerprint()} if job.dev is not None and job.recipe.train.keep == "best" else {}
    return digest_json(
        {
            "recipe": recipe,
            "data": job.data.fingerprint(),
            "teacher": None if job.teacher is None else job.teacher.space,
            "store": None if job.store is None else dict(job.store.identity),
            "online": job.online,
            "ranks": world_size(),
            **dev,
        }
    )


def live_teacher(teacher: Encoder | None) -> DualEncoder | None:
    """The teacher's model, where it is one and not only stored."""
    return teacher.model if isinstance(teacher, TorchEncoder) else None


def build_student(job: Job) -> DualEncoder:
    """The student of the recipe, with the weights it starts from. Raises ``ConfigError`` on a misfit, in words."""
    recipe, spec = job.recipe, job.recipe.student
    model = live_teacher(job.teacher)
    if spec.space == "teacher" and job.teacher is None:
        raise ConfigError("student.space: teacher, but there is no teacher: name one, or use space: own")
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
    if recipe.init is not None:
        _start_from(student, Path(recipe.init) if Path(recipe.init).is_absolute() else job.base / recipe.init)
    if recipe.freeze_scale or spec.space == "teacher":
        # In the teacher's space the scale belongs to the teacher: its logits are what the student must reproduce.
        student.logit_scale.requires_grad_(False)
        if student.logit_bias is not None:
            student.logit_bias.requires_grad_(False)
    return student


def _start_from(student: DualEncoder, folder: Path) -> None:
    saved = load_model(folder).model
    try:
        student.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ModelError(f"init: the model in {folder} is of another architecture than the student: {error}") from error


def _text_side(job: Job, student: DualEncoder) -> Encoder | None:
    """Who encodes texts for a student without a text tower of its own."""
    if student.text is not None or job.teacher is None or job.recipe.student.space == "own":
        return None
    if not job.teacher.can_encode_text:
        raise UnsupportedError(f"the student has no text tower and its teacher {job.teacher.name} no texts either")
    return job.teacher


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


def _class_side(job: Job, student: DualEncoder) -> tuple[tuple[str, ...], Tensor, dict[str, Tensor]]:
    """Class names; the teacher's class vectors [C, Dt]; the student's tokens of them where its own texts learn."""
    teacher = job.teacher
    names = class_names(job)
    twice = next((name for row, name in enumerate(names) if name in names[:row]), None)
    if twice is not None:
        raise ConfigError(f"class '{twice}' is named twice: a class needs a name of its own")
    if teacher is None:
        vectors = torch.zeros(0)
    else:
        whole = job.recipe.classes.source == "teacher"
        values = teacher.encode_texts(names) if whole else class_vectors(teacher, names, job.recipe.classes.templates)
        vectors = torch.from_numpy(np.ascontiguousarray(values))
    tokens: dict[str, Tensor] = {}
    own = student.text is not None and job.recipe.student.space == "own"
    if own:
        from clipette.data.prompts import class_prompts

        prompts = [prompts[0] for prompts in class_prompts(names, job.recipe.classes.templates)]
        tokens = {name: torch.from_numpy(v) for name, v in student.text_tower().tokenizer(prompts).items()}
    return names, vectors, tokens


def _objective(job: Job, student: DualEncoder) -> tuple[Objective, tuple[tuple[str, ...], Tensor] | None]:
    """The task, and (texts, vectors) for an image-only student to carry."""
    terms = read_terms(job.recipe.loss)
    needs = needs_of(terms)
    classes: Tensor | None = None
    tokens: dict[str, Tensor] = {}
    carried = None
    if needs & {"student_classes", "teacher_classes"}:
        names, vectors, tokens = _class_side(job, student)
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
    task = Objective(
        student,
        terms,
        teacher=facts,
        class_tokens=tokens,
        teacher_model=live_teacher(job.teacher) if job.online else None,
        seed=job.recipe.seed,
    )
    return task, carried


def _feed(job: Job, student: DualEncoder, task: Objective, device: torch.device) -> Feed:
    recipe, needs = job.recipe, task.needs
    samples = job.data.samples
    captions = CaptionIndex(samples).texts
    reads_teacher = bool(needs & {"teacher_image", "teacher_text"})
    shares = "student_text" in needs and (student.text is None or _shares_text(job, student))
    outputs: Outputs | None = None
    if (reads_teacher or shares) and not job.online:
        if job.store is not None:
            wanted = captions if "teacher_text" in needs or shares else ()
            outputs = StoredOutputs(job.store, samples, wanted, seed=recipe.seed, images="teacher_image" in needs)
        elif job.teacher is not None and reads_teacher:
            outputs = EncodedOutputs(job.teacher, samples, captions if "teacher_text" in needs else ())
    if "teacher_text" in needs and outputs is not None and not outputs.has_texts:
        raise StoreError("the losses read captions, but the store has none: pour them, or use image-only losses")
    settings = DecodeSettings(scaled=recipe.scaled_decode)
    plan = FeedPlan(
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        preprocess=student.image_tower().preprocess,
        policy=recipe.views.policy(),
        sizes=recipe.train.sizes,
        images=bool(needs & {"student_image", "teacher_image"}),
        texts="student_text" in needs,
        captions_per_image=recipe.captions_per_image,
        teacher_texts="teacher_text" in needs,
        teacher_images="teacher_image" in needs,
        threads=recipe.train.loader_threads,
        cache_mb=recipe.train.cache_mb,
        settings=settings,
        max_failures=recipe.train.max_failures,
    )
    if "student_text" in needs:
        plan = _with_texts(plan, job, student, captions, outputs, device)
    model = live_teacher(job.teacher)
    if job.online:
        if model is None:
            raise ConfigError("--teacher-online needs a teacher that can run, not stored embeddings")
        plan = replace(plan, teacher_preprocess=model.image_tower().preprocess)
        if "teacher_text" in needs:
            plan = replace(plan, teacher_tokenizer=model.text_tower().tokenizer)
    still = plan.images and trunk_is_frozen(student.image_tower())
    if still and not job.online and not (outputs is not None and outputs.has_views):
        trunk = image_trunk_features(
            student.image_tower(),
            samples,
            policy=recipe.views.policy(),
            views=recipe.trunk_views if outputs is None else 1,
            seed=recipe.seed,
            folder=cache_folder(),
            device=device,
            settings=settings,
        )
        plan = replace(plan, image_trunk=trunk)
    return Feed(samples, plan, outputs, rank=rank(), world=world_size())


def _shares_text(job: Job, student: DualEncoder) -> bool:
    """Whether the student's text side is its teacher's own, unchanged: then stored captions serve both."""
    text = job.recipe.student.text
    return isinstance(text, TeacherText) and text.train == "none" and text.layers is None and student.text is not None


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
    if student.text is None or (_shares_text(job, student) and outputs is not None and outputs.has_texts):
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


def _save(
    job: Job, student: DualEncoder, carried: tuple[tuple[str, ...], Tensor] | None, result: LoopResult, feed: Feed
) -> None:
    """Write the model, the summary and the card of a finished run."""
    recipe = job.recipe
    if student.text is None and carried is not None:
        student.text = table_text_tower(_carried_texts(job, carried[0]), carried[1])
        set_trainable(student.text, False)
    space = job.teacher.space if recipe.student.space == "teacher" and job.teacher is not None else None
    card: dict[str, Any] = {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "teacher": None if job.teacher is None else {"name": job.teacher.name, "space": job.teacher.space},
        "data": job.data.reference,
        "seed": recipe.seed,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
    }
    save_model(student, job.out / "model", name=job.out.name, space=space, card=card)
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


def _carried_texts(job: Job, names: tuple[str, ...]) -> tuple[str, ...]:
    """The strings under which an image-only student finds its class vectors: the first template's wording."""
    if job.recipe.classes.source == "teacher":
        return names
    from clipette.data.prompts import class_prompts

    return tuple(prompts[0] for prompts in class_prompts(names, job.recipe.classes.templates))
