"""The verbs: strings and paths in, rooms put together, results out. The command line is a thin skin over this file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipette.adapt.packed import is_packed
from clipette.adapting import adapt as adapt
from clipette.adapting import adapt_study as adapt_study
from clipette.adapting import class_names_of
from clipette.benching import bench as bench
from clipette.config import validate
from clipette.data.sources import load_data
from clipette.distilling import distill as distill
from clipette.distilling import pretrain as pretrain
from clipette.distilling import read_recipe as read_recipe
from clipette.errors import ConfigError
from clipette.exporting import add_class as add_class
from clipette.exporting import export as export
from clipette.exporting import quantize as quantize
from clipette.measuring import classify as classify
from clipette.measuring import compare as compare
from clipette.measuring import evaluate as evaluate
from clipette.models.inference import TorchEncoder
from clipette.prompting import prompts as prompts
from clipette.pruning import prune as prune
from clipette.resolve import resolve
from clipette.showcase import showcase
from clipette.tasks.pour import PourPlan
from clipette.tasks.pour import pour as pour_into

log = logging.getLogger(__name__)


def pour(
    teacher: str,
    data: str | Sequence[str],
    out: str | Path,
    *,
    recipe: str | Path | None = None,
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

    ``teacher`` and ``data`` are references; ``recipe``: pours the views that it asks for, in place of ``views`` and
    ``view_policy`` (fields of ``data.views.ViewPolicy``); ``text_corpus``: further sources of texts. Returns its
    folder. Poured again, only what is missing or changed is computed.
    """
    if recipe is not None:
        if views or view_policy is not None:
            raise ConfigError("--for takes the views that its recipe asks for: leave out --views and --view-policy")
        drawn = read_recipe(recipe, default="")[0].views
        views, view_policy = drawn.count, drawn.law()
    sets = [load_data(reference) for reference in ([data] if isinstance(data, str) else data)]
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


def demo(out: str | Path = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """The whole path on the rendered sample world: teacher, student, its twin without a teacher, and a report.

    Writes into ``out``; returns the summary.
    """
    return showcase(Path(out), seed, pretrain=pretrain, distill=distill)
