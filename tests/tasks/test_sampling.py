"""Orders of an epoch: permutations, class shares, and neighbours side by side, each a function of the epoch alone."""

from __future__ import annotations

import numpy as np
import pytest

from clipette.errors import ConfigError
from clipette.tasks.labels import labels_of
from clipette.tasks.sampling import BalancedOrder, NeighbourOrder, nearest
from clipette.types import Floats, Sample

LONG_TAIL = [0] * 80 + [1] * 15 + [2] * 5


@pytest.mark.parametrize(("power", "shares"), [(0.0, (80, 15, 5)), (1.0, (100 / 3,) * 3), (0.5, None)])
def test_class_shares_follow_the_power(power: float, shares: tuple[float, ...] | None) -> None:
    order = BalancedOrder(LONG_TAIL, 0, power=power)
    drawn = [np.bincount(np.array(LONG_TAIL)[order(epoch)], minlength=3) for epoch in range(30)]
    mean = np.mean(drawn, axis=0)
    if shares is None:
        roots = np.sqrt([80, 15, 5])
        shares = tuple(100 * roots / roots.sum())
    np.testing.assert_allclose(mean, shares, atol=1.0)
    assert all(int(each.sum()) == 100 for each in drawn)
    if power == 0:
        assert sorted(order(0)) == list(range(100)), "without weights every sample comes once"


def test_draws_differ_by_epoch_and_repeat_for_the_same() -> None:
    order, again = (BalancedOrder(LONG_TAIL, 5, power=1.0) for _ in range(2))
    assert np.array_equal(order(2), again(2))
    assert not np.array_equal(order(2), order(3))
    # Every rare sample is drawn about 6.7 times.
    counts = np.bincount(order(1), minlength=100)
    assert set(counts[95:]) <= {6, 7}


def test_samples_without_a_class_are_refused_by_name() -> None:
    samples = [Sample("a", label=0), Sample("b/1.jpg"), Sample("c", label=1), Sample("d")]
    message = r"^sampling\.balance needs a class for every sample, and 2 of 4 have none \(the first: 'b/1\.jpg'\): give"
    with pytest.raises(ConfigError, match=message):
        labels_of(samples, "sampling.balance")
    assert labels_of(samples[::2], "sampling.balance") == [0, 1]


def clustered(clusters: int, each: int) -> Floats:
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(clusters, 16)), each, axis=0)
    vectors = centres + 0.05 * generator.normal(size=centres.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_equal_a_sort_of_all_cosines() -> None:
    vectors = clustered(5, 9)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :7]
    assert np.array_equal(nearest(vectors, 7, chunk=10), expected)
    assert nearest(vectors, 44).shape == (45, 44)


def test_alike_samples_stand_side_by_side_and_each_comes_once() -> None:
    vectors = clustered(8, 4)
    order = NeighbourOrder(vectors, 1, group=4)
    first, second = order(0), order(1)
    assert sorted(first) == sorted(second) == list(range(32))
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert all(len(set(group)) == 1 for group in (epoch // 4).reshape(8, 4)), "each group is one cluster"
    with pytest.raises(ConfigError, match="at least 2"):
        NeighbourOrder(vectors, 1, group=1)
