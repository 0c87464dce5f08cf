"""The whole suite: what is measured where, once, and written as JSON and rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from clipette.data.dataset import Dataset
from clipette.errors import ConfigError, DataError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.results import ROW_COLUMNS, Figure, plain
from clipette.evaluate.suite import SuiteSettings, evaluate
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Sample

from .fakes import FakeEncoder, captioned, classified, encoder_of
from .test_shift import drawings

QUICK = SuiteSettings(templates=("{}",), run=Settings(bootstrap=Bootstrap(50)))


def two_sets() -> tuple[dict[str, Dataset], FakeEncoder]:
    pets, scenes = classified(40, ("photo", "sketch")), captioned(20)
    scenes = replace(scenes, samples=tuple(replace(s, key=f"scene-{s.key}") for s in scenes.samples))
    one, two = encoder_of(pets), encoder_of(scenes, seed=1)
    both = replace(one, images={**one.images, **two.images}, texts={**one.texts, **two.texts}, name="teacher")
    return {"pets": pets, "scenes": scenes}, both


def test_each_data_set_gets_the_measures_it_allows() -> None:
    named, encoder = two_sets()
    result = evaluate(encoder, named, settings=replace(QUICK, base_novel=True, reference_domain="photo"))
    assert set(result.zero_shot) == set(result.shift) == {"pets"}
    assert set(result.retrieval) == {"scenes"}
    assert result.zero_shot["pets"].harmonic_mean is not None
    assert result.shift["pets"].reference_domain == "photo"
    assert (result.teacher, result.retention, result.agreement, result.robustness) == (None, None, {}, {})


def test_a_small_sample_without_a_novel_image_has_no_base_and_novel() -> None:
    named, encoder = two_sets()
    pets = named["pets"]
    first = pets.class_names[: (len(pets.class_names) + 1) // 2]
    some = replace(pets, samples=tuple(sample for sample in pets.samples if sample.class_name in first))
    assert 0 < len(some) < len(pets)
    result = evaluate(encoder, some, settings=replace(QUICK, base_novel=True)).zero_shot[some.name]
    assert (result.base, result.novel, result.harmonic_mean) == (None, None, None)
    assert result.top1 is not None


def test_with_a_teacher_everything_is_compared_and_nothing_encoded_twice() -> None:
    named, teacher = two_sets()
    student = replace(
        teacher,
        name="student",
        images={**teacher.images, **encoder_of(named["pets"], seed=5).images},
        texts=None,
        images_encoded=[],
        texts_encoded=[],
    )
    result = evaluate(student, named, teacher, settings=QUICK)
    assert result.teacher.model == "teacher"
    assert set(result.agreement) == {"pets", "scenes"}
    assert result.agreement["pets"].top1 is not None
    assert result.agreement["scenes"].cosine.value == pytest.approx(1.0, abs=1e-6)
    assert result.retention.get("retrieval", "scenes", "mean_recall").ratio.value == pytest.approx(1.0)
    assert result.retention.get("zero_shot", "pets", "top1").ratio.value < 1.0
    assert result.retention.get("shift", "pets", "mean").ratio.value < 1.0
    for encoder in (teacher, student):
        assert len(encoder.images_encoded) == len(set(encoder.images_encoded)) == 60
    assert len(teacher.texts_encoded) == len(set(teacher.texts_encoded))
    assert not student.texts_encoded, "its texts are the teacher's: one space"


def test_json_and_rows_hold_every_figure() -> None:
    named, teacher = two_sets()
    result = evaluate(replace(teacher, name="student"), named, teacher, settings=QUICK)
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert value["zero_shot"]["pets"]["top1"]["value"] == result.zero_shot["pets"].top1.value
    assert value["retrieval"]["scenes"]["i2t"]["hit@5"]["low"] == result.retrieval["scenes"].i2t["hit@5"].low
    assert value["teacher"]["model"] == "teacher"
    assert value["settings"]["run"]["bootstrap"] == {"resamples": 50, "seed": 0, "level": 0.95}
    assert "items" not in value["zero_shot"]["pets"]
    rows = result.rows()
    assert all(tuple(row) == ROW_COLUMNS for row in rows)
    found = {(row["model"], row["kind"], row["dataset"], row["measure"]): row["value"] for row in rows}
    assert len(found) == len(rows), "each figure once"
    assert found["student", "retrieval", "scenes", "mean_recall"] == result.retrieval["scenes"].mean_recall.value
    assert found["student", "retention", "pets", "zero_shot/top1"] == 1.0
    assert found["teacher", "zero_shot", "pets", "domain/photo"] == result.zero_shot["pets"].by_domain["photo"].value


def test_corruptions_are_measured_when_asked_for() -> None:
    data, encoder = drawings(12)
    settings = replace(QUICK, corruptions=("contrast",), strengths=(1, 5), robustness_limit=6)
    result = evaluate(encoder, {"drawings": data}, settings=settings)
    assert set(result.robustness["drawings"].table["contrast"]) == {1, 5}
    assert result.robustness["drawings"].clean.count == 6
    sentences = {name: [name] for name in data.class_names}
    described = replace(settings, templates=(), descriptions=sentences, strengths=(1,))
    alone = evaluate(encoder, {"drawings": data}, settings=described)
    assert set(alone.robustness["drawings"].table["contrast"]) == {1}, "descriptions alone reach corrupted images too"


def test_names_and_empty_input() -> None:
    pets = classified()
    encoder = encoder_of(pets)
    assert set(evaluate(encoder, pets, settings=QUICK).zero_shot) == {pets.name}
    with pytest.raises(ConfigError, match="two data sets are called"):
        evaluate(encoder, [pets, pets], settings=QUICK)
    with pytest.raises(ConfigError, match="no data set"):
        evaluate(encoder, [], settings=QUICK)
    with pytest.raises(DataError, match="neither classes nor captions"):
        evaluate(encoder, Dataset("fake:bare", (Sample("image0"),)), settings=QUICK)


def test_plain_values() -> None:
    assert plain(Figure(float("nan"), None, float("inf"), 3)) == {"value": None, "low": None, "high": None, "count": 3}
    assert plain({1: np.arange(2), "x": (np.float32(0.5), True)}) == {"1": [0, 1], "x": [0.5, True]}
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        plain(object())
