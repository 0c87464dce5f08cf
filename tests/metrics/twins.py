"""Slow, obvious twins: plain loops over explicit rankings, and the mean over every order of tied items."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np


def orders(scores: Sequence[float]) -> Iterator[list[int]]:
    """Every ranking of the items that the scores allow."""
    levels = sorted(set(scores), reverse=True)
    groups = [[i for i, s in enumerate(scores) if s == level] for level in levels]
    for choice in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        yield [item for group in choice for item in group]


def ranked_measures(ranking: Sequence[int], relevant: set[int], ks: Sequence[int]) -> dict[str, float]:
    """Textbook measures of one ranking."""
    out: dict[str, float] = {}
    for k in ks:
        found = 0
        dcg = 0.0
        for rank, item in enumerate(ranking[:k], start=1):
            if item in relevant:
                found += 1
                dcg += 1.0 / math.log2(rank + 1)
        ideal = sum(1.0 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant), len(ranking)) + 1))
        out[f"hit@{k}"] = float(found > 0)
        out[f"recall@{k}"] = found / len(relevant)
        out[f"precision@{k}"] = found / k
        out[f"ndcg@{k}"] = dcg / ideal
    first = None
    seen = 0
    total = 0.0
    for rank, item in enumerate(ranking, start=1):
        if item in relevant:
            seen += 1
            total += seen / rank
            first = first or rank
    out["mrr"] = 1.0 / first if first else 0.0
    out["map"] = total / len(relevant)
    return out


def expected_measures(scores: Sequence[float], relevant: set[int], ks: Sequence[int]) -> dict[str, float]:
    """Mean of ``ranked_measures`` over all orders of tied items."""
    each = [ranked_measures(ranking, relevant, ks) for ranking in orders(scores)]
    return {name: sum(values[name] for values in each) / len(each) for name in each[0]}


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random unit vectors [rows, width], float32."""
    vectors = rng.standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
