"""The verbs: strings and paths in, rooms put together, results out. The command line is a thin skin over this file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipette.adapt.adapter import adapter_folder
from clipette.adapt.packed import is_packed
from clipette.adapting import adapt as adapt
from clipette.adapting import adapt_study as adapt_study
from clipette.adapting import class_names_of, first_stage
from clipette.benching import bench as bench
from clipette.config import find_recipe, load_yaml, shipped_recipes, validate
from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.data.views import ViewPolicy
from clipette.errors import ConfigError
from clipette.exporting import add_class as add_class
from clipette.exporting import export as export
from clipette.exporting import quantize as quantize
from clipette.measuring import classify as classify
from clipette.measuring import compare as compare
from clipette.measuring import evaluate as evaluate
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model
from clipette.models.spec import ModelSpec
from clipette.models.stored import StoredEncoder
from clipette.models.students import build_model
from clipette.prompting import prompts as prompts
from clipette.pruning import prune as prune
from clipette.resolve import resolve
from clipette.showcase import showcase
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan, poured_by
from clipette.tasks.pour import pour as pour_into
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.anew import begin_anew
from clipette.train.job import Companion, Job, shares_text
from clipette.train.recipe import Recipe
from clipette.train.run import run_job
from clipette.types import Encoder, Failure

log = logging.getLogger(__name__)


def pour(
    teacher: str,
    data: Sequence[str],
    out: str | Path,
    *,
    captions: bool = True,
    classes: bool = True,
    templates: str = "single",
    views: int = 0,
    view_policy: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    device: str | None = None,
    precision: str = "auto",
    max_failures: float = 0.1,
    seed: int = 0,
    text_corpus: Sequence[str] = (),
) -> Path:
    """Pour a teacher's outputs for images, views, captions and class texts into a store, once.

    ``teacher`` and ``data`` are references; ``view_policy``: fields of ``data.views.ViewPolicy``; ``text_corpus``:
    further sources of texts. Returns the store's folder. Poured again, only what is missing or changed is computed.
    """
    sets = [load_data(reference) for reference in data]
    encoder = resolve(teacher, device=device, class_names=class_names_of(sets))
    if not isinstance(encoder, TorchEncoder):
        raise ConfigError(f"{teacher} is stored already: distil from it directly, or import it with `stored:`")
    texts = [text for reference in text_corpus for s in load_data(reference).samples for text in s.captions]
    policy = {} if view_policy is None else {"policy": dict(view_policy)}
    if is_packed(encoder.model):
        if texts or (captions and any(sample.captions for each in sets for sample in each.samples)):
            log.warning("%s is a classifier, which knows its classes alone: no captions are poured", teacher)
        captions, texts = False, []
    named = classes and any(each.class_names for each in sets)
    asked = {
        "views": views,
        "captions": captions,
        "templates": templates if named else None,
        "batch_size": batch_size,
        "precision": precision,
        "max_failures": max_failures,
        **policy,
    }
    plan = validate(PourPlan, asked, where="pour")
    report = pour_into(encoder, sets, out, plan, seed=seed, texts=texts)
    lost = len(report.failures) + sum(len(each.failures) for each in sets)
    if lost:
        log.warning("%d samples were left out: `clipette store %s` names them and says why", lost, report.path)
    return report.path


def read_recipe(recipe: str | Path | None, overrides: Sequence[str] = (), *, default: str) -> tuple[Recipe, Path]:
    """A recipe by shipped name or path, and the folder that its relative paths start from."""
    path = find_recipe(recipe or default)
    base = Path() if path in shipped_recipes().values() else path.parent
    return load_yaml(Recipe, path, overrides), base


def _default_recipe(listed: Dataset | None) -> str:
    """Captions are worth reading where there are any."""
    captioned = listed is None or any(sample.captions for sample in listed.samples)
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

    Returns the run directory. ``teacher_online`` runs the teacher at every step instead, for comparison. ``budget``
    (``10m``, ``0.1gmacs``): in place of a recipe; the rules of ``train/budget.py`` choose student, losses, schedule.
    """
    if budget is not None:
        if recipe is not None or teacher_online:
            raise ConfigError("--budget plans student, losses and schedule: leave out the recipe and --teacher-online")
        own = None if student is None else student_spec(student, read_recipe("default", default="default")[0])
        rest: dict[str, Any] = {"store": store, "overrides": overrides, "device": device, "resume": resume}
        recipe = _plan(budget, teacher, data, Path(out), dev=dev, student=own, **rest)
        student, resume = None, True
    listed = load_data(data) if recipe is None and data is not None else None
    read, base = read_recipe(recipe, overrides, default=_default_recipe(listed))
    if student is not None:
        spec = student_spec(student, read)
        saved = Path(student).is_dir()
        # Towers that are all its own bring the scale as well; beside the teacher's texts it has the teacher's.
        whole = saved and (spec.text is None or spec.text.kind == "saved")
        start = {"init": str(Path(student).resolve())} if whole else {}
        # What a start brings is not to be written over.
        read = read.model_copy(update={"student": spec, **start, **({"inherit": None} if saved else {})})
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
    )


