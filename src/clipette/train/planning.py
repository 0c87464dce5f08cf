"""From a budget to a recipe: measure teacher and student for a moment, and ask the rules of ``train/budget.py``.

The plan is written beside the run as a recipe like any other, so that it can be read, changed and run again; a run that
was cut off goes on by the plan it began with.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clipette.config import dump_yaml, load_yaml
from clipette.data.dataset import Dataset
from clipette.errors import ConfigError, ModelError
from clipette.evaluate.cost import tower_gmacs
from clipette.io import digest_json, write_atomic, write_json
from clipette.models.inference import TorchEncoder, default_device
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.store import Store, open_store
from clipette.tasks.pour import pour as pour_into
from clipette.train import budget as rules
from clipette.train.budget import Budget, Candidate, Schedule
from clipette.train.feeding import build_feed
from clipette.train.job import Job, pour_plan
from clipette.train.loop import set_mode
from clipette.train.optim import build_optimizer
from clipette.train.recipe import Recipe, ViewSettings
from clipette.train.run import build_objective
from clipette.train.step import compute_gradients
from clipette.train.student import build_student
from clipette.train.worth import worth_of
from clipette.types import Encoder

log = logging.getLogger(__name__)

# Steps of the probe, and how many of them warm up: the first allocate memory and open files.
PROBE, WARM = 8, 2
POUR_PROBE = 32
# A step is a forward and a backward pass, twice as dear: a forward alone is a third.
FORWARD = 1 / 3
# A candidate that the last one's speed says is this much too slow is not tried.
HOPELESS = 1.5


@dataclass(frozen=True)
class Setting:
    """What a plan is made for. ``student``: the user's own choice, in place of the rules'; ``overrides``: ``--set``."""

    budget: Budget
    data: Dataset
    teacher: TorchEncoder
    out: Path
    store: str | Path | None = None
    dev: Dataset | None = None
    student: ModelSpec | None = None
    overrides: tuple[str, ...] = ()
    device: str | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells this plan from another."""
        chosen = None if self.student is None else self.student.model_dump(mode="json")
        facts = [vars(self.budget), self.data.fingerprint(), self.teacher.space, chosen, list(self.overrides)]
        return {"budget": vars(self.budget), "of": digest_json(facts)}


def plan_within(setting: Setting) -> Path:
    """A recipe that fits the budget, as ``out/plan.yaml``; the teacher's outputs are poured on the way.

    Raises ``ConfigError`` where the budget is too small for teacher or data, saying what would be enough.
    """
    path, facts = setting.out / "plan.yaml", setting.out / "plan.json"
    if path.is_file() and facts.is_file():
        if json.loads(facts.read_text())["key"] == setting.key:
            return path
        raise ConfigError(f"{setting.out} holds a run of another budget, teacher or data: choose another --out")
    begun = time.perf_counter()
    recipe, told = _plan(setting, begun)
    write_atomic(path, dump_yaml(recipe).encode())
    write_json(facts, {"key": setting.key, **told, "planning_seconds": round(time.perf_counter() - begun, 1)})
    log.warning("%s", words(told))
    return path


def words(told: Mapping[str, Any]) -> str:
    """The plan in one line."""
    learns = "head alone" if told["frozen"] else "all of it"
    takes = "" if told["seconds"] is None else f", about {told['seconds']:.0f} s"
    return (
        f"plan: {told['student']} ({told['gmacs']:.3g} of the teacher's {told['teacher_gmacs']:.3g} GMACs an image), "
        f"{learns}, losses {' + '.join(told['loss'])}, {told['views']} views an image, {told['steps']} steps of "
        f"{told['batch']} ({told['epochs']:.1f} epochs{takes})"
    )


