"""Parallel reading: ordered, bounded, faster than one by one where reading waits, and never stopped by one image."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from clipette.data.images import DecodeSettings
from clipette.data.loading import (
    FailureLimit,
    iter_images,
    iter_pixels,
    load_image,
    map_ordered,
    wanted_size,
)
from clipette.data.preprocess import Preprocess
from clipette.errors import BadImageError, ConfigError, DataError
from clipette.types import Failure, Sample, View


@dataclass(frozen=True)
class Memory:
    data: bytes | None
    location: str = "memory"

    def read(self) -> bytes:
        if self.data is None:
            raise BadImageError(f"{self.location}: gone")
        return self.data


def png(grey: int, size: tuple[int, int] = (20, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


SAMPLES = [
    Sample("a", Memory(png(10))),
    Sample("b", Memory(b"not an image")),
    Sample("c", Memory(None)),
    Sample("d"),
    Sample("e", Memory(png(50))),
]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_images_come_in_order_and_failures_are_records(threads: int) -> None:
    got = list(iter_images(SAMPLES, threads=threads))
    assert [position for position, _ in got] == [0, 1, 2, 3, 4]
    assert np.asarray(got[4][1])[0, 0].tolist() == [50, 50, 50]
    failures = [item for _, item in got if isinstance(item, Failure)]
    assert [failure.key for failure in failures] == ["b", "c", "d"]
    assert "not an image" in failures[0].reason
    assert failures[1].reason == "memory: gone"
    assert "no image" in failures[2].reason


def test_pixels_follow_each_samples_view() -> None:
    preprocess = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
    views = [View(box=(0, 0, 0.5, 0.5), brightness=0.5 + n / 10) for n in range(5)]
    got = dict(iter_pixels(SAMPLES, preprocess, views=views, threads=2))
    first = load_image(SAMPLES[4])
    assert not isinstance(first, Failure)
    np.testing.assert_array_equal(got[4], preprocess.pixels(first, views[4]))
    assert isinstance(got[1], Failure)


def test_order_holds_when_later_items_finish_first() -> None:
    def slow_when_even(n: int) -> int:
        time.sleep(0.02 if n % 2 == 0 else 0)
        return n

    assert list(map_ordered(slow_when_even, range(20), threads=4)) == list(range(20))


def test_waiting_overlaps() -> None:
    start = time.perf_counter()
    list(map_ordered(lambda _: time.sleep(0.02), range(40), threads=8))
    assert time.perf_counter() - start < 0.5 * 40 * 0.02


def test_no_more_than_the_bound_is_read_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    stream = map_ordered(lambda n: n, items(), threads=2, ahead=5)
    assert next(stream) == 0
    assert len(taken) <= 6
    stream.close()  # type: ignore[attr-defined]


def test_leaving_early_leaves_no_threads() -> None:
    before = threading.active_count()
    stream = iter_images(SAMPLES * 50, threads=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_exception_is_raised_at_its_turn() -> None:
    def fail_at_three(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    stream = map_ordered(fail_at_three, range(10), threads=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(stream)
    with pytest.raises(ConfigError, match="threads"):
        list(map_ordered(fail_at_three, [1], threads=-1))


def test_a_cut_wants_a_larger_whole() -> None:
    preprocess = Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3)
    assert wanted_size(preprocess) == (64, 64)
    assert wanted_size(preprocess, View(box=(0, 0, 0.5, 0.25))) == (256, 128)
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(buffer, "JPEG")
    sample = Sample("j", Memory(buffer.getvalue()))
    whole = load_image(sample, settings=DecodeSettings(scaled=True), want=wanted_size(preprocess))
    cut = load_image(
        sample, settings=DecodeSettings(scaled=True), want=wanted_size(preprocess, View(box=(0, 0, 0.25, 0.25)))
    )
    assert not isinstance(whole, Failure)
    assert not isinstance(cut, Failure)
    assert (whole.size, cut.size) == ((128, 128), (256, 256))


def test_too_many_failures_are_an_error() -> None:
    failures = [Failure(f"k{n}", "x", f"broken {n}") for n in range(11)]
    FailureLimit(0.1).check(failures, 110)
    FailureLimit(0.0).check([], 0)
    with pytest.raises(DataError, match=r"(?s)11 of 100 samples failed.*0\.1.*k0: broken 0.*k2: broken 2\n[^k]*$"):
        FailureLimit(0.1).check(failures, 100)
    with pytest.raises(ConfigError, match="share"):
        FailureLimit(10)
