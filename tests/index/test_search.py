"""Searching a small collection: every kind of query, every option, and what happens beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.index.meaning import DIM, SCENES, Meaning, build, image_vector, text_vector, unit

from clipette.errors import ConfigError, StoreError, UnsupportedError
from clipette.index.collection import Collection
from clipette.index.query import Query
from clipette.index.search import How, Results, Searcher
from clipette.metrics.similarity import top_k

TEXTS = {"t-dog": "a dog", "t-beach": "a beach", "t-car": "a car in the snow"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    with build(tmp_path_factory.mktemp("index") / "my.index", SCENES, texts=TEXTS) as opened:
        yield opened


@pytest.fixture
def searcher(collection: Collection) -> Searcher:
    return Searcher(collection, Meaning())


def shown(results: Results) -> list[str]:
    return [hit.key.rpartition("-")[0] for hit in results.hits]


def behind(order: list[str]) -> float:
    """How many places the beaches with people are behind those with boats."""
    people, boats = (
        [place for place, key in enumerate(order) if key.startswith(word)] for word in ("dog-people-beach", "boat")
    )
    return float(np.mean(people) - np.mean(boats))


def keys(results: Results) -> list[str]:
    return [hit.key for hit in results.hits]


# ---------------------------------------------------------------- plain


def test_a_text_finds_what_it_says(searcher: Searcher) -> None:
    results = searcher.search("car snow", k=6)
    assert set(shown(results)) == {"car-snow"}
    assert [hit.rank for hit in results.hits] == [1, 2, 3, 4, 5, 6]
    first = results.hits[0]
    assert (first.kind, first.text) == ("image", None)
    assert first.meta["shows"] == "car snow"
    assert (first.fits, first.confidence, results.calibrated, results.below_threshold) == (None, None, False, False)
    assert results.took_ms > 0
    assert results.generation == searcher.collection.generation


def test_ranks_and_scores_are_those_of_the_offline_evaluation(searcher: Searcher) -> None:
    collection = searcher.collection
    gallery = sorted(collection.keys("image"))
    vectors = collection.vectors(gallery)
    asked = ["dog", "beach", "people snow", "a boat", "cat tree"]
    expected = top_k(np.stack([text_vector(text) for text in asked]), vectors, 10)
    found = collection.search_vectors(np.stack([text_vector(text) for text in asked]), 10, kind="image")
    for number, results in enumerate(searcher.search_many(asked, How(k=10))):
        assert keys(results) == [gallery[row] for row in expected[number]]
        assert [hit.score for hit in results.hits] == found.scores[number].tolist()


def test_more_hits_than_there_are(searcher: Searcher) -> None:
    assert len(searcher.search("dog", k=1000).hits) == len(SCENES)
    folded = searcher.search("dog -cat", k=1000, group=True, mmr=0.5).hits
    assert len(folded) + sum(len(hit.duplicates) for hit in folded) == len(SCENES)


def test_filters(searcher: Searcher) -> None:
    results = searcher.search("beach", k=50, where="first = 'boat'")
    assert set(shown(results)) == {"boat-beach"}
    assert len(results.hits) == 6
    assert searcher.search("beach", where="first = 'moon'").hits == ()
    with pytest.raises(ConfigError, match="first"):
        searcher.search("beach", where="frist = 'boat'")


# ---------------------------------------------------------------- other kinds of query


def test_pictures_items_and_vectors_ask_too(searcher: Searcher) -> None:
    by_bytes = searcher.search(Query(image=b"boat beach"), k=6)
    assert set(shown(by_bytes)) == {"boat-beach"}
    by_key = searcher.search(Query(key="boat-beach-0"), k=5)
    assert set(shown(by_key)) == {"boat-beach"}
    assert "boat-beach-0" not in keys(by_key), "an item is no answer to itself"
    vector = searcher.collection.vectors(["boat-beach-0"])[0] * 3
    assert keys(searcher.search(Query(vector=vector), k=6))[0] == "boat-beach-0"
    with pytest.raises(StoreError, match="nowhere"):
        searcher.search(Query(key="nowhere"))
    with pytest.raises(ConfigError, match=r"shape \[3\]"):
        searcher.search(Query(vector=np.ones(3, np.float32)))


def test_pictures_find_texts_and_texts_texts(searcher: Searcher) -> None:
    results = searcher.search(Query(image=b"car snow"), k=1, kind="text")
    assert [(hit.key, hit.kind, hit.text) for hit in results.hits] == [("t-car", "text", "a car in the snow")]
    assert keys(searcher.search("dog", k=1, kind="text")) == ["t-dog"]


def test_both_kinds_in_one_list(searcher: Searcher) -> None:
    results = searcher.search("dog", k=12, kind="any")
    kinds = [hit.kind for hit in results.hits]
    assert "t-dog" in keys(results)
    assert kinds.count("image") >= 6, "cosines alone would put all texts first"
    assert all("dog" in hit.key for hit in results.hits[:6])
    assert [hit.rank for hit in results.hits] == list(range(1, 13))


def test_mixtures_and_their_weights(searcher: Searcher) -> None:
    text, image = "people", b"beach"
    both = searcher.search(Query(text, image=image), k=6)
    assert set(shown(both)) == {"dog-people-beach"}
    only_text = searcher.search(Query(text, image=image, weights={"image": 0}), k=10)
    assert keys(only_text) == keys(searcher.search(text, k=10))
    only_image = searcher.search(Query(text, image=image, weights={"text": 0.0}), k=10)
    assert keys(only_image) == keys(searcher.search(Query(image=image), k=10))
    twice = searcher.search(Query(text, image=image, weights={"text": 2, "image": 2}), k=10)
    assert keys(twice) == keys(searcher.search(Query(text, image=image), k=10))


def test_negatives(searcher: Searcher) -> None:
    plain, without = searcher.search("beach", k=18), searcher.search("beach -people", k=12)
    assert "dog-people-beach" in shown(plain)
    assert "dog-people-beach" not in shown(without)
    assert set(shown(without)) == {"dog-beach", "boat-beach"}
    none = searcher.search(Query("beach", negatives=("people",), weights={"negative": 0}), k=18)
    assert keys(none) == keys(plain)
    two = searcher.search("beach -people -dog", k=6)
    assert set(shown(two)) == {"boat-beach"}
    # The score stays the cosine with what is wanted.
    scores = {hit.key: hit.score for hit in plain.hits}
    assert all(scores[hit.key] == pytest.approx(hit.score, abs=2e-6) for hit in without.hits)


def test_negatives_find_what_lies_behind_hundreds_of_unwanted(tmp_path: Path) -> None:
    many = {f"people-beach-{n}": "people beach" for n in range(250)} | {f"cat-{n}": "cat tree" for n in range(700)}
    # The wanted ones are further from "beach" than all that show people.
    given = {f"empty-{n}": unit(image_vector("beach", seed=n) + 0.5 * image_vector("tree", seed=n)) for n in range(3)}
    with build(tmp_path / "i", many | dict.fromkeys(given, "beach"), vectors=given) as collection:
        searcher = Searcher(collection, Meaning())
        assert not any(key.startswith("empty") for key in keys(searcher.search("beach", k=250)))
        assert sorted(keys(searcher.search("beach -people", k=3))) == ["empty-0", "empty-1", "empty-2"]


def test_feedback(searcher: Searcher) -> None:
    plain = searcher.search("dog", k=6)
    liked = searcher.search("dog", k=6, liked=["dog-beach-0", "dog-beach-1"])
    assert shown(liked).count("dog-beach") > shown(plain).count("dog-beach")
    marked = [f"dog-people-beach-{n}" for n in range(3)]
    before = [key for key in keys(searcher.search("beach", k=48)) if key not in marked]
    after = keys(searcher.search("beach", k=45, disliked=marked))
    assert sorted(after) == sorted(before), "what is disliked is not shown again"
    assert behind(after) > behind(before), "what is like it falls behind what is not"
    alone = searcher.search(liked=["car-snow-0"], k=6)
    assert set(shown(alone)) == {"car-snow"}
    with pytest.raises(ConfigError, match="nothing to look for"):
        searcher.search()
    with pytest.raises(StoreError, match="gone"):
        searcher.search("dog", liked=["gone"])


# ---------------------------------------------------------------- result lists


def test_diversity(searcher: Searcher) -> None:
    plain, diverse = searcher.search("beach", k=6), searcher.search("beach", k=6, mmr=0.5)
    assert len(set(shown(diverse))) > len(set(shown(plain))) or len(set(shown(plain))) == 3
    assert keys(diverse)[0] == keys(plain)[0]
    assert keys(searcher.search("beach", k=6, mmr=1.0)) == keys(plain)
    assert [hit.rank for hit in diverse.hits] == [1, 2, 3, 4, 5, 6]


def test_near_duplicates_fold_and_the_list_is_filled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = image_vector("dog beach", seed=50)
    copies = {f"copy-{n:02d}": unit(base + 0.002 * rng.standard_normal(DIM)) for n in range(40)}
    shows = {**dict.fromkeys(copies, "dog beach"), **SCENES}
    with build(tmp_path / "i", shows, vectors=copies) as collection:
        searcher = Searcher(collection, Meaning())
        assert all(hit.key.startswith("copy") or "dog" in hit.key for hit in searcher.search("dog beach", k=8).hits)
        grouped = searcher.search("dog beach", k=8, group=True)
        assert len(grouped.hits) == 8
        (folded,) = [hit for hit in grouped.hits if hit.key.startswith("copy")]
        assert len(folded.duplicates) == 39
        assert not {hit.key for hit in grouped.hits} & set(folded.duplicates)
        assert all(not hit.duplicates for hit in grouped.hits if hit is not folded)
        both = searcher.search("dog beach", k=8, group=True, mmr=0.7)
        assert len(both.hits) == 8
        assert sum(hit.key.startswith("copy") for hit in both.hits) == 1


# ---------------------------------------------------------------- thresholds without a calibration


def test_a_cosine_as_threshold(searcher: Searcher) -> None:
    results = searcher.search("car", k=30, threshold=0.15)
    assert results.threshold == 0.15
    assert {hit.fits for hit in results.hits if "car" in hit.key} == {True}
    assert {hit.fits for hit in results.hits if "car" not in hit.key} == {False}
    assert not results.below_threshold
    nothing = searcher.search("zebra", threshold=0.15)
    assert nothing.below_threshold
    assert nothing.hits, "the nearest are shown all the same"
    assert not searcher.search("zebra", threshold=None).below_threshold
    assert not searcher.search("zebra", threshold="auto").below_threshold, "not calibrated: no threshold"
    assert searcher.search("zebra", where="first = 'moon'", threshold=0.15).below_threshold


# ---------------------------------------------------------------- many at once


def test_many_queries_answer_as_one_by_one(collection: Collection) -> None:
    encoder = Meaning()
    searcher = Searcher(collection, encoder)
    asked = ["dog", "beach -people", Query("dog", image=b"snow"), Query(key="cat-1"), Query(image=b"boat"), "dog"]
    how = How(k=7, mmr=0.8, group=True)
    many = searcher.search_many(asked, how)
    assert len(encoder.texts_encoded) == 1, "encoded together"
    assert sorted(encoder.texts_encoded[0]) == ["beach", "dog", "people"], "each once"
    for query, results in zip(asked, many, strict=True):
        alone = searcher.search(query, k=7, mmr=0.8, group=True)
        assert keys(alone) == keys(results)
    assert searcher.search_many([]) == []


def test_what_will_be_encoded_can_be_asked(searcher: Searcher) -> None:
    assert searcher.texts_of("beach -people") == ["beach", "people"]
    assert searcher.texts_of(Query("a", image=b"x", weights={"text": 0})) == []
    assert searcher.texts_of(Query(key="k", negatives=("b",))) == ["b"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"kind": "video"}, "no kind 'video'"),
        ({"mmr": 2.0}, r"mmr 2\.0"),
        ({"threshold": "high"}, "no threshold 'high'"),
        ({"threshold": float("nan")}, "no threshold nan"),
    ],
)
def test_wrong_options(searcher: Searcher, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        searcher.search("dog", **options)


def test_another_space_is_refused_and_the_same_space_is_not(collection: Collection) -> None:
    with pytest.raises(StoreError, match="cannot be compared"):
        Searcher(collection, Meaning(space="others"))
    student = Searcher(collection, Meaning(name="student", turned=0.2))
    assert set(shown(student.search("car snow", k=3))) == {"car-snow"}


def test_sides_that_are_not_there(collection: Collection) -> None:
    blind = Searcher(collection, Meaning(can_encode_images=False))
    with pytest.raises(UnsupportedError, match="encodes no images"):
        blind.search(Query(image=b"dog"))
    mute = Searcher(collection, Meaning(can_encode_text=False))
    with pytest.raises(UnsupportedError, match="encodes no texts"):
        mute.search("dog")
    assert mute.search(Query(image=b"dog"), k=1).hits
    bare = Searcher(collection)
    assert shown(bare.search(Query(key="cat-1"), k=1)) == ["cat"]
    with pytest.raises(UnsupportedError, match="no model"):
        bare.search("dog")
    with pytest.raises(UnsupportedError, match="no model"):
        bare.search(Query(key="cat-1", negatives=("dog",)))


# ---------------------------------------------------------------- while others write


def test_items_deleted_between_finding_and_showing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with build(tmp_path / "i", SCENES) as collection:
        searcher = Searcher(collection, Meaning())
        plain, calls = collection.search_vectors, []

        def slow(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            if not calls:
                calls.append(collection.delete([found.keys[0][0]]))
            return found

        monkeypatch.setattr(collection, "search_vectors", slow)
        results = searcher.search("car snow", k=6)
        assert calls == [1]
        assert len(results.hits) == 6
        assert sum("car" in hit.key for hit in results.hits) == 5


def test_searching_while_another_thread_writes(tmp_path: Path) -> None:
    with build(tmp_path / "i", SCENES) as collection:
        searcher = Searcher(collection, Meaning())
        faults: list[BaseException] = []
        done = threading.Event()

        def write() -> None:
            try:
                for number in range(12):
                    collection.delete([f"dog-{number % 6}", f"cat-{number % 6}"])
            except BaseException as error:
                faults.append(error)
            finally:
                done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            assert searcher.search("dog cat -snow", k=20, mmr=0.5, group=True).hits
        writer.join()
        assert not faults
        assert not {"dog", "cat"} & set(shown(searcher.search("dog", k=100)))


def test_an_empty_collection(tmp_path: Path) -> None:
    with build(tmp_path / "i", {"only": "dog"}) as collection:
        searcher = Searcher(collection, Meaning())
        assert keys(searcher.search("dog -cat", mmr=0.5, group=True)) == ["only"]
        collection.delete(["only"])
        assert searcher.search("dog -cat", mmr=0.5, group=True).hits == ()
        assert searcher.search("dog", kind="any").hits == ()
        assert searcher.search("dog", kind="text").hits == ()
