"""When does a best score mean that something was found? Scores of queries without an answer, and a threshold on them.

**The question.** A nearest neighbour always exists. Let b(q) = max_x cos(q, x) be a query's best score over the
collection. Cosines have no zero of their own: b of a query that nothing answers depends on the model, on the collection
and on the kind of query (a word, a sentence, a picture). So b(q) is compared with the same figure of n **calibration
queries** of the same kind, b_1 … b_n, asked of the same collection. Three ways, by what is known of those:

``mismatched``: they are known to have no answer here. If a new query without an answer is exchangeable with them, then
for every score s::

    p(s) = (1 + #{i : b_i >= s}) / (n + 1),      P( p(b(q)) <= α ) <= α

whatever the distributions are (a conformal p-value: V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a
Random World", 2005; S. Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 2023). The
threshold is the lowest score with p(s) <= α, and α is the **false-accept rate**. Separately by kind of query, so it
holds for each kind ("Mondrian"). If some of the b_i have an answer after all, they only raise p: too strict, never too
lax.

``robust``: they are texts about anything, and how many have an answer is unknown. Then the conformal threshold could be
far too strict: one tenth of answered ones moves a 5 % threshold to the middle of those. The best of many scores is
distributed about as Gumbel's law, P(b <= s) = exp(-exp(-(s - μ) / β)), and answered queries score high: so μ and β are
read off two quantiles near the bottom, where hardly any answered query is (Efron's "empirical null", JASA 2004, with
the law of maxima in the place of the normal law), and p(s) = 1 - exp(-exp(-(s - μ) / β)). An approximation, and said
so. With OpenAI CLIP, 1,000 Flickr8k photos and α = 5 %, of 896 LVIS names that no caption names 3.0 % were accepted
when the law was fitted to those, 2.2 % when a quarter of the fitted texts had an answer, 1.2 % when half of them had.

``typical``: pictures as queries. Items of the collection ask it, each leaving itself out, and a query is refused that
is further from everything than nearly all of them are from each other::

    p(s) = (1 + #{i : b_i <= s}) / (n + 1)

accept where p(s) > α. Here α bounds the **false rejects**: of queries that are like the collection's own items.

**Growth.** The maximum over r times as many items of the same kind lies β ln r higher (Gumbel's law is closed under
maxima), so thresholds rise by that when a collection has grown since it was calibrated. Filters and deletions lower
b(q) of unanswered queries: the rate stays below α.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from clipette.errors import ConfigError
from clipette.metrics.similarity import GRID, Doubles, Reals

Method: TypeAlias = Literal["mismatched", "robust", "typical"]
METHODS: tuple[Method, ...] = ("mismatched", "robust", "typical")
# Quantiles that Gumbel's law is fitted to: low ones, because answered queries fill the upper part.
LOW, HIGH = 0.1, 0.3
# Scores kept with the collection: enough for p-values of about 0.1 %.
KEPT = 1000


@dataclass(frozen=True)
class Scale:
    """Best scores of calibration queries of one kind, ascending, and what they make of a new one.

    ``false_accept``: α. ``items``: how many items were asked. ``false_reject``: the measured share of queries **with**
    an answer that the threshold refuses; None where there were none to measure it with.
    """

    method: Method
    scores: tuple[float, ...]
    alpha: float
    items: int
    false_reject: float | None = None
    answered: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"calibration: no method {self.method!r}; there are {', '.join(METHODS)}")
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError(f"calibration: a rate of {self.alpha}; give a share above 0 and below 1")
        if len(self.scores) < needed(self.alpha):
            raise ConfigError(
                f"calibration: {len(self.scores)} queries are too few for a rate of {self.alpha:g}; "
                f"it takes at least {needed(self.alpha)}"
            )

    @cached_property
    def _law(self) -> tuple[float, float]:
        return gumbel(np.asarray(self.scores))

    def shift(self, items: int) -> float:
        """What to take off scores of a collection of ``items``, to compare them with those that are kept."""
        if self.method == "typical" or items <= self.items or self.items < 1:
            return 0.0
        return self._law[1] * math.log(items / self.items)

    def p_value(self, score: float, items: int | None = None) -> float:
        """p(s) of the module's equations, in (0, 1]; of a collection that has ``items`` by now."""
        moved = score - (0.0 if items is None else self.shift(items))
        if self.method == "robust":
            location, spread = self._law
            return float(-math.expm1(-math.exp(min(-(moved - location) / spread, 700.0))))
        count = len(self.scores)
        beyond = (
            bisect_right(self.scores, moved) if self.method == "typical" else count - bisect_left(self.scores, moved)
        )
        return (1 + beyond) / (count + 1)

    def confidence(self, score: float, items: int | None = None) -> float:
        """0 to 1, rising with the score: the share of unanswered queries that score lower.

        For ``typical``: the share of the collection's own items that have their nearest neighbour no nearer.
        """
        p = self.p_value(score, items)
        return p if self.method == "typical" else 1.0 - p

    def threshold(self, items: int | None = None) -> float:
        """The lowest cosine (on the grid of 2^-20) that is accepted."""
        moved = 0.0 if items is None else self.shift(items)
        if self.method == "robust":
            location, spread = self._law
            return _on_grid(location - spread * math.log(-math.log1p(-self.alpha)) + moved)
        # p = j / (n + 1): how many calibration scores may lie beyond it.
        count = len(self.scores)
        beyond = math.floor(self.alpha * (count + 1) + 1e-9)
        if self.method == "typical":
            # Accepted is p > α: 1 + #{b <= s} > floor(α (n + 1)).
            return self.scores[beyond - 1]
        return _on_grid(self.scores[count - beyond] + moved, above=True)

    def to_json(self) -> dict[str, Any]:
        """As the index's manifest holds it, with the threshold for people to read."""
        return {
            "method": self.method,
            "alpha": self.alpha,
            "items": self.items,
            "threshold": round(self.threshold(), 6),
            "false_reject": self.false_reject,
            "answered": self.answered,
            "scores": [round(score, 6) for score in self.scores],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Scale:
        """The inverse of ``to_json``."""
        refused = value["false_reject"]
        return Scale(
            method=value["method"],
            scores=tuple(sorted(float(score) for score in value["scores"])),
            alpha=float(value["alpha"]),
            items=int(value["items"]),
            false_reject=None if refused is None else float(refused),
            answered=int(value["answered"]),
        )


def needed(alpha: float) -> int:
    """The fewest calibration queries that can tell a rate of ``alpha``: ceil(1 / α) - 1."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def scale_of(method: Method, best: Reals, alpha: float, items: int, answered: Sequence[float] | Reals = ()) -> Scale:
    """A scale from the best scores of calibration queries [n], and of queries known to have an answer [m].

    Raises ``ConfigError`` for too few queries, or a rate that is none.
    """
    scores = np.sort(np.asarray(best, dtype=np.float64))
    if len(scores) > KEPT:
        # Even places of the order statistics: the quantiles stay.
        scores = scores[np.round(np.linspace(0, len(scores) - 1, KEPT)).astype(np.int64)]
    scale = Scale(method, tuple(np.round(scores, 6).tolist()), alpha, items)
    known = np.asarray(answered, dtype=np.float64)
    if not len(known):
        return scale
    refused = float((known < scale.threshold()).mean())
    return Scale(method, scale.scores, alpha, items, round(refused, 4), len(known))


def gumbel(scores: Doubles) -> tuple[float, float]:
    """(μ, β) of Gumbel's law through the quantiles ``LOW`` and ``HIGH`` of ``scores``: F^-1(p) = μ - β ln(-ln p)."""
    low, high = np.quantile(scores, [LOW, HIGH])
    place = [-math.log(-math.log(p)) for p in (LOW, HIGH)]
    spread = max(float(high - low) / (place[1] - place[0]), 1e-6)
    return float(low) - spread * place[0], spread


def _on_grid(score: float, *, above: bool = False) -> float:
    """The first grid value at or above ``score`` (strictly above it: what ties with a calibration score is refused)."""
    steps = score * float(GRID)
    return (math.floor(steps) + 1 if above else math.ceil(steps)) / float(GRID)
