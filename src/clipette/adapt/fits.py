"""Methods on stored features by name: shots in, an adapter out."""

from __future__ import annotations

from dataclasses import replace

import torch

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.clip_adapter import ClipAdapterSettings, fit_clip_adapter
from clipette.adapt.features import ClassTexts, Shots
from clipette.adapt.fitting import Harness
from clipette.adapt.linear_probe import LinearProbeSettings, fit_linear_probe
from clipette.adapt.task_res import TaskResSettings, fit_task_res
from clipette.adapt.tip_adapter import TipAdapterSettings, fit_tip_adapter


def fit_method(
    how: settings.OnFeatures,
    base: ClassTexts,
    shots: Shots,
    dev: Shots | None,
    *,
    classes: tuple[str, ...],
    templates: str,
    seed: int,
) -> Adapter:
    """Fit ``how`` to the labelled vectors; ``dev`` alone chooses where there is something to choose.

    ``templates``: what ``base``'s class texts are worded by. Raises as the method's own ``fit_…``.
    """
    if isinstance(how, settings.ClipAdapter):
        return _clip_adapter(how, base, shots, dev, classes, templates, seed)
    if isinstance(how, settings.TipAdapter):
        return _tip_adapter(how, base, shots, dev, classes, templates, seed)
    if isinstance(how, settings.TaskRes):
        return _taskres(how, base, shots, dev, classes, templates, seed)
    return _linear_probe(how, base, shots, dev, classes, templates)


def _harness(own: Harness, changes: settings.Fit, seed: int) -> Harness:
    named = {name: value for name, value in changes.model_dump().items() if value is not None}
    return replace(own, seed=seed, **named)


def _clip_adapter(
    how: settings.ClipAdapter,
    base: ClassTexts,
    shots: Shots,
    dev: Shots | None,
    classes: tuple[str, ...],
    templates: str,
    seed: int,
) -> Adapter:
    own = ClipAdapterSettings(ratios=how.ratios, reduction=how.reduction)
    found = fit_clip_adapter(base, shots, replace(own, harness=_harness(own.harness, how.fit, seed)), dev)
    facts = {"ratio": found.ratio, "epoch": found.course.epoch}
    return Adapter("image-head", classes, templates, facts, _detached(found.tensors()))


def _tip_adapter(
    how: settings.TipAdapter,
    base: ClassTexts,
    shots: Shots,
    dev: Shots | None,
    classes: tuple[str, ...],
    templates: str,
    seed: int,
) -> Adapter:
    own = TipAdapterSettings(alpha=how.alpha, beta=how.beta)
    own = replace(own, harness=_harness(own.harness, how.fit, seed))
    found = fit_tip_adapter(base, shots, own, dev, train_keys=how.train_keys)
    facts = {"alpha": found.alpha, "beta": found.beta, "epoch": None if found.course is None else found.course.epoch}
    return Adapter("cache", classes, templates, facts, _detached(found.tensors()))


def _taskres(
    how: settings.TaskRes,
    base: ClassTexts,
    shots: Shots,
    dev: Shots | None,
    classes: tuple[str, ...],
    templates: str,
    seed: int,
) -> Adapter:
    own = TaskResSettings(scales=how.scales)
    found = fit_task_res(base, shots, replace(own, harness=_harness(own.harness, how.fit, seed)), dev)
    facts = {"scale": found.scale, "epoch": found.course.epoch}
    return Adapter("class-vectors", classes, templates, facts, {"vectors": found.classes().detach().contiguous()})


def _linear_probe(
    how: settings.LinearProbe,
    base: ClassTexts,
    shots: Shots,
    dev: Shots | None,
    classes: tuple[str, ...],
    templates: str,
) -> Adapter:
    start = base if how.text_start else None
    found = fit_linear_probe(shots, len(classes), LinearProbeSettings(c=how.c), dev, base=start)
    facts = {"c": found.c, "text_start": how.text_start}
    return Adapter("linear", classes, templates, facts, _detached(found.tensors()))


def _detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}
