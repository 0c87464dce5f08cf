"""What an adaptation sees: the shots, their labels, and the base's own vectors of images, computed once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.learner import Frozen
from clipette.adapt.learners import LEARNERS
from clipette.adapt.settings import LOOP, TPT, ZeroShot
from clipette.adapt.upl import pseudo_labels, teacher_probabilities
from clipette.data.dataset import Classes, Dataset
from clipette.data.loading import FailureLimit, iter_images
from clipette.data.views import ViewPolicy
from clipette.errors import ConfigError, DataError, StoreError
from clipette.io import digest_json
from clipette.losses.numerics import unit
from clipette.metrics.classification import base_count
from clipette.models.inference import TorchEncoder
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan, pour
from clipette.train.adapt_recipe import AdaptRecipe
from clipette.train.frozen import cache_folder, image_trunk_features
from clipette.types import Failure

log = logging.getLogger(__name__)


def chosen_data(data: Dataset, recipe: AdaptRecipe) -> Dataset:
    """The recipe's classes and shots of ``data``.

    Raises:
        DataError: no class names; images without a class where labels are given.
    """
    if not data.class_names:
        raise DataError(
            f"{data.reference}: to adapt, classes must have names, two or more of them: one folder of images for each "
            "class, or their names in a file, ?names=FILE"
        )
    if recipe.labels.source == "pseudo":
        return _unlabelled(data, recipe.classes)
    data = data.filter(classes=recipe.classes)
    known = tuple(sample for sample in data.samples if sample.label is not None)
    if not known:
        raise DataError(
            f"{data.reference}: no image has a class: use the recipe upl, or "
            "labels: {source: pseudo}, for unlabelled images"
        )
    data = replace(data, samples=known)
    tell_of_shots(data, recipe.shots)
    return data if recipe.shots is None else data.few_shot(recipe.shots, recipe.seed)


def tell_of_shots(data: Dataset, shots: int | None) -> None:
    """Warn where classes have fewer images than are asked for."""
    if shots is None:
        return
    counts = Counter(sample.label for sample in data.samples if sample.label is not None)
    short = [name for label, name in enumerate(data.class_names) if counts[label] < shots]
    if short:
        log.warning("%s: %d classes have fewer than %d images (%s, ...)", data.reference, len(short), shots, short[0])


def _unlabelled(data: Dataset, classes: Classes) -> Dataset:
    """All images, to be told apart into these classes; where they have labels, the images of these classes alone."""
    if any(sample.label is not None for sample in data.samples) or classes == "all":
        return data.filter(classes=classes)
    middle = base_count(len(data.class_names))
    return replace(data, class_names=data.class_names[:middle] if classes == "base" else data.class_names[middle:])


def base_vectors(base: TorchEncoder, data: Dataset, *, max_failures: float = 0.1) -> tuple[Dataset, Tensor]:
    """The images that can be read, and an encoder's unit vectors [n, D] of them.

    What its trunk says is kept on disk: for all that share the base's trunk, images are encoded once.
    """
    tower = base.model.image_tower()
    try:
        trunk = _kept_trunk(base, data)
    except DataError:
        # One cannot be read, or more: find them, and go on without.
        data = _without_damaged(base, data, max_failures)
        trunk = _kept_trunk(base, data)
    with torch.no_grad():
        return data, unit(tower.eval().head(trunk.to(base.device)))


def _kept_trunk(base: TorchEncoder, data: Dataset) -> Tensor:
    return image_trunk_features(
        base.model.image_tower(),
        data.samples,
        policy=None,
        views=1,
        seed=0,
        folder=cache_folder(),
        device=base.device,
        settings=base.settings,
    )[:, 0]


def _without_damaged(base: TorchEncoder, data: Dataset, max_failures: float) -> Dataset:
    kept, failures = [], []
    for at, image in iter_images(data.samples, settings=base.settings, want=base.model.image_tower().preprocess.size):
        if isinstance(image, Failure):
            failures.append(image)
        else:
            kept.append(data.samples[at])
    FailureLimit(max_failures).check(failures, len(data), what=f"images of {data.reference}")
    return replace(data, samples=tuple(kept), failures=(*data.failures, *failures))


def learns(recipe: AdaptRecipe) -> bool:
    """Whether the method learns anything of the training images."""
    return not isinstance(recipe.method, TPT | ZeroShot)


def reads_store(recipe: AdaptRecipe) -> bool:
    """Whether the method reads the base's stored vectors of the training images."""
    method = recipe.method
    if isinstance(method, LOOP):
        return LEARNERS[method.kind].reads == "vectors" or LEARNERS[method.kind].compares
    return learns(recipe)


def poured(
    base: TorchEncoder, data: Dataset, recipe: AdaptRecipe, folder: Path, *, seed: int, progress: bool
) -> tuple[Store, Dataset]:
    """The base's vectors of the recipe's views of ``data`` in a store, and the samples that could be read."""
    plan = _plan(recipe)
    store = open_store(pour(base, data, folder, plan, seed=seed, progress=progress).path)
    return store, _readable(data, store)


