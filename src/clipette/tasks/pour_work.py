"""One rank's share of a pour: images decoded in threads ahead of the model, shards committed as they fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipette.data.images import DecodeSettings, decode_image
from clipette.data.loading import FailureLimit, map_ordered, wanted_size
from clipette.data.preprocess import Preprocess
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import BadImageError
from clipette.io import digest
from clipette.models.inference import TorchEncoder
from clipette.progress import track
from clipette.store import Chunk, Rows, StoredFailure, StoreWriter
from clipette.types import Failure, Floats, Sample, View

IMAGES, VIEWS, TEXTS = "images", "views", "texts"


@dataclass(frozen=True)
class ViewLaw:
    """Which views every image gets: ``count`` of ``policy`` under ``seed``."""

    count: int
    policy: ViewPolicy
    seed: int


@dataclass(frozen=True)
class Loaded:
    """One sample ready for the model: pixels [n, 3, H, W] (the whole image first, if asked), or why there are none."""

    key: str
    content: str
    pixels: Floats | None
    views: tuple[View, ...] = ()
    failure: StoredFailure | None = None


@dataclass(frozen=True)
class Loader:
    """Reads, decodes and cuts one sample; runs in threads."""

    samples: Mapping[str, Sample]
    preprocess: Preprocess
    decode: DecodeSettings
    law: ViewLaw | None

    def __call__(self, job: tuple[Chunk, str]) -> Loaded:
        """The sample of (chunk, key); a bad image is a recorded failure, never an error."""
        chunk, key = job
        sample = self.samples[key]
        if sample.image is None:
            return _failed(key, "", key, "the sample has no image", chunk)
        content = ""
        try:
            data = sample.image.read()
            content = digest(data)
            image = decode_image(data, location=sample.image.location, settings=self.decode, want=self._want())
        except BadImageError as error:
            return _failed(key, content, sample.image.location, str(error), chunk)
        views: tuple[View, ...] = ()
        if VIEWS in chunk.tables and self.law is not None:
            views = tuple(draw_view(self.law.policy, image.size, self.law.seed, key, k) for k in range(self.law.count))
        wanted = ((View(),) if IMAGES in chunk.tables else ()) + views
        return Loaded(key, content, np.stack([self.preprocess.view(image, view) for view in wanted]), views)

    def _want(self) -> tuple[int, int]:
        """A scaled decode must leave the smallest view its full resolution."""
        if self.law is None:
            return wanted_size(self.preprocess)
        side = math.sqrt(self.law.policy.scale[0] / self.law.policy.ratio[1])
        return wanted_size(self.preprocess, View(box=(0.0, 0.0, side, side)))


def _failed(key: str, content: str, location: str, reason: str, chunk: Chunk) -> Loaded:
    return Loaded(key, content, None, failure=StoredFailure(key, location, reason, content, chunk.tables))


@dataclass
class _Shard:
    """A chunk on its way to becoming a shard. Batches never cross chunks: a shard's bits depend on its chunk alone."""

    chunk: Chunk
    encode: Callable[[Floats], Floats]
    batch_size: int
    done: list[Loaded] = field(default_factory=list)
    failures: list[StoredFailure] = field(default_factory=list)
    waiting: list[Floats] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)

    def add(self, loaded: Loaded) -> None:
        if loaded.failure is not None or loaded.pixels is None:
            if loaded.failure is not None:
                self.failures.append(loaded.failure)
            return
        self.waiting += list(loaded.pixels)
        # Pixels are large; what is kept until the commit is only keys and views.
        self.done.append(Loaded(loaded.key, loaded.content, None, loaded.views))
        while len(self.waiting) >= self.batch_size:
            self._encode(self.batch_size)

    def _encode(self, count: int) -> None:
        self.vectors.append(self.encode(np.stack(self.waiting[:count])))
        del self.waiting[:count]

    def tables(self) -> tuple[dict[str, Rows], list[StoredFailure]]:
        if self.waiting:
            self._encode(len(self.waiting))
        whole, per_sample = (IMAGES in self.chunk.tables), 0
        if self.done:
            per_sample = int(whole) + len(self.done[0].views)
        vectors = np.concatenate(self.vectors) if self.vectors else np.zeros((0, 0), np.float32)
        grouped = vectors.reshape(len(self.done), per_sample, -1) if self.done else vectors[:, None]
        good = [bool(np.isfinite(rows).all()) for rows in grouped]
        kept = [loaded for loaded, fine in zip(self.done, good, strict=True) if fine]
        for loaded, fine in zip(self.done, good, strict=True):
            if not fine:
                reason = "the encoder gave numbers that are not finite; try precision fp32"
                self.failures.append(StoredFailure(loaded.key, loaded.key, reason, loaded.content, self.chunk.tables))
        grouped = grouped[np.asarray(good, dtype=bool)]
        tables: dict[str, Rows] = {}
        if whole and kept:
            tables[IMAGES] = Rows([each.key for each in kept], [each.content for each in kept], grouped[:, 0])
        if VIEWS in self.chunk.tables and kept:
            rows = [(each.key, each.content, view) for each in kept for view in each.views]
            keys, content, views = (list(column) for column in zip(*rows, strict=True))
            flat = grouped[:, int(whole) :].reshape(len(rows), -1)
            tables[VIEWS] = Rows(keys, content, flat, views)
        return tables, self.failures


