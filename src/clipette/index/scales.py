"""When does a best score mean that something was found? Scores of queries without an answer, and a threshold on them.

**The question.** A nearest neighbour always exists. Let max_x q·x be a query's best cosine over the collection. Cosines
have no zero of their own: the best one of a query that nothing answers depends on the model, on the collection, and on
the query. Two steps make it comparable.

**1. How a text's scores are read.** Either as they are, or as those of what the text says beyond all texts: text
vectors share a direction m [D] (the mean of texts about anything, of that length), and a general word has less beside
it than a special one. Of the own part u = (q - m) / |q - m|, with m·x by its mean c over the collection::

    t(q, x) = (q·x - c) / |q - m|  ≈  u·x,      b(q) = max_x t(q, x)

which orders items as q·x does (the bare cosine: c = 0 and |q - m| = 1). Which of the two refuses fewer queries that
have an answer, at the same rate, differs by model, so it is measured (``calibrate``). With OpenAI CLIP, 1,000 Flickr8k
photos and 1,203 names of things (LVIS), of which captions name 307, the area under the ROC curve of b, between names of
three photos or more and names that no caption says, is 0.80 by the own part and 0.70 bare (0.66 standardised by mean
and deviation of the query's scores). With a small model trained on Flickr8k, and captions, the bare cosine accepts 77 %
at 10 %, the own part 23 %. Standardising by each item's scores over the background looks best there (97 %), and is not
offered: of captions whose like had been taken out of the collection it accepted 49 %, not 10 (bare: 5 %), because it
mistakes another style of text for an answer. Pictures are read as they are.

**2. Comparison.** b(q) is compared with that of n **calibration queries** of the same kind, b_1 … b_n, asked of the
same collection. Three ways, by what is known of those:

``mismatched``: they are known to have no answer here. If a new query without an answer is exchangeable with them, then
for every score s::

    p(s) = (1 + #{i : b_i >= s}) / (n + 1),      P( p(b(q)) <= α ) <= α

whatever the distributions are (a conformal p-value: V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a
Random World", 2005; S. Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 2023). The
threshold is the lowest score with p(s) <= α, and α is the **false-accept rate**. Separately by kind of query, so it
holds for each kind ("Mondrian"). If some of the b_i have an answer after all, they only raise p: too strict, never too
lax.

``robust``: they are texts about anything, and how many have an answer is unknown. Where answered queries score far
higher, the conformal threshold could be far too strict: one tenth of answered ones moves a 5 % threshold to the middle
of those. The best of many scores follows about Gumbel's law, P(b <= s) = exp(-exp(-(s - μ) / β)), and answered queries
score high: so μ and β are read off two quantiles near the bottom, where hardly any answered query is (Efron's
"empirical null", JASA 2004, with the law of maxima in the place of the normal law). p(s) is the lower of the conformal
one, which is too strict at worst, and 1 - exp(-exp(-(s - μ) / β)), an approximation. With CLIP, photos and names as
above, 200 texts and α = 10 %: 9 % of unanswered names are accepted and 41 % of those of three photos or more; where a
quarter of the 200 have an answer 5 % and 31 %, where half of them have one 3 % and 24 %.

``typical``: pictures as queries. Items of the collection ask it, each leaving itself out, and a query is refused that
is further from everything than nearly all of them are from each other::

    p(s) = (1 + #{i : b_i <= s}) / (n + 1)

accept where p(s) > α. Here α bounds the **false rejects**: of queries that are like the collection's own items.

**Too high a price.** Where the threshold would refuse more than half of the queries known to have an answer, α is
raised to the lowest rate at which it refuses half of them, and that α is the one that is kept and told.

**Growth.** The maximum over r times as many items of the same kind lies β ln r higher (Gumbel's law is closed under
maxima), so thresholds rise by that when a collection has grown since it was calibrated. Filters and deletions lower
b(q) of unanswered queries: the rate stays below α.
"""

from __future__ import annotations

import base64
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from clipette.errors import ConfigError
from clipette.metrics.similarity import GRID, Doubles, Reals
from clipette.types import Floats

Method: TypeAlias = Literal["mismatched", "robust", "typical"]
METHODS: tuple[Method, ...] = ("mismatched", "robust", "typical")
# Quantiles that Gumbel's law is fitted to: low ones, because answered queries fill the upper part.
LOW, HIGH = 0.1, 0.3
LEAST_REACH = 0.05
MOST_REFUSED = 0.5
# Scores kept with the collection: enough for p-values of about 0.1 %.
KEPT = 1000


