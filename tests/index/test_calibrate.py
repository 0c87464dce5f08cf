"""Calibrating a collection: which texts are asked, which method, what is kept, and the threshold at work."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.index.meaning import SCENES, Meaning, build, image_vector, text_vector

from clipette.errors import ConfigError, StoreError
from clipette.index.background import LENGTHS, TOPICS, background_texts, length_of, words_of, words_said
from clipette.index.calibrate import (
    FACT,
    Calibration,
    calibrate,
    calibration_for,
    keep_calibration,
    kept_calibrations,
    kinder,
)
from clipette.index.opening import open_index
from clipette.index.query import Query
from clipette.index.scales import Scale
from clipette.index.search import Searcher
from clipette.index.store import Row

# Eight scenes, twenty pictures of each: enough for a rate of 10 %.
MANY = {f"{words.replace(' ', '-')}-{n}": words for words in sorted(set(SCENES.values())) for n in range(20)}


# ---------------------------------------------------------------- background texts


def test_topics_are_distinct_and_short() -> None:
    assert len(TOPICS) == len(set(TOPICS)) > 400
    assert all(1 <= len(words_of(topic)) <= 4 for topic in TOPICS)


def test_every_length_is_asked_in_its_own_words() -> None:
    groups = background_texts()
    assert set(groups) == set(LENGTHS)
    for name, texts in groups.items():
        assert len(texts) >= 400
        assert {length_of(text) for text in texts} == {name}


@pytest.mark.parametrize(
    ("text", "name"),
    [("dog", "word"), ("red dog", "word"), ("a t-shirt", "word"), ("a red dog", "phrase"), ("...", "word"),
     ("dog on the wet beach", "phrase"), ("a dog on the wet beach", "sentence")],
)  # fmt: skip
def test_lengths(text: str, name: str) -> None:
    assert length_of(text) == name


def test_what_captions_name_is_left_out() -> None:
    groups = background_texts(["Two ZEBRAS near a grand old piano.", "A puppy"])
    gone = {text for name, texts in background_texts().items() for text in texts} - {
        text for texts in groups.values() for text in texts
    }
    assert {"zebra", "grand piano", "a photo of a zebra"} <= gone
    assert not any("zebra" in words_of(text) for texts in groups.values() for text in texts)
    assert "electric guitar" in groups["word"]


def test_words_that_captions_say() -> None:
    captions = ["A dog runs through the snow", "Dogs and a dog in snow", "the snow, a DOG", "a cat near the sea"]
    assert words_said(captions) == ["dog", "snow"]
    assert words_said(captions, least=1) == ["cat", "dog", "dogs", "runs", "sea", "snow"]


# ---------------------------------------------------------------- which method


def test_captions_make_the_rate_a_bound(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY, captions=True, texts={"t": "an otter"}) as collection:
        found = calibrate(collection, Meaning(), false_accept=0.1)
        scale = found.scale("word", "image")
        assert scale is not None
        assert (scale.method, scale.items, scale.alpha) == ("mismatched", len(MANY), 0.1)
        assert scale.answered >= 5, "words that captions say"
        assert scale.false_reject == 0.0
        phrase = found.scale("phrase", "image")
        assert phrase is not None
        assert phrase.answered > 0
        assert phrase.false_reject == 0.0
        pictures = found.scale("image", "image")
        assert pictures is not None
        assert pictures.method == "typical"
        assert found.scale("word", "text") is not None


def test_without_captions_the_rate_is_an_estimate(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        found = calibrate(collection, Meaning())
        assert {name: scale.method for name, scale in found.scales.items()} == {
            "word->image": "robust",
            "phrase->image": "robust",
            "sentence->image": "robust",
            "image->image": "typical",
        }


def test_scores_are_read_in_the_way_that_refuses_fewer() -> None:
    scores = tuple(float(n) for n in range(20))
    bare, own = (Scale("mismatched", scores, 0.1, 9, offset=offset, answered=30) for offset in (0.0, 1.0))
    assert kinder(replace(bare, false_reject=0.4), replace(own, false_reject=0.3)).offset == 1.0
    assert kinder(replace(bare, false_reject=0.3), replace(own, false_reject=0.4)).offset == 0.0
    assert kinder(replace(bare, false_reject=0.3), replace(own, false_reject=0.3)).offset == 0.0
    few = (replace(each, false_reject=rate, answered=5) for each, rate in ((bare, 0.4), (own, 0.1)))
    assert kinder(*few).offset == 0.0, "too few to choose by"
    assert kinder(bare, own).offset == 0.0
    raised = (replace(each, false_reject=0.5, alpha=rate) for each, rate in ((bare, 0.4), (own, 0.2)))
    assert kinder(*raised).offset == 1.0


def test_ones_own_background(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        own = [f"thing{n}" for n in range(30)]
        found = calibrate(collection, Meaning(), background=own, false_accept=0.05)
        word, phrase = found.scale("word", "image"), found.scale("phrase", "image")
        assert word is not None
        assert phrase is not None
        assert (word.method, len(word.scores)) == ("mismatched", 30)
        assert phrase.method == "robust"
        with pytest.raises(ConfigError, match=r"30 background texts .* takes 99"):
            calibrate(collection, Meaning(), background=own, false_accept=0.01)
        with pytest.raises(ConfigError, match=r"rate of 1\.5"):
            calibrate(collection, Meaning(), false_accept=1.5)
        with pytest.raises(StoreError, match="cannot be compared"):
            calibrate(collection, Meaning(space="other"))


def test_pictures_ask_for_texts_other_than_their_own_captions(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        rows = [Row(f"{key}#0", "text", "", words, {}, key) for key, words in MANY.items()]
        # Each caption is at its own picture's place; other pictures' captions are far.
        own = np.stack([image_vector(words, seed=n) for n, words in enumerate(MANY.values())])
        collection.add_rows(rows, own)
        collection.add_rows([Row("other", "text", "", "a dog")], text_vector("dog")[None])
        scale = calibrate(collection, Meaning()).scale("image", "text")
        assert scale is not None
        assert max(scale.scores) < 0.999, "an own caption would have scored 1"


# ---------------------------------------------------------------- the threshold at work


@pytest.mark.parametrize("captions", [True, False])
def test_searches_know_when_nothing_fits(tmp_path: Path, captions: bool) -> None:
    with build(tmp_path / "i", MANY, captions=captions) as collection:
        encoder = Meaning()
        searcher = Searcher(collection, encoder)
        assert not searcher.search("unicorn").calibrated
        keep_calibration(collection, calibrate(collection, encoder))
        fine = searcher.search("dog", k=5)
        assert fine.calibrated
        assert not fine.below_threshold
        assert fine.false_accept == 0.1
        assert all(hit.fits and hit.confidence is not None and hit.confidence > 0.95 for hit in fine.hits)
        # Words that no picture shows, and that are no topics of the background.
        strangers = [f"word{n}" for n in range(200)]
        refused = [searcher.search(word, k=1).below_threshold for word in strangers]
        assert np.mean(refused) >= 0.8
        empty = searcher.search(strangers[refused.index(True)], k=5)
        assert len(empty.hits) == 5
        assert all(hit.fits is False for hit in empty.hits)
        assert empty.threshold is not None
        assert empty.hits[0].score < empty.threshold
        assert searcher.search("dog -cat").calibrated, "negatives leave the wanted part's scores as they are"


def test_which_queries_have_a_scale(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        encoder = Meaning()
        keep_calibration(collection, calibrate(collection, encoder))
        searcher = Searcher(collection, encoder)
        assert searcher.search(Query(image=b"dog beach"), k=1).hits[0].fits
        assert searcher.search(Query(image=b"unicorn"), k=1).below_threshold
        assert searcher.search(Query(key="cat-0"), k=1).hits[0].fits
        for query, marks in ((Query("dog", image=b"cat"), []), (Query("dog"), ["cat-0"])):
            mixture = searcher.search(query, liked=marks)
            assert (mixture.calibrated, mixture.threshold, mixture.below_threshold) == (False, None, False)
        assert searcher.search("dog", threshold=None).hits[0].confidence is not None
        assert searcher.search("dog", threshold=None).threshold is None
        cosine = searcher.search("unicorn", threshold=-1.0)
        assert (cosine.below_threshold, cosine.false_accept, cosine.threshold) == (False, None, -1.0)
        assert not searcher.search("unicorn", kind="text").below_threshold


def test_a_threshold_that_says_nothing_is_not_used(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        encoder = Meaning()
        found = calibrate(collection, encoder)
        word = found.scales["word->image"]
        harsh = replace(word, alpha=0.6, false_reject=0.5, answered=100)
        keep_calibration(
            collection, Calibration(found.encoder, found.probe, 0.1, 1, {**found.scales, "word->image": harsh})
        )
        results = Searcher(collection, encoder).search("unicorn")
        assert (results.below_threshold, results.threshold, results.calibrated) == (False, None, True)
        assert results.hits[0].confidence is not None


# ---------------------------------------------------------------- what is kept


def test_one_calibration_an_encoder(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        teacher, student = Meaning(), Meaning(name="student", turned=0.8)
        keep_calibration(collection, calibrate(collection, teacher))
        assert calibration_for(collection, student) is None, "another encoder's scores are others"
        keep_calibration(collection, calibrate(collection, student))
        keep_calibration(collection, calibrate(collection, teacher, false_accept=0.2))
        assert [(each.encoder, each.alpha) for each in kept_calibrations(collection)] == [
            ("student", 0.1),
            ("meaning", 0.2),
        ]
        # Eight bits change vectors a little: the same encoder still.
        found = calibration_for(collection, Meaning(name="meaning int8", turned=0.05))
        assert found is not None
        assert found.encoder == "meaning"
        assert Searcher(collection, student).calibration == kept_calibrations(collection)[0]
        path = collection.path
    with open_index(path) as reopened:
        assert reopened.facts[FACT]["version"] == 1
        assert Searcher(reopened, Meaning()).search("dog").calibrated


def test_an_encoder_without_texts(tmp_path: Path) -> None:
    with build(tmp_path / "i", MANY) as collection:
        mute = Meaning(can_encode_text=False)
        keep_calibration(collection, calibrate(collection, mute))
        (kept,) = kept_calibrations(collection)
        assert list(kept.scales) == ["image->image"]
        assert calibration_for(collection, mute) == kept
        assert calibration_for(collection, Meaning(name="another", can_encode_text=False)) is None
        assert calibration_for(collection, Meaning()) is None


def test_a_calibration_that_cannot_be_read_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with build(tmp_path / "i", SCENES) as collection:
        for damaged in ({"version": 99}, {"version": 1, "encoders": [{}]}, {"version": 1, "encoders": 3}):
            collection.set_fact(FACT, damaged)
            with caplog.at_level(logging.WARNING):
                assert kept_calibrations(collection) == []
        assert "cannot be read" in caplog.text
        assert not Searcher(collection, Meaning()).search("dog").calibrated


def test_a_collection_too_small_for_pictures(tmp_path: Path) -> None:
    with build(tmp_path / "i", {"a": "dog", "b": "cat"}) as collection:
        found = calibrate(collection, Meaning())
        assert found.scale("image", "image") is None
        assert found.scale("word", "image") is not None