def _plan(setting: Setting, begun: float) -> tuple[Recipe, dict[str, Any]]:
    teacher, data = setting.teacher, setting.data
    speaks = teacher.can_encode_text
    captions = speaks and all(sample.captions for sample in data.samples)
    if speaks and not captions and (described := sum(bool(sample.captions) for sample in data.samples)):
        log.warning(
            "%d of %d images have captions: all must, for captions to be learned from; none are read",
            described,
            len(data),
        )
    classes = speaks and bool(data.class_names)
    labels = sum(sample.label is not None for sample in data.samples) / len(data) if classes else 0.0
    loss = rules.losses_for(captions=captions, classes=classes, labels=labels)
    poured = None if setting.store is None else open_store(setting.store)
    views = _views(setting) if poured is None else poured.view_count
    draft = _recipe(setting, _any_student(setting), loss, views, rules.Schedule(1, 1, 1.0), captions=captions)
    store = _pour(setting, draft) if poured is None else poured
    worth = worth_of(teacher, data, store) if labels == 1.0 else None
    loss = rules.losses_for(captions=captions, classes=classes, labels=labels, trusted=rules.trusts(worth))
    job = Job(draft, _readable(data, store), setting.out, teacher=teacher, store=store, device=setting.device)
    cost = tower_gmacs(teacher.model.image_tower())
    left = None
    if setting.budget.seconds is not None:
        left = setting.budget.seconds * (1 - rules.RESERVE) - (time.perf_counter() - begun)
    choice, schedule, pace = _choose(setting, job, loss, views, left, cost, captions=captions)
    recipe = _recipe(setting, choice, loss, views, schedule, captions=captions)
    # As the user's own --set left them.
    each = max(1, len(data) // recipe.train.batch_size)
    steps = recipe.train.total_steps(each)
    told = {
        "student": _named(recipe),
        "gmacs": choice.gmacs,
        "teacher_gmacs": cost,
        "inherits": choice.inherits,
        "frozen": schedule.frozen,
        "loss": list(recipe.loss),
        # Where all is labelled: top-1 of the teacher's answers, and of labels on its own vectors.
        "worth": None if worth is None else vars(worth),
        "views": recipe.views.count,
        "steps": steps,
        "batch": recipe.train.batch_size,
        "epochs": round(steps / each, 2),
        "seconds_a_step": pace,
        "seconds": None if pace is None or schedule.frozen else round(steps * pace, 1),
    }
    return recipe, told


# ---------------------------------------------------------------- student and schedule


def _choose(
    setting: Setting,
    job: Job,
    loss: Mapping[str, Any],
    views: int,
    left: float | None,
    cost: float,
    *,
    captions: bool,
) -> tuple[Candidate, Schedule, float | None]:
    """The best candidate whose least epochs fit, by trying; or one whose head alone is trained."""
    images = len(job.data)
    found = _candidates(setting, cost)
    if left is None:
        schedule = rules.schedule_for(None, 0.0, images, inherits=found[0].inherits)
        assert schedule is not None
        return found[0], schedule, None
    paces: list[tuple[Candidate, float]] = []
    lost: ModelError | None = None
    for each in found:
        least = rules.LEAST_EPOCHS[each.inherits] * max(1, images // rules.batch_for(images))
        if paces and paces[-1][1] * each.gmacs / paces[-1][0].gmacs * least > HOPELESS * left:
            continue
        probe = rules.Schedule(PROBE, rules.batch_for(images), 1.0)
        try:
            pace = seconds_a_step(replace(job, recipe=_recipe(setting, each, loss, views, probe, captions=captions)))
        except ModelError as error:
            # Weights that cannot be fetched here: the next candidate may do without.
            log.warning("%s is left out: %s", each.name or "the student", error)
            lost = error
            continue
        paces.append((each, pace))
        # The last evaluation, and the first, read every dev image once.
        watched = 0 if setting.dev is None else 2 * len(setting.dev)
        spent = watched * pace * FORWARD / probe.batch
        schedule = rules.schedule_for(left - spent, pace, images, inherits=each.inherits)
        if schedule is not None:
            return each, schedule, pace
    if lost is not None and not paces:
        raise lost
    for each in found:
        known, pace = paces[-1]
        once = pace * each.gmacs / known.gmacs * FORWARD / rules.batch_for(images) * images * max(1, views)
        if once < left:
            return each, rules.head_schedule(images), pace
    needed = setting.budget.seconds or 0.0
    raise ConfigError(
        f"--budget: {left:.0f} of {needed:.0f} s are left after pouring, too little to run even the smallest student "
        f"once over {images} images: give more time, or fewer images (`?limit=`)"
    )


def _candidates(setting: Setting, cost: float) -> list[Candidate]:
    if setting.student is not None:
        model = build_model(setting.student, teacher=setting.teacher.model, captions=_captions(setting.data))
        return [Candidate("", 0, tower_gmacs(model.image_tower()), False)]
    side = max(setting.teacher.model.image_tower().preprocess.size)
    found = rules.candidates(side, cost, shrinks=_shrinks(setting.teacher))
    return rules.affordable(found, setting.budget, cost)


def _captions(data: Dataset) -> list[str]:
    return [caption for sample in data.samples for caption in sample.captions]


def _any_student(setting: Setting) -> Candidate:
    """Something to make a first recipe of, from which only the pouring is read."""
    return Candidate(rules.LADDER[-1][0], 224, rules.LADDER[-1][1], False)


def _shrinks(teacher: TorchEncoder) -> bool:
    """Whether the same trunk can be built for smaller pictures: timm's can, their position tables are resized."""
    return teacher.model.image_tower().blueprint.kind == "timm"


def _student(setting: Setting, choice: Candidate, *, frozen: bool) -> dict[str, Any]:
    if setting.student is not None:
        return setting.student.model_dump(mode="json")
    tower = setting.teacher.model.image_tower()
    learns = "head" if frozen else "all"
    image: dict[str, Any]
    head: dict[str, Any]
    if choice.inherits:
        known = tower.blueprint.arguments
        cut = tower.preprocess
        head = {**known["head"], "dropout": 0.0}
        image = {
            "kind": "timm",
            "name": known["name"],
            "args": dict(known["args"]),
            "size": choice.side,
            "mean": list(cut.mean),
            "std": list(cut.std),
            "interpolation": cut.interpolation,
            "mode": cut.mode,
            "head": head,
            "train": learns,
        }
    else:
        head = {"kind": "residual"}
        image = {"kind": "timm", "name": choice.name, "weights": "pretrained", "head": head, "train": learns}
    text = {"kind": "teacher"} if setting.teacher.can_encode_text else None
    return {"space": "teacher", "image": image, "text": text}


def _recipe(
    setting: Setting, choice: Candidate, loss: Mapping[str, Any], views: int, schedule: Schedule, *, captions: bool
) -> Recipe:
    inherits = choice.inherits and setting.student is None
    train: dict[str, Any] = {
        "steps": None if any(each.startswith("train.epochs=") for each in setting.overrides) else schedule.steps,
        "batch_size": schedule.batch,
        "optimizer": rules.optimizer_for(inherits=inherits, frozen=schedule.frozen),
        # Evaluation takes from the same time: at the end alone.
        "evaluate_every": schedule.steps if setting.budget.seconds is not None else 0,
    }
    several = min((len(sample.captions) for sample in setting.data.samples), default=1) if captions else 1
    values = {
        "name": "within-budget",
        "about": f"Planned by the rules of a budget: {_asked(setting.budget)}.",
        "student": _student(setting, choice, frozen=schedule.frozen),
        "loss": dict(loss),
        "views": {**_law(setting), "count": views},
        # A caption of a frozen text side costs a row of a matrix: all of them, up to five.
        "captions_per_image": max(1, min(5, several)),
        "inherit": {"towers": ["image"]} if inherits else None,
        "train": train,
    }
    planned = Recipe.model_validate_json(json.dumps(values))
    # What the user sets holds for the pouring and for the probe too: seed, views, losses.
    return load_yaml(Recipe, dump_yaml(planned), setting.overrides) if setting.overrides else planned


def _law(setting: Setting) -> dict[str, Any]:
    """The law of the views: that of the store, where there is one."""
    law = ViewSettings().model_dump(mode="json")
    stored = {} if setting.store is None else open_store(setting.store).identity.get("views") or {}
    return {**law, **stored.get("policy", {})}


def _asked(budget: Budget) -> str:
    parts = [] if budget.seconds is None else [f"{budget.seconds:g} s"]
    parts += [] if budget.gmacs is None else [f"{budget.gmacs:g} GMACs an image"]
    return ", ".join(parts) or "a third of the teacher's GMACs"


def _named(recipe: Recipe) -> str:
    image = recipe.student.image.model_dump()
    size = image.get("size")
    return f"{image.get('name', image['kind'])}" + (f" at {size} px" if size else "")


# ---------------------------------------------------------------- measuring


def _views(setting: Setting) -> int:
    """How many views can be poured, by the pace of two small batches."""
    if setting.budget.seconds is None:
        return rules.views_for(None, len(setting.data), 0.0)
    return rules.views_for(setting.budget.seconds, len(setting.data), seconds_a_view(setting.teacher, setting.data))


def seconds_a_view(teacher: Encoder, data: Dataset) -> float:
    """Seconds that the teacher takes for one picture, reading included: a first batch warms up, a second is timed."""
    samples = data.samples[: 2 * POUR_PROBE]
    middle = max(1, len(samples) // 2)
    teacher.encode_samples(samples[:middle], batch_size=POUR_PROBE)
    timed: Sequence[Any] = samples[middle:] or samples
    begun = time.perf_counter()
    teacher.encode_samples(timed, batch_size=POUR_PROBE)
    return (time.perf_counter() - begun) / len(timed)


def seconds_a_step(job: Job) -> float:
    """Seconds of one training step of ``job``, reading included: a few real steps, thrown away."""
    device = default_device(job.device)
    student = build_student(job)
    if device.type != "cpu":
        student.to(device)
    objective, _ = build_objective(job, student, None)
    feed = build_feed(job, student, objective, device)
    settings = job.recipe.train
    optimizer = build_optimizer(objective.parts.to(device), settings.optimizer)
    steps = max(1, min(PROBE, settings.steps or PROBE))
    taken: list[float] = []
    try:
        clock = time.perf_counter()
        for batch in feed.run(0, steps):
            set_mode(objective.parts, freeze_norms=settings.freeze_norms)
            optimizer.zero_grad(set_to_none=True)
            compute_gradients(
                objective, batch.to(device), micro_batches=settings.micro_batches, precision=settings.precision
            )
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - clock)
            clock = time.perf_counter()
    finally:
        feed.close()
    warm = taken[WARM:] or taken
    return sum(warm) / len(warm)


def _pour(setting: Setting, recipe: Recipe) -> Store:
    """What the losses read of the teacher, where ``distill`` looks for it."""
    out, plan = setting.out / "store", pour_plan(recipe)
    return open_store(pour_into(setting.teacher, setting.data, out, plan, seed=recipe.seed).path)


def _readable(data: Dataset, store: Store) -> Dataset:
    lost = {failure.key for failure in store.failures}
    return data.subset(sample.key for sample in data.samples if sample.key not in lost) if lost else data
