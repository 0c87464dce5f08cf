"""The verbs that train: ``pretrain`` and ``distill``, with a recipe or by the rules of a budget."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipette.adapt.adapter import adapter_folder
from clipette.adapting import first_stage
from clipette.config import find_recipe, load_yaml, shipped_recipes
from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.errors import ConfigError, DataError
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model
from clipette.models.spec import ModelSpec
from clipette.models.stored import StoredEncoder
from clipette.resolve import resolve
from clipette.store import Store, open_store
from clipette.tasks.pour import pour as pour_into
from clipette.tasks.pour import poured_by
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.anew import begin_anew
from clipette.train.budget import Budget, parse_budget
from clipette.train.classes import class_names
from clipette.train.job import Companion, Job, pour_plan
from clipette.train.planning import Setting, plan_within
from clipette.train.recipe import Recipe, ViewSettings
from clipette.train.run import run_job
from clipette.train.student import build_student
from clipette.types import Encoder, Failure

log = logging.getLogger(__name__)


def read_recipe(recipe: str | Path | None, overrides: Sequence[str] = (), *, default: str) -> tuple[Recipe, Path]:
    """A recipe by shipped name or path, and the folder that its relative paths start from."""
    path = find_recipe(recipe or default)
    base = Path() if path in shipped_recipes().values() else path.parent
    return load_yaml(Recipe, path, overrides), base


def _default_recipe(listed: Dataset | None) -> str:
    """For a teacher that is only stored, which no plan can measure: captions are worth reading where all have some."""
    captioned = listed is None or all(sample.captions for sample in listed.samples)
    return "default" if captioned else "unlabelled"


def student_spec(reference: str, recipe: Recipe) -> ModelSpec:
    """``--student``: a YAML file of a ``ModelSpec``, ``timm:NAME`` (the recipe's texts stay), ``open_clip:NAME``, or a
    run directory (a pruned model; where its text tower was left as it is, a recipe's ``text: {kind: teacher}`` stays).
    """
    from clipette.export.prune import untouched

    kind, _, name = reference.partition(":")
    if Path(reference).is_dir() and adapter_folder(Path(reference)) is not None:
        raise ConfigError(
            f"--student {reference}: that is an adaptation, a few tensors beside its base, and no model to train; it "
            "can be the --teacher, or be adapted further"
        )
    if Path(reference).is_dir():
        part = {"kind": "saved", "path": str(Path(reference).resolve())}
        shares = recipe.student.text is not None and recipe.student.text.kind == "teacher"
        if shares and "text" in untouched(Path(reference)):
            return ModelSpec.model_validate({**recipe.student.model_dump(), "image": part})
        model = load_model(Path(reference)).model
        text = {"text": part} if model.text is not None else {"text": None, "space": "teacher"}
        logits = "clip" if model.logit_bias is None else "siglip"
        return ModelSpec.model_validate({"image": part, **text, "logits": logits})
    if kind == "timm":
        image = {"kind": "timm", "name": name, "head": {"kind": "linear"}}
        return ModelSpec.model_validate({**recipe.student.model_dump(), "image": image})
    if kind == "open_clip":
        part = {"kind": "open_clip", "name": name}
        return ModelSpec.model_validate({"image": part, "text": part})
    return load_yaml(ModelSpec, Path(reference))


def pretrain(
    recipe: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    dev: str | None = None,
    out: str | Path,
    resume: bool = True,
    device: str | None = None,
) -> Path:
    """Train an image-text model on captions, without a teacher. Returns the run directory."""
    read, base = read_recipe(recipe, overrides, default="clip")
    if read.teacher is not None:
        raise ConfigError(f"recipe '{read.name}' names a teacher: use `clipette distill`")
    return _run(read, base, data=data, dev=dev, out=Path(out), resume=resume, device=device)


def distill(
    recipe: str | Path | None = None,
    *,
    teacher: str | None = None,
    data: str | None = None,
    dev: str | None = None,
    student: str | None = None,
    store: str | Path | None = None,
    teacher_online: bool = False,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    out: str | Path,
    resume: bool = True,
    device: str | None = None,
) -> Path:
    """Train a student on a teacher's outputs; what the losses need is poured first if it is not stored.

    Returns the run directory. ``teacher_online`` runs the teacher at every step instead, for comparison. Without a
    recipe the rules of ``train/budget.py`` choose student, losses and schedule, within ``budget`` (``10m``,
    ``0.1gmacs``) where there is one.
    """
    if budget is not None and (recipe is not None or teacher_online):
        raise ConfigError("--budget plans student, losses and schedule: leave out the recipe and --teacher-online")
    listed, encoder = None, None
    if recipe is None and not teacher_online:
        wanted = Budget() if budget is None else parse_budget(budget)
        if teacher is None or data is None:
            what = "distill needs a recipe; without one" if budget is None else "--budget"
            raise ConfigError(f"{what} needs --teacher and --data: they decide what is trained")
        listed = load_data(data)
        encoder = resolve(teacher, device=device, class_names=listed.class_names)
        if isinstance(encoder, TorchEncoder):
            if not resume:
                begin_anew(Path(out))
            setting = Setting(wanted, listed, encoder, Path(out), overrides=tuple(overrides), device=device)
            if student is not None:
                own = student_spec(student, read_recipe("default", default="")[0])
                start = tuple(f"{name}={json.dumps(value)}" for name, value in _start(student, own).items())
                setting = replace(setting, student=own, overrides=(*start, *setting.overrides))
            watched = None if dev is None else load_data(dev)
            recipe = plan_within(replace(setting, store=store, dev=watched))
            student, resume = None, True
        elif budget is not None:
            raise ConfigError(f"--budget measures the teacher at work, and {teacher} is only stored: name a recipe")
    read, base = read_recipe(recipe, overrides, default=_default_recipe(listed))
    if student is not None:
        spec = student_spec(student, read)
        # What a start brings is not to be written over.
        kept = {"inherit": None} if Path(student).is_dir() else {}
        read = read.model_copy(update={"student": spec, **_start(student, spec), **kept})
    if read.adapt is not None:
        if not (Path(out) / "teacher" / "summary.json").is_file() or not resume:
            _try_second_stage(read, base, teacher or read.teacher, data or read.data, device)
        if not resume:
            # Both stages, before the first one writes.
            begin_anew(Path(out))
            resume = True
        teacher = str(
            first_stage(
                read.adapt,
                base=teacher or read.teacher,
                data=data or read.data,
                out=Path(out) / "teacher",
                seed=read.seed,
                resume=resume,
                device=device,
            )
        )
        read = read.model_copy(update={"adapt": None})
    return _run(
        read,
        base,
        data=data,
        dev=dev,
        out=Path(out),
        resume=resume,
        device=device,
        teacher=teacher,
        store=store,
        online=teacher_online,
        listed=listed,
        encoder=encoder,
    )


def _start(student: str, spec: ModelSpec) -> dict[str, str]:
    """Towers that are all its own bring the scale as well; beside the teacher's texts a student has the teacher's."""
    whole = Path(student).is_dir() and (spec.text is None or spec.text.kind == "saved")
    return {"init": str(Path(student).resolve())} if whole else {}


def _try_second_stage(read: Recipe, base: Path, teacher: str | None, data: str | None, device: str | None) -> None:
    """Raise what is wrong with the second stage before the first is trained, or an old run removed."""
    if teacher is None or data is None:
        return
    encoder = resolve(teacher, device=device, classifiers=False)
    if isinstance(encoder, TorchEncoder):
        _try_student(read, base, encoder, load_data(data))


def _try_student(recipe: Recipe, base: Path, teacher: TorchEncoder, data: Dataset) -> None:
    """Raise what is wrong with student or data before a teacher is poured, which may take hours."""
    needs = needs_of(read_terms(recipe.loss))
    if "teacher_text" in needs and not any(sample.captions for sample in data.samples):
        raise DataError(
            f"{data.reference}: the losses of '{recipe.name}' read captions, and these images have none: name a recipe "
            "that does without (unlabelled; with class names promptkd-stage2), or no recipe, and it is chosen"
        )
    # Built from nothing: what it starts from is read once, when it is trained.
    tried = Job(recipe.model_copy(update={"inherit": None, "init": None}), data, base, teacher=teacher, base=base)
    if needs & {"student_classes", "teacher_classes"}:
        class_names(tried)
    build_student(tried)


def _seen_as_stored(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with the views that the store holds, which are what teacher and student see; a warning where it asks
    for others.
    """
    if recipe.views.student_only or "teacher_image" not in needs_of(read_terms(recipe.loss)):
        return recipe
    poured = store.identity.get("views") or {"count": 0, "policy": {}}
    values = {**recipe.views.model_dump(), **poured["policy"], "count": store.view_count}
    views = ViewSettings.model_validate(values)
    changed = {name: value for name, value in views.model_dump().items() if value != getattr(recipe.views, name)}
    if store.view_count == 0:
        changed = {name: value for name, value in changed.items() if name == "count"}
    if changed:
        asked = ", ".join(f"{name} {getattr(recipe.views, name)}" for name in changed)
        log.warning(
            "store %s has %s where recipe '%s' asks for %s: the stored views are used (`clipette pour --for %s` pours "
            "what it asks for)",
            store.path,
            ", ".join(f"views.{name} {value}" for name, value in changed.items()),
            recipe.name,
            asked,
            recipe.name,
        )
    return recipe.model_copy(update={"views": views})


def _run(
    recipe: Recipe,
    base: Path,
    *,
    data: str | None,
    dev: str | None,
    out: Path,
    resume: bool,
    device: str | None,
    teacher: str | None = None,
    store: str | Path | None = None,
    online: bool = False,
    listed: Dataset | None = None,
    encoder: Encoder | None = None,
) -> Path:
    given = {"data": data or recipe.data, "dev": dev or recipe.dev, "teacher": teacher or recipe.teacher}
    recipe = recipe.model_copy(update=given)
    if recipe.data is None:
        raise ConfigError("no training data: name it with --data, or in the recipe")
    train_set = load_data(recipe.data) if listed is None else listed
    classes = recipe.classes.names or train_set.class_names
    if recipe.teacher is not None and (encoder is None or recipe.classes.names):
        encoder = resolve(recipe.teacher, device=device, class_names=classes)
    if store is not None:
        recipe = _seen_as_stored(recipe, open_store(store))
    elif isinstance(encoder, TorchEncoder) and not (out / "store").exists():
        _try_student(recipe, base, encoder, train_set)
    if not resume:
        begin_anew(out)
    opened, encoder = _outputs(recipe, encoder, train_set, store, online=online, out=out)
    also = {
        name: _companion(recipe, reference, train_set, out / f"store-{name}", name, device=device)
        for name, reference in recipe.also.items()
    }
    data_set = _readable(train_set, opened)
    for each in also.values():
        data_set = _readable(data_set, each.store)
    job = Job(
        recipe=recipe,
        data=data_set,
        out=out,
        dev=None if recipe.dev is None else load_data(recipe.dev),
        teacher=encoder,
        store=opened,
        online=online,
        also=also,
        base=base,
        device=device,
    )
    run_job(job)
    return out


def _outputs(
    recipe: Recipe, teacher: Encoder | None, data: Dataset, store: str | Path | None, *, online: bool, out: Path
) -> tuple[Store | None, Encoder | None]:
    """The store to train from, poured if need be, and the teacher (the store itself where no other is named)."""
    if store is not None:
        opened = open_store(store)
        if teacher is None:
            return opened, StoredEncoder.of_store(opened)
        same = opened.identity["encoder"]["space"] == teacher.space
        if not same or (isinstance(teacher, TorchEncoder) and not poured_by(teacher, opened.identity)):
            raise ConfigError(f"store {store} was poured by another teacher than {teacher.name}: pour again")
        return opened, teacher
    reads = any(name.startswith("teacher_") for name in needs_of(read_terms(recipe.loss)))
    if teacher is None or not isinstance(teacher, TorchEncoder) or online or not reads:
        return None, teacher
    path = pour_into(teacher, data, out / "store", pour_plan(recipe), seed=recipe.seed).path
    return open_store(path), teacher


def _companion(recipe: Recipe, reference: str, data: Dataset, out: Path, name: str, *, device: str | None) -> Companion:
    """A further teacher, and its outputs for the views of the first, poured if need be."""
    teacher = resolve(reference, device=device)
    needs = needs_of(read_terms(recipe.loss), name)
    if not isinstance(teacher, TorchEncoder) or not needs & {"teacher_image", "teacher_text"}:
        return Companion(teacher)
    path = pour_into(teacher, data, out, pour_plan(recipe, name), seed=recipe.seed).path
    return Companion(teacher, open_store(path))


def _readable(data: Dataset, store: Store | None) -> Dataset:
    """The data without the samples that the pour could not read: they are recorded in the store."""
    if store is None or not store.failures:
        return data
    bad = {failure.key: failure for failure in store.failures}
    lost = [bad[sample.key] for sample in data.samples if sample.key in bad]
    if lost:
        first = f"{lost[0].location}: {lost[0].reason}"
        log.warning("%d of %d images could not be poured and are left out (%s)", len(lost), len(data), first)
    kept = data.subset(sample.key for sample in data.samples if sample.key not in bad)
    return replace(kept, failures=(*kept.failures, *(Failure(f.key, f.location, f.reason) for f in lost)))
