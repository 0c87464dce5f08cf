"""The one figure of the task that a data set poses."""

from __future__ import annotations

from clipette.data.dataset import Dataset
from clipette.evaluate.results import Figure
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.wording import fitting_templates, known_texts
from clipette.evaluate.zero_shot import zero_shot
from clipette.types import Encoder


def task_templates(encoder: Encoder, data: Dataset) -> str:
    """``single``, or the wording that stored texts have."""
    return "single" if known_texts(encoder) is None else fitting_templates([encoder], data.class_names)


def task_figure(encoder: Encoder, data: Dataset, templates: str) -> tuple[str, Figure]:
    """``mean_recall`` where there are captions, else zero-shot ``top1``: (name, figure)."""
    if any(sample.captions for sample in data.samples):
        return "mean_recall", retrieval(encoder, data).mean_recall
    return "top1", zero_shot(encoder, data, templates).top1
