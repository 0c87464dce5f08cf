"""What a teacher's answers are worth: against a plain loop of ridge regressions, and where they may not be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.train import tiny

from clipette.store import open_store
from clipette.tasks.pour import PourPlan, pour
from clipette.train.budget import trusts
from clipette.train.worth import FOLDS, measure_worth, worth_of


def world(noise: float, *, turned: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors around one direction a class; class texts are those directions, or another class's."""
    random = np.random.default_rng(seed)
    classes = np.linalg.qr(random.normal(size=(16, 6)))[0].T
    labels = np.arange(120) % 6
    vectors = classes[labels] + noise * random.normal(size=(120, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = np.roll(classes, 1, axis=0) if turned else classes
    return vectors.astype(np.float32), labels, texts.astype(np.float32)


def test_labels_are_learned_by_ridge_regression_in_five_folds() -> None:
    vectors, labels, texts = world(0.35, turned=False)
    found = measure_worth(vectors, labels, texts, seed=3)
    folds = np.random.default_rng(3).permutation(len(labels)) % FOLDS
    right = 0
    for row in range(len(labels)):
        learn = folds != folds[row]
        x, y = vectors[learn].astype(np.float64), np.eye(6)[labels[learn]]
        moved = x - x.mean(axis=0)
        strength = sum(float(column @ column) for column in moved.T) / x.shape[1]
        design = np.vstack([moved, np.sqrt(strength) * np.eye(x.shape[1])])
        target = np.vstack([y - y.mean(axis=0), np.zeros((x.shape[1], 6))])
        weight = np.linalg.lstsq(design, target, rcond=None)[0]
        right += int(((vectors[row] - x.mean(axis=0)) @ weight + y.mean(axis=0)).argmax() == labels[row])
    assert found.labels == right / len(labels)
    assert found.answers == np.mean((vectors @ texts.T).argmax(axis=1) == labels)


@pytest.mark.parametrize(("turned", "trusted"), [(False, True), (True, False)])
def test_texts_that_point_elsewhere_are_not_trusted(turned: bool, trusted: bool) -> None:
    found = measure_worth(*world(0.2, turned=turned))
    assert found.labels > 0.9
    assert trusts(found) is trusted


def test_it_is_read_from_what_was_poured(tmp_path: Path) -> None:
    data, teacher = tiny.dataset(40), tiny.teacher()
    whole = open_store(pour(teacher, data, tmp_path / "whole", PourPlan()).path)
    found = worth_of(teacher, data, whole)
    vectors = teacher.encode_samples(data.samples).vectors
    classes = teacher.encode_texts([f"a photo of a {name}." for name in data.class_names])
    labels = np.array([sample.label for sample in data.samples])
    assert found is not None
    assert found.answers == pytest.approx(np.mean((vectors @ classes.T).argmax(axis=1) == labels), abs=0.03)
    views = open_store(pour(teacher, data, tmp_path / "views", PourPlan(images=False, views=2)).path)
    assert worth_of(teacher, data, views) is not None
    few = replace(data, samples=data.samples[:8])
    assert worth_of(teacher, few, whole) is None
    blank = replace(data, samples=tuple(replace(s, label=None, class_name=None) for s in data.samples))
    assert worth_of(teacher, blank, whole) is None
    texts_only = open_store(pour(teacher, data, tmp_path / "texts", PourPlan(images=False)).path)
    assert worth_of(teacher, data, texts_only) is None
