from __future__ import annotations

import numpy as np
import pytest
from tests.index.made import drawn

from clipette.index import exact
from clipette.index.exact import exact_search
from clipette.metrics.similarity import cosines


def slow(queries, vectors, k, allowed, names):
    """Every pair, sorted by score and then by name."""
    scores = cosines(queries, vectors)
    rows = [row for row in range(len(vectors)) if allowed is None or allowed[row]]
    best = [sorted(rows, key=lambda row: (-line[row], names[row]))[:k] for line in scores]
    return [[names[row] for row in some] for some in best], [
        line[some] for line, some in zip(scores, best, strict=True)
    ]


@pytest.mark.parametrize("block", [3, 50, 10_000])
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("share", [None, 0.05, 0.6, 0.0])
def test_equals_sorting_every_pair(block: int, count: int, share: float | None, monkeypatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", block)
    vectors = drawn(200)
    vectors[50:60] = vectors[7]  # exact ties
    queries = np.concatenate([vectors[7:8], drawn(6, seed=1)])[:count]
    names = [f"n{(row * 37) % 200:03d}" for row in range(200)]
    allowed = None if share is None else np.random.default_rng(2).random(200) < share
    for k in (1, 5, 500):
        found = exact_search([vectors[:90], vectors[90:90], vectors[90:]], queries, k, allowed, names.__getitem__)
        keys, scores = slow(queries, vectors, k, allowed, names)
        assert found.keys == keys
        for ours, theirs in zip(found.scores, scores, strict=True):
            assert ours.dtype == np.float32
            # Sums in another order may fall on either side of a step of the grid.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-20)


def test_nothing_there() -> None:
    found = exact_search([], drawn(2), 3, None, str)
    assert found.keys == [[], []]
