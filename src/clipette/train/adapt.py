"""One adaptation, run: the base frozen, its vectors computed once, a method learned, an adapter left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipette.adapt import settings
from clipette.adapt.adapter import FACTS, Adapter, check_base, load_adapter, save_adapter
from clipette.adapt.context import ClassContext, start_of
from clipette.adapt.features import ClassTexts
from clipette.adapt.fits import fit_method
from clipette.adapt.learner import Frozen, Learner
from clipette.adapt.learners import build_learner
from clipette.adapt.tpt import TPTSettings
from clipette.config import dump_yaml
from clipette.data.dataset import Dataset
from clipette.data.prompts import find_templates
from clipette.errors import ConfigError
from clipette.evaluate.protocol import TrainedOn, read_trained_on
from clipette.evaluate.run_report import write_run_report
from clipette.io import digest_json, write_atomic, write_json
from clipette.models.core import weights_digest
from clipette.models.inference import TorchEncoder
from clipette.store import Store
from clipette.tasks.adapt import AdaptTask, freeze
from clipette.tasks.feed import Feed, FeedPlan
from clipette.tasks.outputs import StoredOutputs
from clipette.train.adapt_data import (
    base_vectors,
    chosen_data,
    given_store,
    labels_of,
    learns,
    named_alike,
    poured,
    pseudo_labelled,
    reads_store,
    stored_shots,
)
from clipette.train.adapt_measure import top1
from clipette.train.adapt_recipe import AdaptRecipe
from clipette.train.lock import only_one
from clipette.train.loop import Dev, Loop
from clipette.train.ranks import barrier, rank, world_size
from clipette.types import Failure


@dataclass(frozen=True)
class AdaptJob:
    """All that an adaptation needs, resolved. ``reference``: where the base is found again; ``store``: its vectors of
    the recipe's views, poured beforehand; ``pool``: a store of several runs, to which each adds what it lacks. Without
    either, ``out/store``."""

    recipe: AdaptRecipe
    base: TorchEncoder
    reference: str
    data: Dataset
    out: Path
    dev: Dataset | None = None
    store: Path | None = None
    pool: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class Adapted:
    """What a run left: the adapter chosen, what it cost, and how it scores on dev where there is some."""

    adapter: Adapter
    parameters: int
    seconds: float
    steps: int = 0
    dev: float | None = None
    failures: tuple[Failure, ...] = ()


def run_adapt(job: AdaptJob) -> Adapted:
    """Adapt the job's base and write ``job.out``: ``model/adapter.json`` and ``.safetensors``, recipe, summary, report.

    The base's weights are the same bytes before and after. Raises ``ConfigError``, ``DataError`` or ``ModelError`` at
    the start for parts that cannot work together; ``ConfigError`` where another process is at work in ``job.out``.
    """
    with only_one(job.out):
        return _run(job)


def _run(job: AdaptJob) -> Adapted:
    recipe = job.recipe
    find_templates(recipe.templates)
    if job.store is not None and not reads_store(recipe):
        raise ConfigError(
            f"{recipe.method.kind} reads no stored vectors of the training images: leave the store {job.store} out"
        )
    weights = weights_digest(job.base.model)
    frozen = freeze(job.base)
    data = chosen_data(job.data, recipe)
    identity = _identity(recipe, data, job.dev, weights)
    _refuse_another(job.out, identity)
    # What chooses its own labels has seen every image, and not those alone that it learns from.
    told = recipe.labels.source == "given"
    seen = TrainedOn.of(data, data.class_names, labelled=told) if learns(recipe) else _nothing_seen(job)
    seen = seen.upon(job.reference)
    if recipe.labels.source == "pseudo":
        data = pseudo_labelled(job.base, frozen, data, recipe)
    job = replace(job, data=data, dev=None if job.dev is None else named_alike(job.dev, data.class_names))
    if rank() == 0:
        write_atomic(job.out / "recipe.yaml", dump_yaml(recipe).encode())
    barrier()
    found = _learn(job, frozen, identity, weights)
    if rank() == 0:
        _save(job, found, seen, weights, identity)
    barrier()
    return found


def _identity(recipe: AdaptRecipe, data: Dataset, dev: Dataset | None, weights: str) -> str:
    told = recipe.model_dump(mode="json", exclude={"about", "paper", "name", "dev", "base", "data"})
    chosen_by = None if dev is None else dev.fingerprint()
    seen = {"data": data.fingerprint(), "dev": chosen_by}
    return digest_json({"recipe": told, **seen, "base": weights, "ranks": world_size()})


def _refuse_another(out: Path, identity: str) -> None:
    path = out / "summary.json"
    if path.is_file() and json.loads(path.read_text()).get("identity") != identity:
        raise ConfigError(f"{out} holds another run: choose another --out, or begin anew with --no-resume")


def _nothing_seen(job: AdaptJob) -> TrainedOn:
    """Of a method that learns nothing beforehand: what the run that it begins from has seen."""
    nothing = TrainedOn.of(replace(job.data, samples=(), class_names=()))
    start = job.recipe.method.from_run if isinstance(job.recipe.method, settings.TPT) else None
    return nothing if start is None else nothing.joined(read_trained_on(start))


def _learn(job: AdaptJob, frozen: Frozen, identity: str, weights: str) -> Adapted:
    method, classes = job.recipe.method, job.data.class_names
    if isinstance(method, settings.LOOP):
        return _trained(job, frozen, identity)
    if isinstance(method, settings.ZeroShot):
        return Adapted(Adapter("zero-shot", classes, job.recipe.templates), 0, 0.0)
    if isinstance(method, settings.TPT):
        return Adapted(_untuned(method, frozen, classes, weights), 0, 0.0)
    return _fitted(job, frozen)


# ---------------------------------------------------------------- methods that the loop trains


def _trained(job: AdaptJob, frozen: Frozen, identity: str) -> Adapted:
    recipe, device = job.recipe, job.base.device
    assert isinstance(recipe.method, settings.LOOP)
    learner = build_learner(recipe.method, frozen, job.data.class_names, templates=recipe.templates, seed=recipe.seed)
    task = AdaptTask(learner, frozen.model)
    feed, lost = _feed(job, learner)
    meter = _meter(job, frozen)
    # The best of several: those with no effect would say the same at each step.
    dev = None if meter is None else Dev(lambda: {"top1": max(map(meter, learner.adapters()))}, "top1")
    train = recipe.train.model_copy(update={"batch_size": feed.plan.batch_size})
    loop = Loop(task, feed, train, folder=job.out, seed=recipe.seed, device=device, dev=dev, identity=identity)
    try:
        result = loop.run(progress=job.progress)
    finally:
        feed.close()
    adapter, score = _chosen(learner.adapters(), meter, recipe.method.kind)
    count = sum(parameter.numel() for parameter in learner.module.parameters() if parameter.requires_grad)
    return Adapted(adapter, count, result.seconds, result.steps, score, (*lost, *feed.failures))


def _feed(job: AdaptJob, learner: Learner) -> tuple[Feed, tuple[Failure, ...]]:
    """Batches of what the learner reads: the base's stored vectors, pixels, or both of the same views; and what was
    left out, for it could not be read."""
    recipe, data = job.recipe, job.data
    stored = learner.reads == "vectors" or learner.compares
    outputs = None
    if stored:
        store, data = _store(job)
        outputs = StoredOutputs(store, data.samples, (), seed=recipe.seed)
    labels_of(data)
    plan = FeedPlan(
        # A batch cannot hold more than there is; few shots of few classes are fewer than published batches.
        batch_size=min(recipe.train.batch_size, len(data)),
        seed=recipe.seed,
        preprocess=job.base.model.image_tower().preprocess,
        policy=recipe.views.policy(),
        images=learner.reads == "pixels",
        texts=False,
        teacher_images=stored,
        threads=recipe.train.loader_threads,
        cache_mb=recipe.train.cache_mb,
        settings=job.base.settings,
        max_failures=recipe.train.max_failures,
    )
    return Feed(data.samples, plan, outputs), data.failures


def _store(job: AdaptJob) -> tuple[Store, Dataset]:
    if job.store is not None:
        return given_store(job.base, job.store, job.data, job.recipe)
    if job.pool is not None:
        return poured(job.base, job.data, job.recipe, job.pool, seed=0, progress=job.progress)
    return poured(job.base, job.data, job.recipe, job.out / "store", seed=job.recipe.seed, progress=job.progress)


Measure = Callable[[Adapter], float]


def _meter(job: AdaptJob, frozen: Frozen) -> Measure | None:
    """Top-1 on dev of a base under an adapter."""
    dev = job.dev
    return None if dev is None else lambda adapter: top1(frozen, adapter, dev, device=str(job.base.device))


def _chosen(adapters: tuple[Adapter, ...], meter: Measure | None, kind: str) -> tuple[Adapter, float | None]:
    """The best on validation images, the earlier of equal ones. Raises ``ConfigError`` where there are none to ask."""
    if meter is None:
        if len(adapters) > 1:
            raise ConfigError(f"{kind}: {len(adapters)} values to choose from and no validation images: give --dev")
        return adapters[0], None
    scores = [meter(adapter) for adapter in adapters]
    best = scores.index(max(scores))
    return adapters[best], scores[best]


# ---------------------------------------------------------------- methods on stored features, and at test time


def _fitted(job: AdaptJob, frozen: Frozen) -> Adapted:
    recipe, classes = job.recipe, job.data.class_names
    assert isinstance(recipe.method, settings.ON_FEATURES)
    store, data = _store(job)
    model = frozen.model
    texts = ClassTexts(frozen.class_vectors(classes, recipe.templates), float(model.scale), float(model.bias))
    shots, dev = stored_shots(store, data, frozen.device), None
    if job.dev is not None:
        readable, vectors = base_vectors(job.base, job.dev, max_failures=recipe.train.max_failures)
        dev = type(shots)(vectors, labels_of(readable).to(frozen.device))
    begun = time.perf_counter()
    adapter = fit_method(
        recipe.method, texts, shots, dev, classes=classes, templates=recipe.templates, seed=recipe.seed
    )
    seconds = time.perf_counter() - begun
    meter = _meter(job, frozen)
    score = None if meter is None else meter(adapter)
    trained = not isinstance(recipe.method, settings.TipAdapter) or recipe.method.train_keys
    count = sum(value.numel() for value in adapter.tensors.values() if value.is_floating_point() and trained)
    return Adapted(adapter, count, seconds, dev=score, failures=data.failures)


def _untuned(method: settings.TPT, frozen: Frozen, classes: tuple[str, ...], weights: str) -> Adapter:
    """TPT before any image: the prompt that each begins with. ``weights``: the base's digest."""
    start = start_of(frozen.model.text_tower(), method.tokens, method.start, seed=0)
    facts = ClassContext.of(frozen, classes, method.tokens, rest=start.rest).facts()
    context = start.value
    if method.from_run is not None:
        saved = load_adapter(Path(method.from_run))
        check_base(saved, weights, Path(method.from_run))
        learned = saved.adapter
        if learned.form != "prompts" or set(learned.tensors) != {"context"}:
            raise ConfigError(f"method.from_run {method.from_run}: TPT begins from a CoOp run with one context for all")
        facts, context = {"shape": learned.facts["shape"]}, learned.tensors["context"]
    how = TPTSettings(views=method.views, share=method.share, steps=method.steps, lr=method.lr)
    return Adapter("tuned", classes, "single", {**facts, "settings": asdict(how)}, {"context": context})


