"""Several things asked at once, as one vector: weights that mean the same for texts and for pictures; feedback.

Cosines of a text with pictures and of a picture with pictures live on different scales: with CLIP the first spread by
about 0.02 over a collection, the second by 0.08. A plain sum of the vectors is therefore heard as the picture
alone. Here every part u_j is measured in units of its own spread over the collection, s_j = std_x(u_j · x)::

    score(x) = sum_j w_j (u_j · x) / s_j  ∝  cos(q, x),   q = sum_j (w_j / s_j) u_j

so the mixture is still one vector q, and any vector index can search it. Measured with OpenAI CLIP on 1,000 Flickr8k
photos, the name of a thing and a random photo with equal weights: of the 10 best hits 13 % were among the text's own 50
best and 99 % among the photo's when the vectors were summed, 64 % and 55 % so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipette.errors import ConfigError
from clipette.index.query import unit
from clipette.types import Floats

# J. J. Rocchio, "Relevance feedback in information retrieval" (1971), with the weights usual since (Manning, Raghavan
# and Schuetze, "Introduction to Information Retrieval", 2008, section 9.1.1): queries outweigh marks, good marks bad.
ROCCHIO_QUERY, ROCCHIO_LIKED, ROCCHIO_DISLIKED = 1.0, 0.75, 0.15
# A negative term's pull: see `penalties`.
SLOPE, FLOOR, TOLERANCE = 0.25, -2.0, 1.0
# Below this a spread is rounding: all items score alike, and there is nothing to divide by.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of one vector's scores over the collection."""

    mean: float
    spread: float

    def standard(self, score: float) -> float:
        """(score - mean) / spread."""
        return (score - self.mean) / self.spread


@dataclass(frozen=True, slots=True)
class Reference:
    """A sample [S, D] of the collection's items of one kind: what scores are measured against."""

    vectors: Floats

    def moments(self, vector: Floats) -> Moments:
        """Of the scores of ``vector`` [D]; spread 1 and mean 0 where the sample is too small or flat to tell."""
        return self.moments_of(vector[None])[0]

    def moments_of(self, vectors: Floats) -> list[Moments]:
        """``moments`` of each of [Q, D]."""
        if len(self.vectors) < 2:
            return [Moments(0.0, 1.0)] * len(vectors)
        scores = vectors @ self.vectors.T
        means, spreads = scores.mean(axis=1, dtype=np.float64), scores.std(axis=1, dtype=np.float64)
        return [
            Moments(float(mean), float(spread)) if spread > _FLAT else Moments(0.0, 1.0)
            for mean, spread in zip(means, spreads, strict=True)
        ]

    @property
    def centre(self) -> Floats:
        """[D] the mean of the sample; zeros without one. What all items share tells none of them apart."""
        if len(self.vectors) < 2:
            return np.zeros(self.vectors.shape[1], dtype=np.float32)
        return np.asarray(self.vectors.mean(axis=0, dtype=np.float64), dtype=np.float32)


def mixed(parts: Sequence[tuple[Floats, float]], reference: Reference) -> Floats:
    """One unit vector [D] of ``parts`` (unit vectors with weights, which may be below 0); see the module's equation.

    One part alone stays bit for bit what it is, so that a plain search equals a plain evaluation. Raises
    ``ConfigError`` where the parts cancel out.
    """
    kept = [(vector, weight) for vector, weight in parts if weight != 0]
    if len(kept) == 1 and kept[0][1] > 0:
        return kept[0][0]
    if not kept:
        raise ConfigError("query: every part weighs 0; give one of them a weight")
    spreads = [moments.spread for moments in reference.moments_of(np.stack([vector for vector, _ in kept]))]
    total = sum(
        (weight / spread) * vector.astype(np.float64) for (vector, weight), spread in zip(kept, spreads, strict=True)
    )
    return unit(np.asarray(total, dtype=np.float32) / np.float32(max(1 / s for s in spreads)), "query")


def rocchio(
    query: Sequence[tuple[Floats, float]], liked: Floats, disliked: Floats, reference: Reference
) -> list[tuple[Floats, float]]:
    """The parts of a refined query: q' = α q + β mean(liked) - γ mean(disliked).

    ``liked`` [L, D] and ``disliked`` [M, D]: vectors of marked results, either may be empty. α, β, γ are Rocchio's,
    in units of spread (``mixed``), which his formula, made for one kind of vector, did not need. The weights of the
    query's own parts keep their ratios and sum to α. Without a query, β and γ alone are heard.
    """
    total = sum(abs(weight) for _, weight in query)
    parts = [(vector, ROCCHIO_QUERY * weight / total) for vector, weight in query]
    for marked, weight in ((liked, ROCCHIO_LIKED), (disliked, -ROCCHIO_DISLIKED)):
        if len(marked):
            parts.append((unit(marked.mean(axis=0, dtype=np.float64).astype(np.float32), "marked results"), weight))
    return parts


def penalties(items: Floats, negatives: Floats, reference: Reference, weight: float = 1.0) -> Floats:
    """How much each of ``items`` [N, D] shows what is unwanted [M, D], in units of spread: [N].

    penalty(x) = weight · sum_m ( max(z_m, -2) / 4 + max(0, z_m - 1) ),   z_m = (n_m · x - mean_m) / spread_m

    Gentle over the usual range, where a text's scores are mostly noise, and strict beyond it. What is less like the
    unwanted than usual gains little: subtracting the vectors would draw the search to whatever is least like it, wanted
    or not. Chosen with OpenAI CLIP on 1,000 Flickr8k training photos, 106 pairs "a A -B" of names of things judged by
    captions: of the first 10 hits 4.6 % show both in place of 10.4 %, and 64.2 % show A alone in place of 63.6 %. What
    most of a collection shows (there: "-person", 77 % of the photos) no setting that was tried took away.
    """
    if not len(negatives) or not len(items):
        return np.zeros(len(items), dtype=np.float32)
    moments = reference.moments_of(negatives)
    means = np.array([each.mean for each in moments], dtype=np.float32)
    spreads = np.array([each.spread for each in moments], dtype=np.float32)
    standard = (items @ negatives.T - means) / spreads
    each = SLOPE * np.maximum(standard, FLOOR) + np.maximum(0.0, standard - TOLERANCE)
    return np.asarray(weight * each.sum(axis=1), dtype=np.float32)
