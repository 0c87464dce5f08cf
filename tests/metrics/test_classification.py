"""Accuracy, confusion, calibration, agreement and diversity against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipette.errors import DataError, ModelError
from clipette.metrics import agreement, calibration, classification, diversity

from .twins import orders, unit


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 6), st.data())
def test_correct_at_is_the_mean_over_orders(scores: list[int], k: int, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(scores) - 1))
    rankings = list(orders([float(s) for s in scores]))
    expected = sum(label in ranking[:k] for ranking in rankings) / len(rankings)
    got = classification.correct_at(np.array([scores], dtype=np.float32), np.array([label]), k)
    assert got[0] == pytest.approx(expected)


def test_a_constant_model_is_at_chance_everywhere() -> None:
    scores, labels = np.zeros((20, 10), np.float32), np.arange(20) % 10
    assert classification.correct_at(scores, labels, 1).mean() == pytest.approx(0.1)
    assert classification.correct_at(scores, labels, 5).mean() == pytest.approx(0.5)
    assert classification.confusion(scores, labels) == pytest.approx(np.full((10, 10), 0.2))
    decided = np.eye(10, dtype=np.float32)[labels]
    assert agreement.overlap_at(scores, decided, 1).mean() == pytest.approx(0.1)
    # Places: 2/10 of every class against all of one and 1/9 of each other.
    assert agreement.overlap_at(scores, decided, 2) == pytest.approx((0.2 + 9 * 1 / 9) / 2)
    assert agreement.overlap_at(scores, scores, 3) == pytest.approx(np.ones(20)), "a model agrees with itself"


def test_confusion_and_per_class_agree_with_loops() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    expected = np.zeros((4, 4))
    for row, label in zip(scores, labels, strict=True):
        best = np.flatnonzero(row == row.max())
        for choice in best:
            expected[label, choice] += 1 / len(best)
    table = classification.confusion(scores, labels)
    assert table == pytest.approx(expected)
    correct = classification.correct_at(scores, labels, 1)
    assert table.trace() / 40 == pytest.approx(correct.mean())
    per_class = classification.per_class_accuracy(correct, labels, 4)
    assert per_class[:3] == pytest.approx([expected[c, c] / (labels == c).sum() for c in range(3)])
    assert math.isnan(per_class[3]), "no item of class 3"
    assert classification.mean_per_class(correct, labels, 4) == pytest.approx(per_class[:3].mean())


def test_harmonic_mean_and_the_split() -> None:
    # methods.md: CLIP's mean of 11 sets is 69.34 / 74.22 / 71.70.
    assert classification.harmonic_mean(0.6934, 0.7422) == pytest.approx(0.7170, abs=5e-5)
    assert classification.harmonic_mean(0.0, 0.0) == 0.0
    assert [classification.base_count(n) for n in (1, 2, 7, 100)] == [1, 1, 4, 50]


def test_bad_scores_and_labels_are_refused() -> None:
    with pytest.raises(DataError, match="outside the 3 classes"):
        classification.correct_at(np.zeros((1, 3)), np.array([3]), 1)
    with pytest.raises(DataError, match="do not fit"):
        classification.correct_at(np.zeros((2, 3)), np.array([0]), 1)
    with pytest.raises(ModelError, match="row 1 is not finite"):
        classification.correct_at(np.array([[0.0], [np.nan]]), np.array([0, 0]), 1)


def test_softmax_is_stable_and_sums_to_one() -> None:
    probabilities = calibration.softmax(np.array([[1e4, 0.0], [0.0, math.log(3)]]))
    assert probabilities[0].tolist() == [1.0, 0.0]
    assert probabilities[1] == pytest.approx([0.25, 0.75])


def test_ece_is_the_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), (rng.random(500) < 0.4).astype(np.float64)
    confidence[:3] = (0.0, 1.0, 1 / 3)  # ends and an inner edge
    expected = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = [i for i, c in enumerate(confidence) if (low < c <= high) or (b == 0 and c == 0.0)]
        if inside:
            expected += abs(correct[inside].mean() - confidence[inside].mean()) * len(inside) / 500
    assert calibration.expected_calibration_error(confidence, correct, 15) == pytest.approx(expected)
    assert calibration.reliability(confidence, correct, 15).count.sum() == 500
    assert calibration.expected_calibration_error(np.ones(4), np.array([1.0, 1.0, 0.0, 0.0])) == 0.5
    assert math.isnan(calibration.expected_calibration_error(np.zeros(0), np.zeros(0)))


def test_overlap_is_the_loop_over_sets() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((30, 9)), rng.standard_normal((30, 9))
    for k in (1, 5, 20):
        expected = []
        for a, b in zip(left, right, strict=True):
            first, second = (set(np.argsort(-row)[:k].tolist()) for row in (a, b))
            expected.append(len(first & second) / min(k, 9))
        assert agreement.overlap_at(left, right, k) == pytest.approx(expected)


def test_kl_is_the_sum_over_classes_and_has_a_direction() -> None:
    teacher, student = np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.5, 0.0]])

    def probabilities(row: np.ndarray) -> list[float]:
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    p, q = probabilities(teacher[0]), probabilities(student[0])
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert agreement.kl_divergence(teacher, student)[0] == pytest.approx(expected)
    assert agreement.kl_divergence(student, teacher)[0] != pytest.approx(expected)
    assert agreement.kl_divergence(teacher, teacher)[0] == 0.0


def test_kl_over_the_teachers_nearest_is_the_loop_over_them() -> None:
    rng = np.random.default_rng(1)
    # Halves of whole numbers: many columns tie, the first of them are taken.
    teacher, student = rng.integers(-4, 5, (30, 9)) / 2, rng.standard_normal((30, 9))
    for k in (1, 3, 20):
        expected = []
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
            kept = sorted(range(9), key=lambda c: (-t[c], c))[:k]
            p, q = ([math.exp(row[c]) / sum(math.exp(row[o]) for o in kept) for c in kept] for row in (t, s))
            expected.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        assert agreement.top_k_kl(teacher, student, k) == pytest.approx(expected, abs=1e-12)
    assert agreement.top_k_kl(teacher, student, 9) == pytest.approx(agreement.kl_divergence(teacher, student))
    far = np.where(teacher < np.sort(teacher, axis=1)[:, -3, None], -50.0, teacher)
    assert agreement.top_k_kl(teacher, far, 3) == pytest.approx(np.zeros(30)), "what lies outside does not count"
    with pytest.raises(DataError, match="do not fit"):
        agreement.top_k_kl(teacher, student[:, :4], 3)


def test_neighbour_overlap_is_the_loop_over_neighbourhoods() -> None:
    rng = np.random.default_rng(0)
    left = unit(rng, 40, 6)
    right = unit(rng, 40, 9)
    expected = []
    for i in range(40):
        nearest = []
        for vectors in (left, right):
            cosine = vectors @ vectors[i]
            nearest.append(set([j for j in np.argsort(-cosine).tolist() if j != i][:10]))
        expected.append(len(nearest[0] & nearest[1]) / 10)
    assert agreement.neighbour_overlap(left, right, 10) == pytest.approx(expected)
    assert agreement.neighbour_overlap(left, right, 10, block_bytes=1) == pytest.approx(expected)
    rows = np.array([5, 7])
    assert agreement.neighbour_overlap(left, right, 10, rows=rows) == pytest.approx([expected[5], expected[7]])
    assert agreement.neighbour_overlap(left, left, 10) == pytest.approx(np.ones(40))
    assert agreement.neighbour_overlap(left[:3], right[:3], 10) == pytest.approx(np.ones(3)), "k is cut to N - 1"
    with pytest.raises(DataError, match="two or more"):
        agreement.neighbour_overlap(left[:1], right[:1])


def test_cka_sees_rotations_as_equal_and_noise_as_different() -> None:
    rng = np.random.default_rng(0)
    left = unit(rng, 200, 6)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    assert agreement.linear_cka(left, 3 * left @ rotation) == pytest.approx(1.0, abs=1e-5)
    assert agreement.linear_cka(left, unit(rng, 200, 6)) < 0.2
    centred = [x - x.mean(0) for x in (left, left**2)]
    grams = [x @ x.T for x in centred]
    hsic = [[float((a * b).sum()) for b in grams] for a in grams]  # the definition, through the [N, N] kernels
    expected = hsic[0][1] / math.sqrt(hsic[0][0] * hsic[1][1])
    assert agreement.linear_cka(left, left**2) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(agreement.linear_cka(np.tile(left[:1], (200, 1)), left))


def test_cosine_of_pairs() -> None:
    left = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert agreement.cosine(left, left[::-1]) == pytest.approx([0.6, 0.6])
    with pytest.raises(DataError, match="do not fit"):
        agreement.cosine(left, left[:, :1])


def test_distance_of_pairs_is_the_loop_over_numbers() -> None:
    rng = np.random.default_rng(0)
    left, right = unit(rng, 12, 5), unit(rng, 12, 5)
    expected = [
        math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
        for x, y in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert agreement.distance(left, right) == pytest.approx(expected)
    assert agreement.distance(left, right) ** 2 == pytest.approx(2 - 2 * agreement.cosine(left, right), abs=1e-6)
    assert agreement.distance(left, -left) == pytest.approx(np.full(12, 2.0), abs=1e-6)
    with pytest.raises(DataError, match="do not fit"):
        agreement.distance(left, left[:, :1])


def test_entropy_and_coverage_of_results() -> None:
    assert diversity.normalised_entropy(np.array([5, 5, 5, 5])) == pytest.approx(1.0)
    assert diversity.normalised_entropy(np.array([5, 0, 0])) == 0.0
    assert diversity.normalised_entropy(np.array([1, 3])) == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    )
    assert math.isnan(diversity.normalised_entropy(np.array([3])))
    results = np.array([[0, 1], [0, 2]])
    assert diversity.result_counts(results, 4).tolist() == [2, 1, 1, 0]
    assert diversity.coverage(results, 4) == 0.75
    assert diversity.result_entropy(results, 4) == pytest.approx(1.5 * math.log(2) / math.log(4))
    with pytest.raises(DataError, match="there are 2"):
        diversity.coverage(results, 2)


def test_list_diversity_is_the_mean_over_pairs() -> None:
    gallery = unit(np.random.default_rng(0), 9, 5)
    lists = np.array([[0, 3, 5], [8, 1, 2]])
    expected = [1 - np.mean([gallery[a] @ gallery[b] for a in row for b in row if a != b]) for row in lists.tolist()]
    assert diversity.list_diversity(lists, gallery) == pytest.approx(expected, abs=1e-6)
