"""The vectors of bench-search: clustered synthetic rows with real ones mixed in, queries, and the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipette.store.rows import hash_keys
from clipette.types import Floats, Ints

K = 10
# Share of the rows that a filter lets through → buckets of a thousand.
FILTERS = {"all": 1000, "10%": 100, "1%": 10}
CHUNK = 20_000


def keys_of(count: int) -> list[str]:
    return [f"image/{row:08d}" for row in range(count)]


def real_vectors(dim: int) -> tuple[Floats, Floats] | None:
    """CLIP's vectors of photographs and of class prompts, from the shared data; None where they are absent."""
    from common import shared_folder

    shared = shared_folder()
    path = None if shared is None else shared / "data" / "clip_vitb32_teacher_features.npz"
    if path is None or not path.exists() or dim != 512:
        return None
    with np.load(path) as held:
        return unit(held["flickr8k_image_features"]), unit(held["lvis_text_features"])


def unit(vectors: Any) -> Floats:
    rows = np.asarray(vectors, dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def draw(work: Path, rows: int, dim: int, queries: int, seed: int) -> bool:
    """Write ``rows.npy`` and ``queries.npy``; whether real vectors are among them.

    A hundred rows a cluster, each its centre plus noise as long as the centre: neighbours are near, but not alone.
    """
    generator = np.random.default_rng(seed)
    centres = unit(generator.normal(size=(max(1, rows // 100), dim)))

    def near(count: int) -> Floats:
        chosen = centres[generator.integers(0, len(centres), count)]
        return unit(chosen + generator.normal(size=(count, dim)).astype(np.float32) / np.sqrt(dim))

    real = real_vectors(dim)
    out = np.lib.format.open_memmap(work / "rows.npy", mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, CHUNK):
        out[start : start + CHUNK] = near(min(CHUNK, rows - start))
    asked = near(queries)
    if real is not None:
        images, texts = real
        out[generator.permutation(rows)[: len(images)]] = images[:rows]
        half = queries // 2
        asked[:half] = texts[generator.permutation(len(texts))[:half]]
    out.flush()
    np.save(work / "queries.npy", asked)
    return real is not None


def exact_rows(vectors: Floats, queries: Floats, allowed: Any) -> Ints:
    """[Q, K] the truth, by plain products and sorts: no code of any arm."""
    best = np.full((len(queries), K), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), K), -1, dtype=np.int64)
    for start in range(0, len(vectors), CHUNK):
        scores = queries @ vectors[start : start + CHUNK].T
        scores[:, ~allowed[start : start + CHUNK]] = -np.inf
        both = np.concatenate([best, scores], axis=1)
        numbers = np.concatenate(
            [rows, np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)], axis=1
        )
        order = np.argsort(-both, axis=1, kind="stable")[:, :K]
        best, rows = np.take_along_axis(both, order, 1), np.take_along_axis(numbers, order, 1)
    return rows


def truth(work: Path) -> None:
    """Write ``truth.npz``: the exact rows of every query under every filter."""
    vectors, queries = np.load(work / "rows.npy", mmap_mode="r"), np.load(work / "queries.npy")
    buckets = hash_keys(keys_of(len(vectors))) % 1000
    np.savez(work / "truth.npz", **{name: exact_rows(vectors, queries, buckets < n) for name, n in FILTERS.items()})
