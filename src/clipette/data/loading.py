"""Reading images in parallel threads, in order, with bounded memory; a bad image is a record, never an exception."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from PIL.Image import Image

from clipette.data.images import DecodeSettings, decode_image
from clipette.data.preprocess import Bytes, Preprocess
from clipette.errors import BadImageError, ConfigError, DataError
from clipette.io import digest
from clipette.types import Failure, Sample, View

In = TypeVar("In")
Out = TypeVar("Out")


def map_ordered(
    function: Callable[[In], Out], items: Iterable[In], *, threads: int = 2, ahead: int | None = None
) -> Iterator[Out]:
    """``map(function, items)`` with ``threads`` workers: results in order, at most ``ahead`` of them waiting.

    Threads and not processes: Pillow and file reads release the interpreter's lock, and nothing is copied. With
    ``threads=0`` everything runs in the caller. An exception of ``function`` is raised at its turn.
    """
    if threads < 0:
        raise ConfigError(f"threads {threads} must be >= 0")
    if threads == 0:
        yield from map(function, items)
        return
    limit = max(1, ahead if ahead is not None else 8 * threads)
    pending: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clipette-data")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load_image(
    sample: Sample,
    *,
    settings: DecodeSettings = DecodeSettings(),
    want: tuple[int, int] | None = None,
    content: str = "",
) -> Image | Failure:
    """The sample's image, upright RGB; or why there is none. ``content``: the digest that its bytes must have."""
    if sample.image is None:
        return Failure(sample.key, sample.key, "the sample has no image (a text-only source?)")
    try:
        data = sample.image.read()
        if content and digest(data) != content:
            reason = "the image has changed since it was poured, and its stored vectors are of the old one; pour again"
            return Failure(sample.key, sample.image.location, reason)
        return decode_image(data, location=sample.image.location, settings=settings, want=want)
    except BadImageError as error:
        return Failure(sample.key, sample.image.location, str(error))


def iter_images(
    samples: Sequence[Sample],
    *,
    settings: DecodeSettings = DecodeSettings(),
    want: tuple[int, int] | None = None,
    threads: int = 2,
) -> Iterator[tuple[int, Image | Failure]]:
    """(position in ``samples``, image or failure), in order, prefetched by ``threads``."""

    def load(numbered: tuple[int, Sample]) -> tuple[int, Image | Failure]:
        return numbered[0], load_image(numbered[1], settings=settings, want=want)

    return map_ordered(load, enumerate(samples), threads=threads)


def iter_pixels(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    *,
    views: Sequence[View] | None = None,
    settings: DecodeSettings = DecodeSettings(),
    threads: int = 2,
) -> Iterator[tuple[int, Bytes | Failure]]:
    """(position, uint8 [H, W, 3] or failure): decoding and ``preprocess.pixels`` together in the threads.

    ``views[i]`` belongs to ``samples[i]``; without views the whole image is preprocessed.
    """

    def load(numbered: tuple[int, Sample]) -> tuple[int, Bytes | Failure]:
        position, sample = numbered
        view = View() if views is None else views[position]
        return position, load_pixels(sample, preprocess, view=view, settings=settings)

    return map_ordered(load, enumerate(samples), threads=threads)


def load_pixels(
    sample: Sample, preprocess: Preprocess, *, view: View = View(), settings: DecodeSettings = DecodeSettings()
) -> Bytes | Failure:
    """One sample's view as uint8 [H, W, 3], or why there is none."""
    image = load_image(sample, settings=settings, want=wanted_size(preprocess, view))
    return image if isinstance(image, Failure) else preprocess.pixels(image, view)


def wanted_size(preprocess: Preprocess, view: View = View()) -> tuple[int, int]:
    """(height, width) that the whole image must keep in a scaled decode so that the view is not enlarged."""
    left, top, right, bottom = view.box
    height, width = (max(side, preprocess.shorter or 0) for side in preprocess.size)
    return round(height / max(bottom - top, 1e-6)), round(width / max(right - left, 1e-6))


@dataclass(frozen=True)
class FailureLimit:
    """Failures are skipped and counted up to ``max_share`` of the samples seen; more is an error, not a result."""

    max_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"max_share {self.max_share} is a share and must be in [0, 1]")

    def check(self, failures: Sequence[Failure], seen: int, *, what: str = "samples") -> None:
        """Raises ``DataError`` when more than ``max_share`` of the ``seen`` samples failed, naming the first three."""
        if seen == 0 or len(failures) <= self.max_share * seen:
            return
        shown = "\n".join(f"  {failure.key}: {failure.reason}" for failure in failures[:3])
        shown += f"\n  and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise DataError(
            f"{len(failures)} of {seen} {what} failed, more than the allowed share of {self.max_share:g}:\n{shown}\n"
            "mend the data, or allow more failures (--max-failures, train.max_failures) if the loss is meant"
        )
