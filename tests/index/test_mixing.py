"""Mixtures hear every part alike, marks refine, negatives push down: against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.index.meaning import SCENES, image_vector, text_vector, unit

from clipette.errors import ConfigError
from clipette.index.mixing import (
    ROCCHIO_DISLIKED,
    ROCCHIO_LIKED,
    Reference,
    mixed,
    penalties,
    rocchio,
)


@pytest.fixture
def reference() -> Reference:
    return Reference(np.stack([image_vector(words, seed=n) for n, words in enumerate(SCENES.values())]))


def spread(vector: np.ndarray, reference: Reference) -> tuple[float, float]:
    scores = [sum(float(a) * float(b) for a, b in zip(vector, item, strict=True)) for item in reference.vectors]
    mean = sum(scores) / len(scores)
    return mean, math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))


def test_one_part_stays_as_it_is_to_the_bit(reference: Reference) -> None:
    vector = text_vector("dog")
    assert mixed([(vector, 0.37)], reference) is vector
    assert mixed([(vector, 2.0), (text_vector("cat"), 0.0)], reference) is vector


def test_the_equation(reference: Reference) -> None:
    text, image = text_vector("dog"), image_vector("beach", seed=77)
    total = sum(w * v.astype(float) / spread(v, reference)[1] for v, w in ((text, 1.0), (image, 0.5)))
    np.testing.assert_allclose(mixed([(text, 1.0), (image, 0.5)], reference), total / np.linalg.norm(total), atol=1e-6)
    # Only ratios count.
    np.testing.assert_allclose(
        mixed([(text, 4.0), (image, 2.0)], reference), mixed([(text, 1.0), (image, 0.5)], reference), atol=1e-6
    )


def test_text_and_picture_are_heard_alike(reference: Reference) -> None:
    """With sums of vectors the picture drowns the text: what the spreads are for."""
    text, image = text_vector("dog"), image_vector("cat tree", seed=77)
    shown = list(SCENES.values())

    def first(vector: np.ndarray) -> list[str]:
        return [shown[row] for row in np.argsort(-(reference.vectors @ vector))[:12]]

    def share(vector: np.ndarray, word: str) -> int:
        return sum(word in words.split() for words in first(vector))

    plain, ours = unit(text + image), mixed([(text, 1.0), (image, 1.0)], reference)
    assert share(plain, "dog") < share(ours, "dog")
    assert share(ours, "dog") >= 3
    assert share(ours, "cat") >= 3


def test_small_or_flat_collections_have_no_spread() -> None:
    text, image = text_vector("dog"), image_vector("beach")
    for vectors in (np.zeros((0, 48), np.float32), image[None], np.repeat(image[None], 5, axis=0)):
        np.testing.assert_allclose(
            mixed([(text, 1.0), (image, 1.0)], Reference(vectors)), unit(text + image), atol=1e-6
        )
    assert not Reference(image[None]).centre.any()


def test_parts_that_cancel_out_are_refused(reference: Reference) -> None:
    vector = text_vector("dog")
    with pytest.raises(ConfigError, match="points nowhere"):
        mixed([(vector, 1.0), (vector, -1.0)], reference)
    with pytest.raises(ConfigError, match="weighs 0"):
        mixed([(vector, 0.0)], reference)


def test_rocchio(reference: Reference) -> None:
    query = [(text_vector("dog"), 3.0), (image_vector("beach", seed=1), 1.0)]
    liked = np.stack([image_vector("dog snow", seed=n) for n in range(3)])
    disliked = np.stack([image_vector("cat", seed=n) for n in range(2)])
    parts = rocchio(query, liked, disliked, reference)
    assert [round(weight, 6) for _, weight in parts] == [0.75, 0.25, ROCCHIO_LIKED, -ROCCHIO_DISLIKED]
    np.testing.assert_allclose(parts[2][0], unit(liked.sum(axis=0)), atol=1e-6)
    np.testing.assert_allclose(parts[3][0], unit(disliked.sum(axis=0)), atol=1e-6)
    none = np.zeros((0, 48), np.float32)
    assert rocchio(query, none, none, reference)[0][1] == 0.75
    (alone,) = rocchio([], liked, none, reference)
    np.testing.assert_allclose(alone[0], unit(liked.sum(axis=0)), atol=1e-6)


def test_marks_move_the_query_towards_the_liked_and_off_the_disliked(reference: Reference) -> None:
    query = [(text_vector("dog"), 1.0)]
    liked, disliked = image_vector("dog beach", seed=200)[None], image_vector("dog people beach", seed=201)[None]
    none = np.zeros((0, 48), np.float32)
    plain = mixed(query, reference)
    to = mixed(rocchio(query, liked, none, reference), reference)
    off = mixed(rocchio(query, none, disliked, reference), reference)
    beach, people = image_vector("beach", 0.0), image_vector("people", 0.0)
    dogs = image_vector("dog", 0.0)
    assert to @ beach - to @ dogs > plain @ beach - plain @ dogs
    assert off @ people - off @ dogs < plain @ people - plain @ dogs


def test_penalties(reference: Reference) -> None:
    items = np.stack([image_vector(words, seed=n) for n, words in enumerate(["people", "dog", "people snow", "cat"])])
    negatives = np.stack([text_vector("people"), text_vector("snow")])
    expected = []
    for item in items:
        total = 0.0
        for negative in negatives:
            mean, std = spread(negative, reference)
            standard = (float(item @ negative) - mean) / std
            total += 0.25 * max(standard, -2.0) + max(0.0, standard - 1.0)
        expected.append(0.7 * total)
    np.testing.assert_allclose(penalties(items, negatives, reference, 0.7), expected, rtol=1e-3, atol=1e-4)
    assert expected[2] > expected[0] > 0, "both unwanted things are worse than one"
    assert -1.0 * 0.7 <= expected[1] < 0, "little is gained by being unlike the unwanted"
    assert not penalties(items, negatives[:0], reference).any()