@dataclass(frozen=True)
class Scale:
    """Best scores of calibration queries of one kind, ascending, and what they make of a new one.

    ``scores``: b_1 … b_n; ``alpha``: α; ``items``: how many items were asked; ``centre``: m, [D] or none; ``offset``:
    c; ``false_reject``: the share of queries **with** an answer that the threshold refuses, of ``answered`` ones, None
    where there were none to measure it with. The argument ``reach`` of its methods is |q - m|: see the method.
    """

    method: Method
    scores: tuple[float, ...]
    alpha: float
    items: int
    centre: tuple[float, ...] = ()
    offset: float = 0.0
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

    @cached_property
    def _centre(self) -> Floats:
        return np.asarray(self.centre, dtype=np.float32)

    def reach(self, query: Floats) -> float:
        """|q - m| of a query [D]; 1 where there is no centre."""
        return float(reaches(query[None], self._centre)[0]) if self.centre else 1.0

    def shift(self, items: int) -> float:
        """What to take off scores of a collection of ``items``, to compare them with those that are kept."""
        if self.method == "typical" or items <= self.items or self.items < 1:
            return 0.0
        return self._law[1] * math.log(items / self.items)

    def p_value(self, score: float, reach: float = 1.0, *, items: int | None = None) -> float:
        """p of the module's equations, in (0, 1], of a cosine; of a collection that has ``items`` by now."""
        moved = (score - self.offset) / reach - (0.0 if items is None else self.shift(items))
        count = len(self.scores)
        if self.method == "typical":
            return (1 + bisect_right(self.scores, moved)) / (count + 1)
        conformal = (1 + count - bisect_left(self.scores, moved)) / (count + 1)
        if self.method == "mismatched":
            return conformal
        location, spread = self._law
        return min(conformal, -math.expm1(-math.exp(min(-(moved - location) / spread, 700.0))))

    def confidence(self, score: float, reach: float = 1.0, *, items: int | None = None) -> float:
        """0 to 1, rising with the cosine ``score``: the share of unanswered queries that score lower.

        For ``typical``: the share of the collection's own items that have their nearest neighbour no nearer.
        """
        p = self.p_value(score, reach, items=items)
        return p if self.method == "typical" else 1.0 - p

    def threshold(self, reach: float = 1.0, *, items: int | None = None) -> float:
        """The lowest cosine (on the grid of 2^-20) that is accepted."""
        moved = 0.0 if items is None else self.shift(items)
        # p = j / (n + 1): how many calibration scores may lie beyond the bound.
        count = len(self.scores)
        beyond = math.floor(self.alpha * (count + 1) + 1e-9)
        if self.method == "typical":
            # Accepted is p > α: 1 + #{b <= t} > floor(α (n + 1)).
            return _on_grid(self.offset + reach * self.scores[beyond - 1])
        # What ties with a calibration query that has no answer is refused.
        bound = _on_grid(self.offset + reach * (self.scores[count - beyond] + moved), above=True)
        if self.method == "mismatched":
            return bound
        location, spread = self._law
        quantile = location - spread * math.log(-math.log1p(-self.alpha))
        return min(bound, _on_grid(self.offset + reach * (quantile + moved)))

    def to_json(self) -> dict[str, Any]:
        """As the index's manifest holds it, with the threshold for people to read."""
        return {
            "method": self.method,
            "alpha": self.alpha,
            "items": self.items,
            "queries": len(self.scores),
            "false_reject": self.false_reject,
            "answered": self.answered,
            "offset": self.offset,
            "centre": pack(self.centre),
            "scores": pack(self.scores),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Scale:
        """The inverse of ``to_json``."""
        refused = value["false_reject"]
        return Scale(
            method=value["method"],
            scores=tuple(sorted(unpack(value["scores"]))),
            alpha=float(value["alpha"]),
            items=int(value["items"]),
            centre=unpack(value["centre"]),
            offset=float(value["offset"]),
            false_reject=None if refused is None else float(refused),
            answered=int(value["answered"]),
        )


def pack(values: Sequence[float]) -> str:
    """Numbers as base64 of little-endian float32: a manifest is written again at every change, and shall be small."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")


def unpack(text: str) -> tuple[float, ...]:
    """The inverse of ``pack``. Raises ``ValueError``."""
    return tuple(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float64).tolist())


def reaches(queries: Floats, centre: Floats) -> Doubles:
    """|q - m| of each query [Q, D]: how much it says beyond all texts. Kept off 0, where quotients would explode."""
    distance = np.linalg.norm(queries.astype(np.float64) - centre.astype(np.float64), axis=1)
    return np.asarray(np.maximum(distance, LEAST_REACH), dtype=np.float64)


def needed(alpha: float) -> int:
    """The fewest calibration queries that can tell a rate of ``alpha``: ceil(1 / α) - 1."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def scale_of(
    method: Method,
    best: Reals,
    alpha: float,
    items: int,
    *,
    centre: Floats | None = None,
    offset: float = 0.0,
    answered: Sequence[float] | Reals = (),
) -> Scale:
    """A scale from b of calibration queries [n], and of queries known to have an answer [m], both in units of t.

    Raises ``ConfigError`` for too few queries, or a rate that is none.
    """
    # As they are kept: a scale read back is the same.
    scores = np.sort(np.asarray(best, dtype=np.float32)).astype(np.float64)
    if len(scores) > KEPT:
        # Even places of the order statistics: the quantiles stay.
        scores = scores[np.round(np.linspace(0, len(scores) - 1, KEPT)).astype(np.int64)]
    middle = () if centre is None else tuple(centre.astype(np.float32).astype(np.float64).tolist())
    scale = Scale(method, tuple(scores.tolist()), alpha, items, middle, offset)
    known = np.asarray(answered, dtype=np.float64)
    if not len(known):
        return scale
    if _refused(scale, known) > MOST_REFUSED:
        # A score that at most half of the answered are below; a step under it, for thresholds are rounded up.
        middle_one = float(np.quantile(known, MOST_REFUSED, method="lower")) - 2.0 / float(GRID)
        rate = scale.p_value(offset + middle_one)
        scale = replace(scale, alpha=min(max(rate, alpha), len(scores) / (len(scores) + 1)))
    return replace(scale, false_reject=round(_refused(scale, known), 4), answered=len(known))


def _refused(scale: Scale, known: Doubles) -> float:
    """The share of queries with these b, each on the scale of reach 1, that the threshold refuses."""
    return float((scale.offset + known < scale.threshold()).mean())


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
