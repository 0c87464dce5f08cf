"""Hash-seeded order: a permutation, well mixed, and frozen."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipette.data.order import epoch_order, stable_hash, stable_uniforms


@given(st.integers(0, 500), st.integers(0, 2**63), st.integers(0, 1000))
def test_each_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_position_is_equally_likely() -> None:
    places = np.array([np.argsort(epoch_order(10, 0, epoch)) for epoch in range(4000)])
    for element in range(10):
        counts = np.bincount(places[:, element], minlength=10)
        assert np.abs(counts - 400).max() < 100  # 5 standard deviations


def test_hashes_tell_types_and_boundaries_apart() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (1.5,), (True,), (None,), ("",), (), ("", "")]
    assert len({stable_hash(*part) for part in parts}) == len(parts)
    assert all(0 <= stable_hash(*part) < 2**64 for part in parts)


def test_uniforms_are_uniform_and_endless() -> None:
    draws = np.array(list(islice(stable_uniforms("a", 0), 20_000)))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
    assert len(set(draws)) == len(draws)
