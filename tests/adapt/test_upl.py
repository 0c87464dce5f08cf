"""Pseudo-labels against the twin: the surest of each class, ensembles of teachers, and what is left out."""

from __future__ import annotations

import pytest
import torch
from tests.adapt.clusters import accuracy, doubles, problem, quick, unit
from tests.reference import adapters as twin

from clipette.adapt.features import ClassTexts
from clipette.adapt.task_res import TaskResSettings, fit_task_res
from clipette.adapt.upl import pseudo_labels, teacher_probabilities
from clipette.errors import ConfigError, DataError, ModelError


@pytest.mark.parametrize(("per_class", "at_least"), [(1, 0.0), (3, 0.0), (None, 0.0), (3, 0.5), (None, 0.6)])
def test_the_choice_is_the_twins(per_class: int | None, at_least: float) -> None:
    probabilities = torch.softmax(2 * doubles(30, 4), dim=1)
    found = pseudo_labels(probabilities, per_class, at_least=at_least)
    expected = twin.pseudo_labels(probabilities.tolist(), per_class, at_least)
    assert list(zip(found.rows.tolist(), found.labels.tolist(), strict=True)) == expected
    assert torch.equal(found.confidence, probabilities[found.rows, found.labels])
    assert found.counts.tolist() == [sum(label == c for _, label in expected) for c in range(4)]


def test_ties_go_to_the_first_image_and_missing_classes_are_named() -> None:
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
    found = pseudo_labels(probabilities, 1)
    assert found.rows.tolist() == [0, 2]
    assert found.missing == (2,)
    shots = found.shots(torch.arange(6.0).reshape(3, 2))
    assert shots.features.tolist() == [[0, 1], [4, 5]]
    assert shots.labels.tolist() == [0, 1]
    views = found.shots(torch.arange(12.0).reshape(2, 3, 2))
    assert views.features.shape == (2, 2, 2)
    with pytest.raises(DataError, match="confident enough"):
        pseudo_labels(probabilities, at_least=0.9).shots(torch.zeros(3, 2))


def test_teachers_of_other_widths_and_scales_are_averaged_as_probabilities() -> None:
    one = ClassTexts(unit(doubles(3, 6)), 10.0, -1.0), unit(doubles(5, 6, seed=1))
    two = ClassTexts(unit(doubles(3, 4, seed=2)), 100.0), unit(doubles(5, 4, seed=3))
    expected = twin.ensemble([base.logits(features).tolist() for base, features in (one, two)], 2.0)
    torch.testing.assert_close(teacher_probabilities([one, two], 2.0), torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ModelError, match="the same images and classes"):
        teacher_probabilities([one, (two[0], two[1][:4])])
    with pytest.raises(ConfigError, match="one teacher or more, got 0"):
        teacher_probabilities([])


def test_adaptation_without_labels_beats_zero_shot() -> None:
    base, images, _, test = problem(shots=40, off=0.8)
    found = pseudo_labels(teacher_probabilities([(base, images.features)]), 16)
    assert (found.labels == images.labels[found.rows]).float().mean() > accuracy(base.logits(images.features), images)
    harness = quick(optimizer="adam", epochs=30, lr=1e-2)
    fitted = fit_task_res(base, found.shots(images.features), TaskResSettings((0.5,), harness))
    assert accuracy(fitted.logits(test.features), test) > accuracy(base.logits(test.features), test)


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        pseudo_labels(torch.ones(2, 3))
    with pytest.raises(ConfigError, match="1 or more"):
        pseudo_labels(torch.full((2, 2), 0.5), 0)