@dataclass
class Worker:
    """Pours chunks. ``limit`` applies to the failures in the shards ``numbers``, as a share of ``total`` samples."""

    writer: StoreWriter
    encoder: TorchEncoder
    batch_size: int
    threads: int
    limit: FailureLimit
    numbers: frozenset[int]
    total: int
    progress: bool = True

    def images(self, chunks: Sequence[Chunk], loader: Loader) -> int:
        """Pour chunks of images and views; returns how many samples were poured."""
        jobs = ((chunk, key) for chunk in chunks for key in chunk.keys)
        per_sample = 1 + (loader.law.count if loader.law is not None else 0)
        ahead = max(2 * self.threads, math.ceil(2 * self.batch_size / per_sample))
        stream = map_ordered(loader, jobs, threads=self.threads, ahead=ahead)
        count = sum(len(chunk.keys) for chunk in chunks)
        loaded = track(stream, total=count, description=f"pour {self.encoder.name}", enabled=self.progress)
        poured = 0
        for chunk in chunks:
            poured += self._chunk(chunk, loaded)
        # Runs the bar and the threads to their end.
        return poured + sum(1 for _ in loaded)

    def _chunk(self, chunk: Chunk, loaded: Iterator[Loaded]) -> int:
        shard = _Shard(chunk, self.encoder.encode_pixels, self.batch_size)
        for _ in chunk.keys:
            shard.add(next(loaded))
        tables, failures = shard.tables()
        self.writer.commit(chunk.number, tables, failures)
        self.check_failures()
        return len(chunk.keys) - len(failures)

    def check_failures(self) -> None:
        """Raises ``DataError`` past the allowed share; what was poured stays."""
        failures = [
            Failure(each.key, each.location, each.reason)
            for commit in self.writer.commits
            if commit.number in self.numbers
            for each in commit.failures
        ]
        self.limit.check(failures, self.total, what="samples to pour")

    def texts(self, chunks: Sequence[Chunk]) -> int:
        """Pour chunks of texts; returns how many were poured."""
        parts = track(
            chunks,
            total=sum(len(chunk.keys) for chunk in chunks),
            description=f"pour {self.encoder.name}",
            unit="texts",
            size=lambda chunk: len(chunk.keys),
            enabled=self.progress,
        )
        poured = 0
        for chunk in parts:
            vectors = self.encoder.encode_texts(chunk.keys, batch_size=4 * self.batch_size)
            content = [digest(text.encode("utf-8", "surrogatepass")) for text in chunk.keys]
            self.writer.commit(chunk.number, {TEXTS: Rows(chunk.keys, content, vectors)})
            poured += len(chunk.keys)
        return poured
