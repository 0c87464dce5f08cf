"""What a guest's queries cost on an index of another encoder's, against counting by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tests.index.meaning import SCENES, Meaning, build, samples_of

from clipette.errors import DataError, StoreError, UnsupportedError
from clipette.index.collection import Collection
from clipette.index.mixed import measure_mixed
from clipette.metrics.bootstrap import Bootstrap
from clipette.metrics.retrieval import hit_at, rank_relevant, relevance

QUICK = Bootstrap(resamples=50)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    with build(tmp_path_factory.mktemp("index") / "i", SCENES, texts={"t": "a dog"}) as opened:
        yield opened


def test_the_same_encoder_costs_nothing(collection: Collection) -> None:
    report = measure_mixed(collection, Meaning(), samples_of(collection), own=Meaning(), how=QUICK)
    assert report.images == len(SCENES)
    for side in (report.text, report.image):
        assert side is not None
        assert side.overlap is not None
        assert side.cosine is not None
        assert side.lost is not None
        assert side.overlap.value == 1.0
        assert side.cosine.value == pytest.approx(1.0, abs=1e-6)
        assert {interval.value for interval in side.lost.values()} == {0.0}
    assert report.image is not None
    assert report.image.hit[1].value == 1.0


def test_a_student_costs_what_counting_says(collection: Collection) -> None:
    teacher, student = Meaning(), Meaning(name="student", turned=0.6)
    samples = samples_of(collection)
    report = measure_mixed(collection, student, samples, own=teacher, ks=(1, 5), how=QUICK)
    side = report.text
    assert side is not None
    assert side.own_hit is not None
    assert side.lost is not None
    assert side.overlap is not None
    assert side.cosine is not None
    keys = collection.keys("image")
    gallery = collection.vectors(keys)
    captions = [sample.captions[0] for sample in samples]
    pairs = relevance(list(range(len(keys))), [keys.index(s.key) for s in samples], queries=len(keys), items=len(keys))
    for encoder, found in ((student, side.hit), (teacher, side.own_hit)):
        vectors = encoder.encode_texts(captions)
        for k in (1, 5):
            assert found[k].value == pytest.approx(float(hit_at(rank_relevant(vectors, gallery, pairs), k).mean()))
    assert side.lost[5].value == pytest.approx(side.own_hit[5].value - side.hit[5].value)
    ours = np.argsort(-(student.encode_texts(captions) @ gallery.T), axis=1, kind="stable")[:, :10]
    theirs = np.argsort(-(teacher.encode_texts(captions) @ gallery.T), axis=1, kind="stable")[:, :10]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert side.overlap.value == pytest.approx(float(np.mean(shared)), abs=0.01)
    assert side.overlap.low <= side.overlap.value <= side.overlap.high < 1.0
    assert 0.5 < side.cosine.value < 0.95
    told = json.loads(json.dumps(report.to_json()))
    assert (told["guest"], told["own"]) == ("student", "meaning")
    assert told["text"]["overlap@10"][0] == pytest.approx(side.overlap.value, abs=1e-4)


def test_without_the_index_own_encoder(collection: Collection) -> None:
    report = measure_mixed(collection, Meaning(name="student", turned=0.4), samples_of(collection), how=QUICK)
    assert report.own == "meaning"
    assert report.text is not None
    assert (report.text.overlap, report.text.lost) == (None, None)
    assert report.text.hit[10].value > 0.3
    assert report.image is not None
    assert report.image.overlap is not None, "the stored vectors are its own encoder's"


def test_sides_and_samples_that_are_not_there(collection: Collection) -> None:
    samples = samples_of(collection)
    strangers = [replace(sample, key=f"x{sample.key}") for sample in samples]
    report = measure_mixed(collection, Meaning(can_encode_images=False), [*samples[:4], *strangers], how=QUICK)
    assert (report.images, report.image) == (4, None)
    mute = measure_mixed(collection, Meaning(can_encode_text=False), samples[:4], how=QUICK)
    assert mute.text is None
    bare = measure_mixed(collection, Meaning(), [replace(s, captions=()) for s in samples[:4]], how=QUICK)
    assert bare.text is None
    with pytest.raises(DataError, match="none of the 48 samples"):
        measure_mixed(collection, Meaning(), strangers)
    with pytest.raises(StoreError, match="cannot be compared"):
        measure_mixed(collection, Meaning(space="other"), samples)
    with pytest.raises(UnsupportedError, match="neither texts nor images"):
        measure_mixed(collection, Meaning(can_encode_text=False, can_encode_images=False), samples)
