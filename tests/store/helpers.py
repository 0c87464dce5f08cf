"""Small stores for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipette.store import Rows, StoreWriter
from clipette.types import View

DIM = 8
IDENTITY = {"encoder": {"weights": "w0", "mean": [0.5, 0.5]}, "views": {"count": 2, "seed": 0}, "texts": None}


def unit(keys: list[str], dim: int = DIM) -> np.ndarray:
    """A vector that only the key decides."""
    rows = [np.random.default_rng(list(key.encode())).normal(size=dim) for key in keys]
    vectors = np.stack(rows) if rows else np.zeros((0, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rows(keys: list[str], *, content: str = "c", salt: str = "") -> Rows:
    return Rows(keys, [content] * len(keys), unit([key + salt for key in keys]))


def view_rows(keys: list[str], count: int = 2, *, salt: str = "") -> Rows:
    every = [key for key in keys for _ in range(count)]
    one = [View(box=(0.1 * k, 1 / 3, 0.9, 0.7), flip=bool(k % 2), brightness=1 + 0.1 * k) for k in range(count)]
    views = one * len(keys)
    return Rows(every, ["c"] * len(every), unit([f"{key}{k}{salt}" for key in keys for k in range(count)]), views)


def small_store(path: Path, keys: list[str] | None = None, shard: int = 3) -> Path:
    keys = [f"k{i}" for i in range(7)] if keys is None else keys
    with StoreWriter(path, IDENTITY, DIM, info={"name": "toy"}) as writer:
        for start in range(0, len(keys), shard):
            part = keys[start : start + shard]
            writer.append({"images": rows(part), "views": view_rows(part)})
        writer.append({"texts": rows(["a cat", "a dog"])})
        writer.finish()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}
