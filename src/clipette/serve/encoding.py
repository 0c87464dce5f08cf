"""The encoder as the server uses it: behind two batchers, with a memory of what it encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL.Image import Image

from clipette.errors import UnsupportedError
from clipette.io import digest
from clipette.runtime.encoder import BundleEncoder
from clipette.serve.batching import Batcher
from clipette.serve.cache import LruCache
from clipette.serve.metrics import Metrics
from clipette.serve.pictures import PictureLimits, open_picture
from clipette.serve.settings import ServeSettings
from clipette.serve.threads import all_or_none, run_errand, wait
from clipette.types import Encoded, Encoder, Floats, ImageInput, Sample

T = TypeVar("T")
# A picture ready for the model: its pixels, or the picture itself for an encoder that takes nothing else.
Prepared: TypeAlias = Any
# (text or image, digest): as long for a page of text as for a word, so that a number of entries bounds the memory.
VectorKey: TypeAlias = "tuple[str, str]"
# What is done to each picture in its request's own thread, and to a batch of them by the model.
Stages: TypeAlias = "tuple[Callable[[Image], Prepared], Callable[[Sequence[Prepared]], Floats]]"


def image_stages(encoder: Encoder) -> Stages:
    """Resizing does not wait for the model, and pixels wait in its place: a hundredth of a photograph's memory."""
    if isinstance(encoder, BundleEncoder) and encoder.preprocess is not None:
        bundle = encoder
        return encoder.preprocess, lambda pixels: bundle.encode_pixels(np.stack(pixels))
    return lambda picture: picture, encoder.encode_images


