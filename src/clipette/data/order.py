"""Order and randomness from hashes: the same on every machine, in every process, whatever the worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from clipette.types import Ints


def stable_hash(*parts: str | int | float | bool | None) -> int:
    """An unsigned 64-bit hash (BLAKE2b) of the parts; types and boundaries count: ``("ab", 1) != ("a", "b1")``."""
    return int.from_bytes(hashlib.blake2b(_encoded(parts), digest_size=8).digest(), "little")


def stable_uniforms(*parts: str | int | float | bool | None) -> Iterator[float]:
    """An endless stream of doubles in [0, 1) that depends on nothing but the parts.

    Hashes in counter mode rather than a library's generator: those may change their streams between versions, and a
    stored view must stay what it was.
    """
    seed = hashlib.blake2b(_encoded(parts), digest_size=32).digest()
    block = 0
    while True:
        words = np.frombuffer(hashlib.blake2b(seed + block.to_bytes(8, "little")).digest(), dtype="<u8")
        yield from (int(word >> np.uint64(11)) / 2**53 for word in words)
        block += 1


def epoch_order(keys_count: int, seed: int, epoch: int) -> Ints:
    """The permutation of ``range(keys_count)`` for one epoch: [n] int64."""
    return np.argsort(_mixed(keys_count, stable_hash("epoch", seed, epoch)), kind="stable").astype(np.int64)


def _mixed(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """SplitMix64 of seed, seed + 1·γ, seed + 2·γ, ...: one independent 64-bit word for each position."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def _encoded(parts: tuple[str | int | float | bool | None, ...]) -> bytes:
    return json.dumps(parts, separators=(",", ":"), allow_nan=False).encode()
