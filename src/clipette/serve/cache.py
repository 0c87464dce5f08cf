"""Bounded memories of what was computed already: vectors of queries, and answers to whole searches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _one(_: object) -> int:
    return 1


class LruCache(Generic[K, V]):
    """The ``capacity`` most recently used values; safe for threads. ``weigh``: how much of the capacity a value takes.

    A value heavier than the whole capacity is not kept; a capacity of 0 keeps nothing.
    """

    def __init__(self, capacity: int, weigh: Callable[[V], int] = _one) -> None:
        self.capacity = capacity
        self._weigh = weigh
        self._held: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    @property
    def weight(self) -> int:
        """Of all that is held: at most ``capacity``."""
        return self._weight

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used; None where it is not held."""
        with self._lock:
            value = self._held.get(key)
            if value is None:
                self.misses += 1
                return None
            self._held.move_to_end(key)
            self.hits += 1
            return value

    def put(self, key: K, value: V) -> None:
        """Hold a value; the least recently used ones make room."""
        weight = self._weigh(value)
        with self._lock:
            old = self._held.pop(key, None)
            if old is not None:
                self._weight -= self._weigh(old)
            if weight > self.capacity:
                return
            self._held[key] = value
            self._weight += weight
            while self._weight > self.capacity:
                _, dropped = self._held.popitem(last=False)
                self._weight -= self._weigh(dropped)

    def clear(self) -> None:
        """Forget everything; the counts stay."""
        with self._lock:
            self._held.clear()
            self._weight = 0
