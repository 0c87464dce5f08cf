"""A finished adaptation on test data: what it scores, what it may be compared with, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipette.adapt.adapter import Adapter, load_adapter
from clipette.adapt.forms import apply_adapter, keeps_images, wording_of
from clipette.adapt.learner import Frozen
from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit
from clipette.errors import DataError
from clipette.evaluate.protocol import TrainedOn, read_trained_on
from clipette.evaluate.zero_shot import class_vectors
from clipette.losses.numerics import unit
from clipette.models.inference import TorchEncoder
from clipette.tasks.adapt import freeze
from clipette.train.adapt_data import base_vectors, labels_of

MAX_FAILURES = 0.1
# Tests of base-to-novel.
HALVES = ("base", "novel")


@dataclass(frozen=True)
class Measured:
    """Top-1 by test, ``transductive`` or ``inductive`` by test, and ``parameters``, ``bytes``, ``seconds``."""

    figures: Mapping[str, float]
    protocol: Mapping[str, str]
    cost: Mapping[str, int | float]


def top1(frozen: Frozen, adapter: Adapter, data: Dataset, *, device: str) -> float:
    """Share of ``data``'s labelled images that the adapted base puts in their class, among the data's own classes.

    For methods that leave the image side alone a test set is encoded once, whatever the method, shots and seed.
    """
    samples = tuple(sample for sample in data.samples if sample.label is not None)
    if not samples:
        raise DataError(f"{data.reference}: no image has a class: nothing to measure")
    labelled = replace(data, samples=samples)
    model = apply_adapter(frozen, adapter, data.class_names)
    encoder = TorchEncoder(model, name="adapted", space="measured", device=device)
    if keeps_images(adapter):
        # The base's own vectors, whatever stands behind them: a head of the adapter's, or nothing.
        plain = TorchEncoder(frozen.model, name="base", space="measured", device=device)
        labelled, own = base_vectors(plain, labelled)
        tower = model.image_tower()
        with torch.no_grad():
            found = own if tower is frozen.model.image_tower() else unit(tower.head(own))
        vectors = found.cpu().numpy()
    else:
        encoded = encoder.encode_samples(labelled.samples)
        FailureLimit(MAX_FAILURES).check(encoded.failures, len(labelled), what=f"images of {data.reference}")
        labelled, vectors = labelled.subset(encoded.keys), encoded.vectors
    classes = class_vectors(encoder, data.class_names, wording_of(adapter))
    return float(((vectors @ classes.T).argmax(axis=1) == labels_of(labelled).numpy()).mean())


def measure_run(base: TorchEncoder, folder: Path, tests: Mapping[str, Dataset]) -> Measured:
    """The run in ``folder``, over its ``base``, on each of the ``tests``."""
    frozen, adapter, seen = freeze(base), load_adapter(folder).adapter, read_trained_on(folder)
    summary = json.loads((folder / "summary.json").read_text())
    return Measured(
        {name: top1(frozen, adapter, test, device=str(base.device)) for name, test in tests.items()},
        {name: "" if seen is None else _label(seen, name, test) for name, test in tests.items()},
        {name: summary[name] for name in ("parameters", "bytes", "seconds")},
    )


def _label(seen: TrainedOn, name: str, test: Dataset) -> str:
    """As ``evaluate`` says it; of base-to-novel's halves transductive where a test image was seen, or a novel class.

    A few labelled shots of base classes, whose other images are tested, are what that protocol is: inductive.
    """
    if name not in HALVES:
        return seen.protocol(test, test.class_names)
    images, classes = seen.images_of(test), sum(seen.knows(test.class_names))
    label = "transductive" if images or (name == "novel" and classes) else "inductive"
    return (
        f"{label} (trained on {classes} of its {len(test.class_names)} classes and {images} of its {len(test)} images)"
    )
