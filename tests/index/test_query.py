"""Queries as people type them: negatives, quotation marks, hyphens; and what is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipette.errors import ConfigError
from clipette.index.query import Query, parse_text, unit


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("beach -people", "beach", ("people",)),
        ("-people beach", "beach", ("people",)),
        ("a beach -people at dusk -dogs", "a beach at dusk", ("people", "dogs")),
        ('a car -"red car" parked', "a car parked", ("red car",)),
        ("\u2212snow ski", "ski", ("snow",)),
        ("beach -people, empty", "beach empty", ("people",)),
        ("a t-shirt", "a t-shirt", ()),
        ("a dog -t-shirt", "a dog", ("t-shirt",)),
        ("a dog - running", "a dog - running", ()),
        ("a dog -- running", "a dog -- running", ()),
        ("--dog", "--dog", ()),
        ("at -5 degrees", "at -5 degrees", ()),
        ("spider-man -mask", "spider-man", ("mask",)),
        ('"spider -man" -mask', "spider -man", ("mask",)),
        ('a 5" nail -hammer', 'a 5" nail', ("hammer",)),
        ('"unclosed -people', '"unclosed', ("people",)),
        ("dog -cat -cat", "dog", ("cat",)),
        ("пляж -люди", "пляж", ("люди",)),
        ('dog -"  "', "dog", ()),
        ("  beach \n  sunset ", "  beach \n  sunset ", ()),
        ("  beach \n  -sunset ", "beach", ("sunset",)),
        ('a "red  car" parked', 'a "red  car" parked', ()),
        ('a "red car" -"blue car"', 'a "red car"', ("blue car",)),
        ("-people", "", ("people",)),
        ("", "", ()),
    ],
)
def test_parsing(text: str, wanted: str, unwanted: tuple[str, ...]) -> None:
    assert parse_text(text) == (wanted, unwanted)


@given(st.text(alphabet='ab -"−,5é\n', max_size=30))
def test_parsing_never_fails_and_loses_no_letter(text: str) -> None:
    wanted, unwanted = parse_text(text)
    assert sorted(c for c in wanted + "".join(unwanted) if c.isalpha()) <= sorted(c for c in text if c.isalpha())
    assert all(each == " ".join(each.split()) and each for each in unwanted)
    if "-" not in text and "−" not in text:
        assert (wanted, unwanted) == (text, ())


def test_real_captions_go_to_the_encoder_as_they_are(shared: Path) -> None:
    """A search equals the offline evaluation only if typing a caption changes nothing about it."""
    photos = shared / "data" / "flickr8k-test-000.tar"
    if not photos.exists():
        pytest.skip(f"{photos.name} is absent")
    captions = []
    with tarfile.open(photos) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name.endswith(".json") else None
            if stream is not None:
                captions += json.load(stream)["captions"]
    assert len(captions) == 5000
    assert any('"' in caption for caption in captions)
    assert [caption for caption in captions if parse_text(caption) != (caption, ())] == []


def test_a_parsed_query_joins_both_ways_of_saying_no() -> None:
    query = Query.parse("beach -people", negatives=("dogs", "people", " "))
    assert (query.text, query.negatives) == ("beach", ("people", "dogs"))
    assert Query.parse("-people", key="a").parts == ("key",)
    assert Query.parse("  ", key="a").text is None
    # Not parsed unless asked for: a caption with a dash is a caption.
    assert Query("beach -people").text == "beach -people"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Query(), "nothing to look for"),
        (lambda: Query(negatives=("people",)), "what is unwanted alone"),
        (lambda: Query("  "), "the text is empty"),
        (lambda: Query("a", negatives=("",)), "empty negative term"),
        (lambda: Query("a", weights={"text": 0}), "nothing to look for"),
        (lambda: Query("a", weights={"txt": 1}), "no weight 'txt'"),
        (lambda: Query("a", weights={"text": float("nan")}), "is nan"),
        (lambda: Query("a", weights={"negative": -1}), "number from 0 up"),
    ],
)
def test_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


def test_parts_and_weights() -> None:
    query = Query("a", image=b"x", key="k", weights={"image": 0.0, "text": 2})
    assert query.parts == ("text", "key")
    assert (query.weight("text"), query.weight("key"), query.weight("negative")) == (2.0, 1.0, 1.0)


def test_logs_hold_no_pixels() -> None:
    told = Query("a", image=b"secret", vector=np.ones(3, np.float32), negatives=("b",), weights={"text": 2}).describe()
    assert told == {"text": "a", "image": True, "vector": True, "negatives": ["b"], "weights": {"text": 2.0}}
    assert "secret" not in json.dumps(told)


def test_a_vector_without_direction_is_refused() -> None:
    np.testing.assert_allclose(unit(np.array([3, 4], np.float32), "v"), [0.6, 0.8])
    for bad in ([0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(ConfigError, match="points nowhere"):
            unit(np.array(bad, np.float32), "v")