def _plan(
    budget: str,
    teacher: str | None,
    data: str | None,
    out: Path,
    *,
    dev: str | None,
    student: ModelSpec | None,
    store: str | Path | None,
    overrides: Sequence[str],
    device: str | None,
    resume: bool,
) -> Path:
    """The recipe that a budget buys, written beside the run."""
    from clipette.train.budget import parse_budget
    from clipette.train.planning import Setting, plan_within

    wanted = parse_budget(budget)
    if teacher is None or data is None:
        raise ConfigError("--budget needs --teacher and --data: they decide what it buys")
    listed = load_data(data)
    encoder = resolve(teacher, device=device)
    if not isinstance(encoder, TorchEncoder):
        raise ConfigError(f"--budget measures the teacher at work, and {teacher} is only stored: name a recipe")
    if not resume:
        begin_anew(out)
    return plan_within(
        Setting(
            budget=wanted,
            data=listed,
            teacher=encoder,
            out=out,
            store=None if store is None else Path(store),
            dev=None if dev is None else load_data(dev),
            student=student,
            overrides=tuple(overrides),
            device=device,
        )
    )


def _try_second_stage(read: Recipe, base: Path, teacher: str | None, data: str | None, device: str | None) -> None:
    """Raise what is wrong with the second stage before the first is trained, or an old run removed."""
    if teacher is None or data is None:
        return
    captions = [caption for sample in load_data(data).samples for caption in sample.captions]
    encoder = resolve(teacher, device=device, classifiers=False)
    if isinstance(encoder, TorchEncoder):
        build_model(read.student, base=base, teacher=encoder.model, captions=captions, seed=read.seed)


def demo(out: str | Path = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """The whole path on the rendered sample world: teacher, student, its twin without a teacher, and a report.

    Writes into ``out``; returns the summary.
    """
    return showcase(Path(out), seed, pretrain=pretrain, distill=distill)


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
) -> Path:
    given = {"data": data or recipe.data, "dev": dev or recipe.dev, "teacher": teacher or recipe.teacher}
    recipe = recipe.model_copy(update=given)
    if recipe.data is None:
        raise ConfigError("no training data: name it with --data, or in the recipe")
    train_set = load_data(recipe.data) if listed is None else listed
    classes = recipe.classes.names or train_set.class_names
    encoder = None if recipe.teacher is None else resolve(recipe.teacher, device=device, class_names=classes)
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
    needs = needs_of(read_terms(recipe.loss))
    reads = any(name.startswith("teacher_") for name in needs)
    if teacher is None or not isinstance(teacher, TorchEncoder) or online or not reads:
        return None, teacher
    captions = "teacher_text" in needs or (shares_text(recipe) and "student_text" in needs)
    plan = _pour_plan(recipe, images="teacher_image" in needs, captions=captions)
    path = pour_into(teacher, data, out / "store", plan, seed=recipe.seed).path
    return open_store(path), teacher


def _companion(recipe: Recipe, reference: str, data: Dataset, out: Path, name: str, *, device: str | None) -> Companion:
    """A further teacher, and its outputs for the views of the first, poured if need be."""
    teacher = resolve(reference, device=device)
    needs = needs_of(read_terms(recipe.loss), name)
    if not isinstance(teacher, TorchEncoder) or not needs & {"teacher_image", "teacher_text"}:
        return Companion(teacher)
    plan = _pour_plan(recipe, images="teacher_image" in needs, captions="teacher_text" in needs)
    return Companion(teacher, open_store(pour_into(teacher, data, out, plan, seed=recipe.seed).path))


def _pour_plan(recipe: Recipe, *, images: bool, captions: bool) -> PourPlan:
    return PourPlan(
        images=images and recipe.views.count == 0,
        views=recipe.views.count if images else 0,
        captions=captions,
        policy=recipe.views.policy() or ViewPolicy(),
    )


def _readable(data: Dataset, store: Store | None) -> Dataset:
    """The data without the samples that the pour could not read: they are recorded in the store."""
    if store is None or not store.failures:
        return data
    bad = {failure.key: failure for failure in store.failures}
    lost = [bad[sample.key] for sample in data.samples if sample.key in bad]
    kept = data.subset(sample.key for sample in data.samples if sample.key not in bad)
    return replace(kept, failures=(*kept.failures, *(Failure(f.key, f.location, f.reason) for f in lost)))
