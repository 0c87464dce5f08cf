"""Student against teacher: agreement and retention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from clipette.data.dataset import Dataset
from clipette.errors import DataError, ModelError
from clipette.evaluate.agreement import agreement
from clipette.evaluate.results import Evaluation
from clipette.evaluate.retention import retention
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.zero_shot import zero_shot
from clipette.metrics.bootstrap import difference_interval

from .fakes import CLASSES, FakeEncoder, captioned, classified, encoder_of, unit

NAME_ONLY = ("{}",)


def widened(encoder: FakeEncoder, noise: float, **more: object) -> FakeEncoder:
    """A noisy copy in a space of its own, 12 wide."""
    rng = np.random.default_rng(9)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0][:8].astype(np.float32)
    images = {key: unit(v @ turn + noise * rng.standard_normal(12)) for key, v in encoder.images.items()}
    texts = {text: unit(v @ turn) for text, v in (encoder.texts or {}).items()}
    return FakeEncoder(images, texts, name="student", space="other", dim=12, **more)  # type: ignore[arg-type]


def test_agreement_is_that_of_plain_loops() -> None:
    data = classified(60)
    teacher = encoder_of(data, name="teacher", logit_scale=20.0)
    student = widened(teacher, 0.2, logit_scale=5.0)
    result = agreement(teacher, student, data, templates=NAME_ONLY)
    same, shared, kls = [], [], []
    for sample in data.samples:
        logits = [
            np.array([e.logit_scale * float(e.images[sample.key] @ e.texts[name]) for name in CLASSES])
            for e in (teacher, student)
        ]
        same.append(logits[0].argmax() == logits[1].argmax())
        shared.append(1.0)  # five classes: the five best are all of them
        p, q = (np.exp(x) / np.exp(x).sum() for x in logits)
        kls.append(float((p * np.log(p / q)).sum()))
    assert 0.5 < np.mean(same) < 1.0
    assert result.top1.value == pytest.approx(np.mean(same))
    assert result.top5.value == pytest.approx(np.mean(shared))
    assert result.kl.value == pytest.approx(np.mean(kls), rel=1e-4)
    assert (result.cosine, result.distance) == (None, None), "the spaces differ"
    assert (result.text_neighbours, result.text_kl) == (None, None), "of five classes all are near"
    assert 0.5 < result.cka.value < 1.0
    assert 0.2 < result.neighbours.value < 1.0
    assert result.top1.low < result.top1.value < result.top1.high


def test_a_rotated_copy_agrees_in_all_but_space() -> None:
    data = classified()
    teacher = encoder_of(data)
    result = agreement(teacher, widened(teacher, 0.0), data, templates=NAME_ONLY)
    assert result.top1.value == 1.0
    assert result.kl.value == pytest.approx(0.0, abs=1e-8)
    assert result.neighbours.value == pytest.approx(1.0, abs=0.01)
    assert result.cka.value == pytest.approx(1.0, abs=1e-4)
    in_space = agreement(teacher, replace(teacher, name="copy"), data, templates=NAME_ONLY)
    assert in_space.cosine.value == pytest.approx(1.0, abs=1e-6)


def test_neighbourhoods_of_class_texts_are_those_of_plain_loops() -> None:
    names = tuple(f"class {number}" for number in range(14))
    rng = np.random.default_rng(3)
    data = captioned(12)
    texts = {name: unit(rng.standard_normal(8)) for name in names}
    teacher = replace(encoder_of(data, logit_scale=20.0, name="teacher"), texts=texts)
    images = {key: unit(vector + 0.3 * rng.standard_normal(8)) for key, vector in teacher.images.items()}
    student = replace(teacher, name="student", images=images, logit_scale=5.0)
    result = agreement(teacher, student, data, class_names=names, templates=NAME_ONLY)
    shared, kls, distances = [], [], []
    for sample in data.samples:
        scores = [
            {n: e.logit_scale * float(e.images[sample.key] @ texts[n]) for n in names} for e in (teacher, student)
        ]
        nearest = [sorted(names, key=lambda n, own=own: -own[n])[:10] for own in scores]
        shared.append(len(set(nearest[0]) & set(nearest[1])) / 10)
        p, q = (np.exp([own[n] for n in nearest[0]]) / np.exp([own[n] for n in nearest[0]]).sum() for own in scores)
        kls.append(float((p * np.log(p / q)).sum()))
        distances.append(float(np.linalg.norm(teacher.images[sample.key] - images[sample.key])))
    assert 0.5 < result.text_neighbours.value < 1.0
    assert result.text_neighbours.value == pytest.approx(np.mean(shared))
    assert result.text_kl.value == pytest.approx(np.mean(kls), rel=1e-4)
    assert result.distance.value == pytest.approx(np.mean(distances), rel=1e-5)
    assert {"text_neighbours", "text_kl", "distance"} <= set(result.figures())
    itself = agreement(teacher, replace(teacher, name="copy"), data, class_names=names, templates=NAME_ONLY)
    assert (itself.text_neighbours.value, itself.distance.value) == (1.0, 0.0)


def test_only_images_both_can_read_count() -> None:
    data = classified(40)
    teacher = encoder_of(data, broken=frozenset({"image1"}))
    student = replace(teacher, broken=frozenset({"image1", "image2"}))
    result = agreement(teacher, student, data, templates=NAME_ONLY)
    assert result.count == 38
    assert sorted(failure.key for failure in result.failures) == ["image1", "image2"]
    assert result.cosine.value == pytest.approx(1.0, abs=1e-6), "rows must stay paired"


def test_class_names_are_optional_and_labels_are_not_needed() -> None:
    data = captioned()
    teacher = encoder_of(data)
    teacher.texts |= {name: unit(np.random.default_rng(len(name)).standard_normal(8)) for name in ("x", "yy", "zzz")}
    bare = agreement(teacher, teacher, data)
    assert (bare.top1, bare.kl) == (None, None)
    assert bare.neighbours.value == pytest.approx(1.0)
    named = agreement(teacher, teacher, data, class_names=("x", "yy", "zzz"), templates=NAME_ONLY)
    assert named.top1.value == 1.0
    student = replace(teacher, texts=None)
    lent = agreement(teacher, student, data, class_names=("x", "yy"), templates=NAME_ONLY, student_text=teacher)
    assert lent.top1.value == 1.0
    stranger = replace(student, space="other")
    with pytest.raises(ModelError, match="cannot be compared"):
        agreement(teacher, stranger, data, class_names=("x",), templates=NAME_ONLY, student_text=teacher)
    with pytest.raises(DataError, match="two images"):
        agreement(teacher, teacher, Dataset("fake:one", data.samples[:1]))


def evaluations() -> tuple[Evaluation, Evaluation]:
    pets, scenes = classified(80, ("photo", "sketch")), captioned(30)
    made = []
    for name, noise in (("teacher", 0.5), ("student", 0.7)):
        one, two = encoder_of(pets, noise=noise, name=name), encoder_of(scenes, noise=noise, name=name)
        made.append(
            Evaluation(
                model=name,
                space=name,
                zero_shot={"pets": zero_shot(one, pets, NAME_ONLY)},
                retrieval={"scenes": retrieval(two, scenes)},
            )
        )
    return made[0], made[1]


def test_retention_is_student_over_teacher_with_paired_intervals() -> None:
    teacher, student = evaluations()
    kept = retention(teacher, student)
    for kind, dataset, name in (
        ("zero_shot", "pets", "top1"),
        ("zero_shot", "pets", "domain/sketch"),
        ("retrieval", "scenes", "mean_recall"),
        ("retrieval", "scenes", "t2i/hit@1"),
    ):
        row = kept.get(kind, dataset, name)
        figures = [e.by_kind()[kind][dataset].figures()[name].value for e in (student, teacher)]
        assert row.ratio.value == pytest.approx(figures[0] / figures[1])
        assert (row.student, row.teacher) == (figures[0], figures[1])
        assert row.ratio.low < row.ratio.value < row.ratio.high
    measures = {row.measure for row in kept.rows}
    assert measures.isdisjoint({"ece", "prediction_entropy", "i2t/result_entropy", "t2i/coverage"})
    assert kept.get("zero_shot", "pets", "mean_per_class").ratio.low is None, "no per-item values, no interval"
    with pytest.raises(KeyError, match="no retention of zero_shot 'top2'"):
        kept.get("zero_shot", "pets", "top2")


def test_a_model_retains_itself_exactly() -> None:
    teacher, _ = evaluations()
    for row in retention(teacher, teacher).rows:
        assert row.ratio.value == 1.0
        if row.ratio.low is not None:
            assert (row.ratio.low, row.ratio.high) == (1.0, 1.0), "paired: the same draw above and below"


def test_a_teacher_at_zero_has_no_ratio() -> None:
    teacher, student = evaluations()
    items = teacher.zero_shot["pets"].items
    nothing = replace(items, sums={name: np.zeros_like(values) for name, values in items.sums.items()})
    result = teacher.zero_shot["pets"]
    zero = replace(result, items=nothing, top1=replace(result.top1, value=0.0))
    kept = retention(replace(teacher, zero_shot={"pets": zero}), student)
    assert math.isnan(kept.get("zero_shot", "pets", "top1").ratio.value)
    with pytest.raises(DataError, match="share no figure"):
        retention(Evaluation("teacher", "s"), student)


def test_items_serve_a_paired_difference() -> None:
    teacher, student = evaluations()
    first, second = (e.zero_shot["pets"].items.sums["top1"] for e in (teacher, student))
    interval = difference_interval(first, second)
    assert interval.value == pytest.approx(teacher.zero_shot["pets"].top1.value - student.zero_shot["pets"].top1.value)


def test_pairs_are_found_by_key_where_each_model_failed_on_other_images() -> None:
    data = classified(80)
    encoder = encoder_of(data, noise=0.9)
    evaluations = [
        Evaluation(name, "s", zero_shot={"pets": zero_shot(replace(encoder, broken=frozenset(lost)), data, NAME_ONLY)})
        for name, lost in (("teacher", ("image3",)), ("student", ("image0", "image7")))
    ]
    ratio = retention(*evaluations).get("zero_shot", "pets", "top1").ratio
    assert (ratio.low, ratio.high) == (1.0, 1.0), "on the images both read they are one model"
