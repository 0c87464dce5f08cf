"""Top-k lists and inclusion probabilities against plain sorting and counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clipette.errors import ModelError
from clipette.metrics.similarity import cosines, inclusion, row_blocks, top_k, top_k_of_scores

from .twins import orders, unit

small_scores = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(small_scores, st.integers(1, 7))
def test_top_k_is_a_stable_sort(scores: np.ndarray, k: int) -> None:
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores]
    assert top_k_of_scores(scores, k).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(small_scores, st.integers(1, 7))
def test_inclusion_is_counted_over_all_orders(scores: np.ndarray, k: int) -> None:
    for row, shares in zip(scores, inclusion(scores, k), strict=True):
        rankings = list(orders(list(row)))
        expected = [sum(item in ranking[:k] for ranking in rankings) / len(rankings) for item in range(len(row))]
        assert shares == pytest.approx(expected)


def test_top_k_by_blocks_is_top_k_at_once() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng, 17, 4), unit(rng, 30, 4)
    assert (top_k(queries, gallery, 5, block_bytes=4 * 30 * 3) == top_k_of_scores(cosines(queries, gallery), 5)).all()
    assert top_k(queries[:0], gallery, 5).shape == (0, 5)


def test_equal_vectors_tie_exactly_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    query, item = unit(rng, 1, 513), unit(rng, 1, 513)
    for rows, copies in itertools.product((1, 3, 64), (5, 129, 1000)):
        scores = cosines(np.tile(query, (rows, 1)), np.tile(item, (copies, 1)))
        assert len(np.unique(scores)) == 1


def test_cosines_stay_within_the_grid_of_the_true_value() -> None:
    rng = np.random.default_rng(0)
    left, right = unit(rng, 20, 64), unit(rng, 30, 64)
    true = left.astype(np.float64) @ right.astype(np.float64).T
    assert np.abs(cosines(left, right) - true).max() < 2**-20
    left[3] = np.nan
    with pytest.raises(ModelError, match="similarities: row 3"):
        cosines(left, right)


def test_blocks_cover_every_row_once() -> None:
    covered = [row for block in row_blocks(10, 5, 4 * 5 * 3) for row in range(block.start, block.stop)]
    assert covered == list(range(10))
    assert [block.stop - block.start for block in row_blocks(3, 10**9)] == [1, 1, 1]