class QueuedEncoder:
    """``types.Encoder`` whose calls share batches with those of other requests; safe for any thread.

    The awaitable ``texts`` and ``images`` are for routes; ``encode_texts`` and ``encode_images`` block, for code that
    knows only the protocol (a searcher in a thread). ``stages``: of ``inner``, where ``image_stages`` cannot know.
    """

    def __init__(
        self, inner: Encoder, settings: ServeSettings, metrics: Metrics, *, stages: Stages | None = None
    ) -> None:
        self.inner = inner
        self.limits = PictureLimits(settings.max_image_bytes, settings.max_image_pixels)
        self._most = settings.max_inputs
        self._memory: LruCache[VectorKey, Floats] = LruCache(settings.query_cache_entries)
        self._prepare, run = stages or image_stages(inner)
        self._texts: Batcher[str] = _batcher("text", inner.encode_texts, settings, metrics)
        self._images: Batcher[Prepared] = _batcher("image", run, settings, metrics)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="clipette-decode")
        metrics.read(
            "clipette_queue_items", "Items that wait for the model.", "queue",
            lambda: {"text": float(self._texts.waiting), "image": float(self._images.waiting)},
        )  # fmt: skip
        metrics.read("clipette_query_cache", "Query vectors: hits, misses, held.", "what", self._memory_readings)

    def _memory_readings(self) -> dict[str, float]:
        memory = self._memory
        return {"hits": float(memory.hits), "misses": float(memory.misses), "held": float(len(memory))}

    # ------------------------------------------------ for routes

    async def texts(self, texts: Sequence[str]) -> Floats:
        """[N, D] unit vectors. Raises ``Overloaded``, ``UnsupportedError``."""
        keys = [_text_key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        found, missing = self._recall(keys)
        for start in range(0, len(missing), self._most):
            part = missing[start : start + self._most]
            rows = await asyncio.wrap_future(self._submit_texts([by_key[key] for key in part]))
            self._remember(part, rows, found)
        return self._stacked(keys, found)

    async def images(self, pictures: Sequence[bytes], param: str = "image") -> Floats:
        """[N, D] unit vectors of encoded pictures. Raises ``HttpFault``, ``BadImageError``, ``Overloaded``."""
        if not self.can_encode_images:
            raise UnsupportedError(f"{self.name} has no image tower: it cannot encode images")
        keys = [("image", digest(data)) for data in pictures]
        by_key = dict(zip(keys, pictures, strict=True))
        found, missing = self._recall(keys)
        for start in range(0, len(missing), self._most):
            part = missing[start : start + self._most]
            prepared = await all_or_none(self._decode(by_key[key], param) for key in part)
            self._remember(part, await asyncio.wrap_future(self._images.submit(prepared)), found)
        return self._stacked(keys, found)

    async def _decode(self, data: bytes, param: str) -> Prepared:
        return await run_errand(self._decoders, lambda: self._prepare(open_picture(data, self.limits, param)))

    # ------------------------------------------------ types.Encoder

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def space(self) -> str:
        return self.inner.space

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def logit_scale(self) -> float:
        return self.inner.logit_scale

    @property
    def logit_bias(self) -> float:
        return self.inner.logit_bias

    @property
    def can_encode_text(self) -> bool:
        return self.inner.can_encode_text

    @property
    def can_encode_images(self) -> bool:
        return self.inner.can_encode_images

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        keys = [_text_key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        found, missing = self._recall(keys)
        for start in range(0, len(missing), self._most):
            part = missing[start : start + self._most]
            self._remember(part, wait(self._submit_texts([by_key[key] for key in part])), found)
        return self._stacked(keys, found)

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        if not all(isinstance(image, bytes) for image in images):
            # Paths and open pictures come from code, not from strangers: no caps, no memory, a batch of their own.
            return self.inner.encode_images(images, batch_size=batch_size)
        pictures = {("image", digest(data)): data for data in images if isinstance(data, bytes)}
        keys = [("image", digest(data)) for data in images if isinstance(data, bytes)]
        found, missing = self._recall(keys)
        for start in range(0, len(missing), self._most):
            part = missing[start : start + self._most]
            prepared = [self._prepare(open_picture(pictures[key], self.limits)) for key in part]
            self._remember(part, wait(self._images.submit(prepared)), found)
        return self._stacked(keys, found)

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        # Writes take the model for themselves, in batches of their own.
        return self.inner.encode_samples(samples, batch_size=batch_size, progress=progress)

    # ------------------------------------------------ life

    @property
    def alive(self) -> bool:
        """Whether both batchers work."""
        return self._texts.alive and self._images.alive

    def close(self) -> None:
        """Finish what was accepted; nothing more is."""
        self._texts.close()
        self._images.close()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def _submit_texts(self, texts: Sequence[str]) -> Future[Floats]:
        if not self.can_encode_text:
            raise UnsupportedError(f"{self.name} has no text side: it cannot encode texts")
        return self._texts.submit(texts)

    def _recall(self, keys: Iterable[VectorKey]) -> tuple[dict[VectorKey, Floats], list[VectorKey]]:
        """(vectors that are known, keys of the others, each once)."""
        found: dict[VectorKey, Floats] = {}
        missing: list[VectorKey] = []
        for key in dict.fromkeys(keys):
            vector = self._memory.get(key)
            if vector is None:
                missing.append(key)
            else:
                found[key] = vector
        return found, missing

    def _remember(self, keys: Sequence[VectorKey], rows: Floats, found: dict[VectorKey, Floats]) -> None:
        for key, row in zip(keys, rows, strict=True):
            own = row.copy()  # a view would keep its whole batch in memory
            own.setflags(write=False)
            found[key] = own
            self._memory.put(key, own)

    def _stacked(self, keys: Sequence[VectorKey], found: dict[VectorKey, Floats]) -> Floats:
        if not keys:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([found[key] for key in keys])


def _text_key(text: str) -> VectorKey:
    return "text", digest(text.encode("utf-8", "surrogatepass"))


def _batcher(name: str, run: Callable[[Sequence[T]], Floats], settings: ServeSettings, metrics: Metrics) -> Batcher[T]:
    return Batcher(
        run,
        name=name,
        size=settings.batch_size,
        wait=settings.batch_wait,
        queue=settings.queue_size,
        patience=settings.queue_wait,
        watcher=metrics,
    )
