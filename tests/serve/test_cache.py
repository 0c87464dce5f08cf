from __future__ import annotations

import threading

from clipette.serve.cache import LruCache


def test_the_least_recently_used_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert cache.get("b") is None
    assert (cache.get("a"), cache.get("c"), len(cache)) == (1, 3, 2)
    assert (cache.hits, cache.misses) == (3, 1)


def test_weights_bound_the_whole() -> None:
    cache: LruCache[str, bytes] = LruCache(10, len)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    cache.put("c", b"1234")
    assert "a" not in cache
    assert cache.weight == 8
    cache.put("b", b"1")
    assert cache.weight == 5
    cache.put("huge", b"x" * 11)
    assert "huge" not in cache
    assert cache.weight == 5
    # Replaced by what is too heavy: the old value is stale and must not stay.
    cache.put("c", b"x" * 11)
    assert "c" not in cache
    assert cache.weight == 1
    cache.clear()
    assert (len(cache), cache.weight) == (0, 0)


def test_without_capacity_nothing_is_kept() -> None:
    cache: LruCache[str, int] = LruCache(0)
    cache.put("a", 1)
    assert cache.get("a") is None


def test_threads_do_not_break_the_count() -> None:
    cache: LruCache[int, bytes] = LruCache(500, len)

    def work(own: int) -> None:
        for n in range(500):
            cache.put((own * n) % 97, b"x" * (n % 13))
            cache.get(n % 97)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [cache.get(key) for key in range(97)]
    assert cache.weight == sum(len(value) for value in held if value is not None) <= 500
