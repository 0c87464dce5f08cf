"""What a teacher's answers are worth where labels are known: its class texts against the labels, on its own vectors."""

from __future__ import annotations

import numpy as np

from clipette.data.dataset import Dataset
from clipette.evaluate.zero_shot import class_vectors
from clipette.metrics.similarity import cosines
from clipette.store import Store
from clipette.train.budget import Worth
from clipette.types import Encoder, Floats, Ints

# More images tell no more, and a solution for each fold takes a second at most.
MOST_IMAGES = 5000
FOLDS = 5


def worth_of(teacher: Encoder, data: Dataset, store: Store) -> Worth | None:
    """``measure_worth`` on what ``store`` holds of the labelled images; None where too few to tell.

    Of each image its first poured vector: a view, or the image itself.
    """
    table = store.views if store.views is not None else store.images
    known = [sample for sample in data.samples if sample.label is not None]
    known = known[:: max(1, len(known) // MOST_IMAGES)][:MOST_IMAGES]
    if table is None or len(known) < FOLDS * len(data.class_names):
        return None
    rows = table.find([sample.key for sample in known])
    there = np.flatnonzero(rows >= 0)
    labels = np.array([known[place].label for place in there], dtype=np.int64)
    classes = class_vectors(teacher, data.class_names)
    return measure_worth(table.vectors(rows[there]), labels, classes)


def measure_worth(vectors: Floats, labels: Ints, classes: Floats, *, seed: int = 0) -> Worth:
    """Top-1 of class texts, and of ridge regression on labels, cross-validated in five folds.

    W = argmin Σ_i ‖x_i W − onehot(y_i)‖² + λ ‖W‖²,  λ = tr(XᵀX) / D, X centred: no strength to choose

    Shapes: ``vectors`` [N, D] unit length, ``labels`` [N] rows of ``classes`` [C, D].
    """
    folds = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    right = 0
    for fold in range(FOLDS):
        learn, held = folds != fold, folds == fold
        scores = _ridge(vectors[learn].astype(np.float64), labels[learn], vectors[held], len(classes))
        right += int((scores.argmax(axis=1) == labels[held]).sum())
    answers = (cosines(vectors, classes).argmax(axis=1) == labels).mean()
    return Worth(float(answers), right / len(labels))


def _ridge(vectors: Floats, labels: Ints, asked: Floats, classes: int) -> Floats:
    """[M, C] scores of ``asked`` [M, D]."""
    centre, targets = vectors.mean(axis=0), np.eye(classes)[labels]
    moved = vectors - centre
    gram = moved.T @ moved
    strength = max(float(np.trace(gram)) / len(gram), 1e-12)
    weight = np.linalg.solve(gram + strength * np.eye(len(gram)), moved.T @ (targets - targets.mean(axis=0)))
    return np.asarray((asked - centre) @ weight + targets.mean(axis=0))
