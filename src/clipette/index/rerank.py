"""Result lists made useful: diverse ones (MMR), and near-duplicates folded into one hit. NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np

from clipette.errors import ConfigError
from clipette.types import Floats, Ints

# Two results this alike, once what all items share is taken off, are one picture saved twice (another size, another
# compression, a small crop). Of 1,000 Flickr8k photos, seen by OpenAI CLIP, no two reach 0.88.
DUPLICATE = 0.92


def centred(vectors: Floats, centre: Floats) -> Floats:
    """``vectors`` [N, D] minus ``centre`` [D], at unit length again; a vector that is the centre becomes zero.

    Vectors of one model lie in a narrow cone: even strangers have cosines far above 0 (about 0.5 between pictures with
    CLIP). Without the cone's axis, cosines between strangers are about 0, with any model.
    """
    moved = vectors - centre
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 1e-6), dtype=np.float32)


def mmr(relevance: Floats, vectors: Floats, k: int, balance: float) -> Ints:
    """Rows of an ordering that is relevant and diverse: [min(k, N)], the first row chosen first.

    Maximal marginal relevance, greedily: next is the row i that has the highest

        λ r_i - (1 - λ) max_{j chosen} max(0, v_i · v_j)

    with ``balance`` λ in 0..1 (1: by relevance alone), r = ``relevance`` [N] scaled to 0..1 over these N candidates,
    v = ``vectors`` [N, D], best ``centred``. Equal values: the earlier row first.

    J. Carbonell and J. Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries", SIGIR 1998. Deviation: scaling and centring, without which λ would mean something else with each model
    and kind of query (a text's cosines with pictures span 0.1, those between pictures 0.5). Raises ``ConfigError``.
    """
    if not 0.0 <= balance <= 1.0:
        raise ConfigError(f"mmr: {balance} is no balance; give 0 (diverse) to 1 (relevant)")
    count = len(relevance)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    low, high = float(relevance.min()), float(relevance.max())
    wanted = (relevance - low) / (high - low) if high > low else np.ones(count, dtype=np.float32)
    nearest = np.zeros(count, dtype=np.float32)
    open_rows = np.ones(count, dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, count)):
        value = np.where(open_rows, balance * wanted - (1.0 - balance) * nearest, -np.inf)
        row = int(np.argmax(value))
        chosen.append(row)
        open_rows[row] = False
        nearest = np.maximum(nearest, vectors @ vectors[row])
    return np.array(chosen, dtype=np.int64)


def groups(vectors: Floats, same: float = DUPLICATE) -> list[list[int]]:
    """Rows of near-duplicates, each group led by its best row: [[leader, duplicate, ...], ...] in order of leaders.

    Row i joins the first leader j with v_i · v_j >= ``same``, else it leads a group of its own; ``vectors`` [N, D] in
    rank order, best ``centred``. Compared with leaders alone, so that chains of small changes do not join strangers.
    Raises ``ConfigError``.
    """
    if not 0.0 < same <= 1.0:
        raise ConfigError(f"grouping: {same} is no likeness; give a cosine above 0, up to 1")
    found: list[list[int]] = []
    leaders = np.zeros((0, vectors.shape[1]), dtype=np.float32)
    for row in range(len(vectors)):
        alike = np.flatnonzero(leaders @ vectors[row] >= same)
        if len(alike):
            found[int(alike[0])].append(row)
        else:
            found.append([row])
            leaders = np.concatenate([leaders, vectors[row][None]])
    return found
