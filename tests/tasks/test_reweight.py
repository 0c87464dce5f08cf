"""Weights of images by class: plain loops, mean 1, rare classes up; and the terms that hear them, and no other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.tasks.test_objective import batch, descend, objective
from tests.tasks.test_terms import tensors

from clipette.losses import logits
from clipette.losses.numerics import kl_rows
from clipette.tasks.reweight import class_weights
from clipette.tasks.terms import TERMS

LONG_TAIL = [0] * 2000 + [1] * 150 + [3] * 5
PER_SAMPLE = {
    "class_text_kl",
    "class_text_bce",
    "class_text_dkd",
    "class_text_standardized_kl",
    "class_text_ensemble",
    "class_text_ce",
}


def twin(labels: list[int], rule: str) -> dict[int, float]:
    """The weight of an image of each class, image by image."""
    raw = []
    for label in labels:
        count = 0
        for other in labels:
            count += other == label
        if rule == "inverse":
            raw.append(1 / count)
        else:
            effective = 0.0
            for power in range(count):
                effective += 0.999**power  # (1 - β^n) / (1 - β), as the sum it is
            raw.append(1 / effective)
    mean = sum(raw) / len(raw)
    return {label: value / mean for label, value in zip(labels, raw, strict=True)}


@pytest.mark.parametrize("rule", ["inverse", "effective"])
def test_weights_are_those_of_plain_loops_and_have_mean_one(rule: str) -> None:
    found = class_weights(LONG_TAIL, rule)
    expected = twin(LONG_TAIL, rule)
    assert found.shape == (4,)
    assert found[2] == 0, "no image has this class"
    assert {label: float(found[label]) for label in expected} == pytest.approx(expected, rel=1e-6)
    assert found[LONG_TAIL].mean(dtype=float) == pytest.approx(1.0, rel=1e-5)
    assert found[0] < found[1] < found[3]


def test_effective_numbers_lie_between_the_inverse_and_none() -> None:
    rare = {rule: float(class_weights(LONG_TAIL, rule)[3]) for rule in ("none", "effective", "inverse")}
    assert 1.0 == rare["none"] < rare["effective"] < rare["inverse"]
    assert class_weights([0, 1, 1, 0], "effective").tolist() == pytest.approx([1.0, 1.0])


def test_only_means_over_images_against_class_texts_are_weighed() -> None:
    assert {name for name, term in TERMS.items() if term.per_sample} == PER_SAMPLE
    for name, term in TERMS.items():
        values = tensors()
        values["labels"] = torch.tensor([0, 3, 1, 1, 2])
        plain = term.call(values, term.options)
        values["sample_weight"] = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.5])
        weighed = term.call(values, term.options)
        assert (float(weighed.detach()) != float(plain.detach())) == (name in PER_SAMPLE), name


def test_unknown_labels_and_their_weights_do_not_count() -> None:
    values = tensors()
    values["sample_weight"] = torch.tensor([2.0, 1.0, 50.0, 1.0, 0.0])
    found = TERMS["class_text_ce"].call(values, {})
    values["sample_weight"][2] = 0.0
    torch.testing.assert_close(TERMS["class_text_ce"].call(values, {}), found)


@pytest.mark.parametrize("name", sorted(PER_SAMPLE))
def test_an_objective_weighs_each_image_by_its_label(name: str) -> None:
    """The weighted loss is the sum of the losses of one image at a time, each times its class's weight."""
    weights = torch.tensor([0.5, 2.0, 0.25])
    given = batch()
    rows = given.size
    whole = descend(objective({name: 1}, class_weights=weights), given)
    total = 0.0
    for row in range(rows):
        alone = descend(objective({name: 1}), given.part(row, row + 1))
        total += float(weights[row % 3]) * alone.raw[name] / rows
    assert whole.raw[name] == pytest.approx(total, rel=1e-4)


def test_without_weights_the_losses_are_plain_means_to_the_last_bit() -> None:
    t = tensors()
    scales = {n: t[n] for n in ("student_scale", "teacher_scale", "student_bias", "teacher_bias")}
    classes = (t["student_image"], t["teacher_image"], t["student_classes"], t["teacher_classes"])
    student = t["student_image"] @ t["student_classes"].T * t["student_scale"] + t["student_bias"]
    teacher = t["teacher_image"] @ t["teacher_classes"].T * t["teacher_scale"] + t["teacher_bias"]
    assert torch.equal(logits.class_text_kl(*classes, **scales), kl_rows(student, teacher).mean())
    sums = F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="sum")
    assert torch.equal(logits.class_text_bce(*classes, **scales), sums / len(student))
    labels = torch.tensor([0, 3, 1, 1, 2])
    found = logits.class_text_ce(classes[0], classes[2], labels, scale=t["student_scale"], bias=t["student_bias"])
    assert torch.equal(found, F.cross_entropy(student, labels))