def _plan(recipe: AdaptRecipe) -> PourPlan:
    count, policy = recipe.views.count, recipe.views.policy() or ViewPolicy()
    lost = recipe.train.max_failures
    return PourPlan(images=count == 0, views=count, captions=False, policy=policy, max_failures=lost)


def given_store(base: TorchEncoder, path: Path, data: Dataset, recipe: AdaptRecipe) -> tuple[Store, Dataset]:
    """A store that is there already. Raises ``ConfigError`` where another model poured it, or other views."""
    store, plan = open_store(path), _plan(recipe)
    if store.identity["encoder"]["space"] != base.space:
        raise ConfigError(f"store {path} was poured by another model than {base.name}: pour again, or leave it out")
    held = {name: value for name, value in (store.identity.get("views") or {}).items() if name != "seed"}
    asked = {"count": plan.views, "policy": plan.policy.to_dict()} if plan.views else {}
    if digest_json(held) != digest_json(asked):
        raise ConfigError(
            f"store {path} holds {_told(held)} of each image, the recipe's views are {_told(asked)}: set views as the "
            "store has them (--set views.count=..., views.scale=...), or leave it out"
        )
    return store, _readable(data, store)


def _told(views: Mapping[str, Any]) -> str:
    return f"{views['count']} views by {views['policy']}" if views else "the whole"


def _readable(data: Dataset, store: Store) -> Dataset:
    keys = {sample.key for sample in data.samples}
    bad = {failure.key for failure in store.failures} & keys
    lost = tuple(Failure(f.key, f.location, f.reason) for f in store.failures if f.key in keys)
    return data if not bad else replace(
        data, samples=tuple(s for s in data.samples if s.key not in bad), failures=(*data.failures, *lost)
    )  # fmt: skip


def stored_shots(store: Store, data: Dataset, device: torch.device) -> Shots:
    """Labelled vectors [V, n, D] of every stored view, or [n, D] of whole images."""
    keys = [sample.key for sample in data.samples]
    if store.views is not None:
        vectors = store.views.vectors(store.views.view_rows(keys).T)
    elif store.images is not None:
        vectors = store.images.vectors(store.images.rows(keys))
    else:
        raise StoreError(f"{store.path} holds no images: pour them first")
    return Shots(unit(torch.from_numpy(np.ascontiguousarray(vectors)).to(device)), labels_of(data).to(device))


def labels_of(data: Dataset) -> Tensor:
    """[n] class numbers. Raises ``DataError`` for an image without a class."""
    bare = next((sample for sample in data.samples if sample.label is None), None)
    if bare is not None:
        raise DataError(f"{data.reference}: image '{bare.key}' has no class: leave it out")
    return torch.tensor([int(sample.label or 0) for sample in data.samples], dtype=torch.int64)


def pseudo_labelled(base: TorchEncoder, frozen: Frozen, data: Dataset, recipe: AdaptRecipe) -> Dataset:
    """The images that the zero-shot classifier is most confident of, with its labels in place of any they have.

    Of each class ``recipe.shots`` where they are given, else ``labels.per_class``.

    Paper: Huang et al. (UPL), 2022, section 3.2. Raises ``DataError`` where none is confident enough.
    """
    settings = recipe.labels
    data, vectors = base_vectors(base, data, max_failures=recipe.train.max_failures)
    texts = ClassTexts(
        frozen.class_vectors(data.class_names, recipe.templates), float(base.model.scale), float(base.model.bias)
    )
    found = pseudo_labels(
        teacher_probabilities([(texts, vectors)]), recipe.shots or settings.per_class, at_least=settings.at_least
    )
    if not len(found.rows):
        raise DataError(f"{data.reference}: no image is as confident as labels.at_least {settings.at_least}: lower it")
    if found.missing:
        names = ", ".join(data.class_names[label] for label in found.missing[:5])
        log.warning(
            "pseudo-labels: %d classes have no image (%s): they are known by their texts", len(found.missing), names
        )
    samples = tuple(
        replace(data.samples[row], label=label, class_name=data.class_names[label])
        for row, label in zip(found.rows.tolist(), found.labels.tolist(), strict=True)
    )
    return replace(data, samples=samples)


def named_alike(data: Dataset, classes: Sequence[str]) -> Dataset:
    """``data``'s images of these classes, numbered as they are. Raises ``DataError`` where there is none."""
    places = {name: place for place, name in enumerate(classes)}
    samples = tuple(
        replace(sample, label=places[sample.class_name])
        for sample in data.samples
        if sample.class_name is not None and sample.class_name in places
    )
    if not samples:
        raise DataError(
            f"{data.reference}: no image is of the classes that are learned ({', '.join(classes[:3])}, ...)"
        )
    return replace(data, samples=samples, class_names=tuple(classes))
