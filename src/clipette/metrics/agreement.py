"""How alike two models behave: same choices, same probabilities, same neighbours, same geometry."""

from __future__ import annotations

import numpy as np

from clipette.errors import DataError
from clipette.metrics.calibration import log_softmax
from clipette.metrics.similarity import (
    BLOCK_BYTES,
    Doubles,
    Reals,
    cosines,
    inclusion,
    row_blocks,
    top_k_of_scores,
)
from clipette.types import Ints


def _same_shape(left: Reals, right: Reals, what: str) -> None:
    if left.shape != right.shape:
        raise DataError(f"{what} of the two models do not fit: {left.shape} and {right.shape}")


def overlap_at(left: Reals, right: Reals, k: int) -> Doubles:
    """Share of the k best columns that two score matrices [N, C] have in common, per row [N]; k is cut to C.

    sum_c min(P_left(c in top k), P_right(c in top k)) / k, where P spreads exact ties evenly. k = 1: "the same first
    class". A model agrees with itself at 1, ties or not; a constant model with one that decides by chance, k / C.
    """
    _same_shape(left, right, "scores")
    k = min(k, left.shape[1])
    return np.asarray(np.minimum(inclusion(left, k), inclusion(right, k)).sum(axis=1) / k, dtype=np.float64)


def kl_divergence(teacher_logits: Reals, student_logits: Reals) -> Doubles:
    """KL(softmax(teacher) || softmax(student)) per row [N], in nats, >= 0. Logits: already scaled."""
    _same_shape(teacher_logits, student_logits, "logits")
    teacher, student = log_softmax(teacher_logits), log_softmax(student_logits)
    return np.asarray(np.maximum((np.exp(teacher) * (teacher - student)).sum(axis=1), 0.0), dtype=np.float64)


def top_k_kl(teacher_logits: Reals, student_logits: Reals, k: int) -> Doubles:
    """KL(softmax(teacher) || softmax(student)) over the k columns that the teacher puts first, per row [N], in nats.

    Both softmaxes run over those k columns alone: is the neighbourhood weighed alike, whatever lies outside it? k is
    cut to C; of columns that tie for the last place, the first are taken. Li et al. (OOD distillation), ICCV 2023,
    measure how consistent image-text neighbourhoods stay; their formula is in neither their code nor any text we
    could read, so this reading is ours: their loss L_vlalign as a measure.
    """
    _same_shape(teacher_logits, student_logits, "logits")
    chosen = top_k_of_scores(teacher_logits, k)
    return kl_divergence(*(np.take_along_axis(logits, chosen, axis=1) for logits in (teacher_logits, student_logits)))


def cosine(left: Reals, right: Reals) -> Doubles:
    """Cosine of the i-th unit vectors of both [N]; meaningful only in one space."""
    _same_shape(left, right, "vectors")
    return np.asarray(np.einsum("nd,nd->n", left, right, dtype=np.float64), dtype=np.float64)


def distance(left: Reals, right: Reals) -> Doubles:
    """Length |left_i - right_i| of the difference of the i-th unit vectors of both [N], 0 to 2; only in one space.

    The square is 2 - 2 cosine, but means differ: a few images far off weigh less here. Our reading of the closeness of
    visual spaces in Li et al. (OOD distillation), ICCV 2023, whose formula we could not read; where spaces differ,
    ``linear_cka`` and ``neighbour_overlap`` ask the same of relations alone.
    """
    _same_shape(left, right, "vectors")
    return np.asarray(np.linalg.norm(left.astype(np.float64) - right.astype(np.float64), axis=1), dtype=np.float64)


def neighbour_overlap(
    left: Reals, right: Reals, k: int = 10, *, rows: Ints | None = None, block_bytes: int = BLOCK_BYTES
) -> Doubles:
    """Share of each item's k nearest others (itself excluded) that both spaces have in common.

    left [N, D1] and right [N, D2], unit rows, same items in the same order; ``rows``: the items to ask for (default
    all). k is cut to N - 1. Ties as in ``overlap_at``. Time N * len(rows) * (D1 + D2); memory: blocks.
    Raises ``DataError`` for fewer than two items.
    """
    if len(left) != len(right) or len(left) < 2:
        raise DataError(f"neighbours need the same two or more items in both spaces, got {len(left)} and {len(right)}")
    asked = np.arange(len(left)) if rows is None else np.asarray(rows, dtype=np.int64)
    out = np.empty(len(asked), dtype=np.float64)
    for block in row_blocks(len(asked), 4 * len(left), block_bytes):
        own = asked[block]
        pair = []
        for vectors in (left, right):
            scores = cosines(vectors[own], vectors)
            scores[np.arange(len(own)), own] = -np.inf
            pair.append(scores)
        out[block] = overlap_at(pair[0], pair[1], min(k, len(left) - 1))
    return out


def linear_cka(left: Reals, right: Reals) -> float:
    """Linear CKA = |R'L|_F^2 / (|L'L|_F |R'R|_F) of column-centred [N, D1], [N, D2].


    1 = equal up to rotation and scale. Kornblith et al., ICML 2019, section 3, linear kernels. NaN where one side does
    not vary.
    """
    if len(left) != len(right) or len(left) < 2:
        raise DataError(f"CKA needs the same two or more items in both spaces, got {len(left)} and {len(right)}")
    a = left.astype(np.float64) - left.mean(axis=0, dtype=np.float64)
    b = right.astype(np.float64) - right.mean(axis=0, dtype=np.float64)
    norms = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    # Float32 vectors that are all equal leave rounding dust after centring: that is no variation.
    dust = (1e-6**4) * len(a) ** 2
    return float(np.linalg.norm(b.T @ a) ** 2 / norms) if norms > dust else float("nan")