# ---------------------------------------------------------------- what is left


def _save(job: AdaptJob, found: Adapted, seen: TrainedOn, weights: str, identity: str) -> None:
    recipe, folder = job.recipe, job.out / "model"
    card: dict[str, Any] = {
        "recipe": recipe.name,
        "method": recipe.method.kind,
        "paper": recipe.paper,
        "base": {"name": job.base.name, "reference": job.reference, "weights": weights},
        "data": job.data.reference,
        "trained_on": {"images": len(job.data) if learns(recipe) else 0, "classes": len(seen.classes)},
        "labels": recipe.labels.source,
        "seed": recipe.seed,
        "steps": found.steps,
        "seconds": round(found.seconds, 2),
    }
    save_adapter(found.adapter, folder, name=job.out.name, reference=job.reference, weights=weights, card=card)
    seen.write(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.stem == Path(FACTS).stem)
    summary = {
        **card,
        "identity": identity,
        "form": found.adapter.form,
        "facts": dict(found.adapter.facts),
        "parameters": found.parameters,
        "bytes": size,
        "dev_top1": found.dev,
        "failures": [asdict(failure) for failure in found.failures or job.data.failures],
    }
    write_json(job.out / "summary.json", json.loads(json.dumps(summary)))
    write_run_report(job.out)
