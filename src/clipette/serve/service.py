"""What all routes share: encoder, collection, search, writer, caches and counters of one server, and their life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clipette.errors import ClipetteError
from clipette.io import digest
from clipette.serve.cache import LruCache
from clipette.serve.clicks import BoundedClicks
from clipette.serve.encoding import QueuedEncoder
from clipette.serve.metrics import Metrics
from clipette.serve.ports import CollectionPort, SearchPort
from clipette.serve.schemas import SearchRequest, SearchResponse
from clipette.serve.settings import ServeSettings
from clipette.serve.thumbs import Thumbnails
from clipette.serve.writing import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """A search's answer in the result cache, and its weight there."""

    response: SearchResponse
    weight: int


class Service:
    """See the file's first line. ``thumbnails`` and ``card`` (Markdown of the model) are None or empty where absent."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        encoder: QueuedEncoder,
        collection: CollectionPort,
        search: SearchPort,
        metrics: Metrics,
        thumbnails: Thumbnails | None = None,
        card: str = "",
        writable: bool = False,
    ) -> None:
        self.settings, self.encoder, self.collection, self.search = settings, encoder, collection, search
        self.metrics, self.thumbnails, self.card, self.writable = metrics, thumbnails, card, writable
        self.writer = Writer(settings.write_queue, settings.max_held_bytes)
        self.results: LruCache[str, Answered] = LruCache(settings.result_cache_bytes, lambda answered: answered.weight)
        self.clicks = BoundedClicks(settings.clicks, settings.max_clicks_bytes) if settings.clicks else None
        self.searchers = ThreadPoolExecutor(settings.search_threads, thread_name_prefix="clipette-search")
        self.readers = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="clipette-read")
        self.stopping = False
        self.warm = False
        self._read_metrics()

    def _read_metrics(self) -> None:
        read = self.metrics.read
        read("clipette_generation", "Of the collection.", None, lambda: {"": float(self.collection.generation)})
        read("clipette_writes_pending", "Accepted and not done.", None, lambda: {"": float(self.writer.pending)})
        cache = self.results
        read(
            "clipette_result_cache", "Answers: hits, misses, bytes held.", "what",
            lambda: {"hits": float(cache.hits), "misses": float(cache.misses), "bytes": float(cache.weight)},
        )  # fmt: skip

    def result_key(self, request: SearchRequest, image: bytes | None) -> str:
        """What an answer depends on: the query and the collection's generation, so that a write invalidates it."""
        picture = digest(image) if image is not None else ""
        query = request.model_dump_json(exclude={"stream", "image"})
        # A digest: the longest query would take more memory than most answers.
        return digest(f"{self.collection.generation}:{picture}:{query}".encode())

    def not_ready(self) -> str | None:
        """Why no requests should be sent here, or None."""
        if self.stopping:
            return "stopping"
        if not self.warm:
            return "starting"
        return None if self.encoder.alive else "the encoder's thread has ended: restart the server"

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """From start to stop. Whatever was accepted is finished before this ends."""
        await asyncio.to_thread(self._warm_up)
        refreshing = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            self.stopping = True
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing
            # In threads: the loop still serves those who wait for these very writes.
            await asyncio.to_thread(self._close)

    def _warm_up(self) -> None:
        """The first call of a model is slow: nobody should wait for it."""
        if self.encoder.can_encode_text:
            # A model of stored texts knows only those: its session is warm all the same.
            with contextlib.suppress(ClipetteError):
                self.encoder.encode_texts(["a photo"])
        if self.encoder.can_encode_images:
            from PIL import Image

            self.encoder.encode_images([Image.new("RGB", (64, 64), "grey")])
        self.warm = True

    async def _refresh(self) -> None:
        """Writes of other processes become visible; ours are at once."""
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                if await asyncio.to_thread(self.collection.refresh):
                    # A calibration changes what answers say, and is no write that counts in the generation.
                    self.results.clear()
            except Exception as error:  # a reader must outlive whatever a writer does to the files
                log.warning("the collection could not be refreshed: %s", error)

    def _close(self) -> None:
        self.writer.close()
        self.searchers.shutdown(wait=True, cancel_futures=True)
        self.readers.shutdown(wait=True, cancel_futures=True)
        self.encoder.close()
        self.collection.close()
