"""Diversity and near-duplicates against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.index.meaning import unit

from clipette.errors import ConfigError
from clipette.index.rerank import DUPLICATE, centred, groups, mmr


def slow_mmr(relevance: list[float], vectors: np.ndarray, k: int, balance: float) -> list[int]:
    low, high = min(relevance), max(relevance)
    scaled = [(r - low) / (high - low) if high > low else 1.0 for r in relevance]
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        best, best_value = -1, -float("inf")
        for row in range(len(relevance)):
            if row in chosen:
                continue
            nearest = max([max(0.0, float(vectors[row] @ vectors[j])) for j in chosen], default=0.0)
            value = balance * scaled[row] - (1 - balance) * nearest
            if value > best_value + 1e-9:
                best, best_value = row, value
        chosen.append(best)
    return chosen


@given(st.integers(1, 12), st.integers(1, 15), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 999))
def test_mmr_is_its_equation(count: int, k: int, balance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((count, 4)))
    relevance = np.sort(rng.random(count).astype(np.float32))[::-1].copy()
    found = mmr(relevance, vectors, k, balance).tolist()
    assert found == slow_mmr(relevance.tolist(), vectors, k, balance)
    assert len(set(found)) == min(k, count)
    assert found[0] == 0 or balance == 0.0
    if balance == 1.0:
        assert found == list(range(min(k, count)))


def test_mmr_spreads_over_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = unit(rng.standard_normal((3, 16)))
    vectors = unit(np.repeat(clusters, 5, axis=0) + 0.05 * rng.standard_normal((15, 16)))
    relevance = np.linspace(1.0, 0.7, 15, dtype=np.float32)
    assert {row // 5 for row in mmr(relevance, vectors, 3, 1.0).tolist()} == {0}
    assert {row // 5 for row in mmr(relevance, vectors, 3, 0.5).tolist()} == {0, 1, 2}


def test_mmr_of_nothing_and_of_equals() -> None:
    assert len(mmr(np.zeros(0, np.float32), np.zeros((0, 4), np.float32), 3, 0.5)) == 0
    equal = mmr(np.ones(3, np.float32), np.repeat(unit(np.ones((1, 4))), 3, axis=0), 3, 0.5)
    assert equal.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"mmr: 1\.5"):
        mmr(np.ones(2, np.float32), np.ones((2, 4), np.float32), 1, 1.5)


def test_groups() -> None:
    angle = np.radians([0, 10, 20, 90, 92, 15])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    same = float(np.cos(np.radians(12)))
    # 20 degrees is a neighbour of 10, but not of the leader at 0: chains join no strangers.
    assert groups(vectors, same) == [[0, 1], [2, 5], [3, 4]]
    assert groups(vectors[:0]) == []
    assert groups(vectors, 1.0) == [[row] for row in range(6)]
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="no likeness"):
            groups(vectors, bad)


def test_copies_group_and_strangers_in_a_narrow_cone_do_not() -> None:
    rng = np.random.default_rng(1)
    # A cone: cosines between strangers are about 0.95, as a small student's can be.
    cone = unit(np.eye(32)[0] * 9 + rng.standard_normal((40, 32)) * 0.25)
    copies = unit(cone[:5] + 0.003 * rng.standard_normal((5, 32)))
    both = np.concatenate([cone, copies])
    assert float((cone @ cone.T)[np.triu_indices(40, 1)].min()) > DUPLICATE
    found = groups(centred(both, both.mean(axis=0)))
    assert [sorted(group) for group in found if len(group) > 1] == [[row, 40 + row] for row in range(5)]


def test_centring() -> None:
    vectors = unit(np.array([[1.0, 2.0], [2.0, 1.0]]))
    moved = centred(vectors, vectors.mean(axis=0))
    np.testing.assert_allclose(moved[0], -moved[1], atol=1e-6)
    assert not centred(vectors, vectors[0])[0].any()
