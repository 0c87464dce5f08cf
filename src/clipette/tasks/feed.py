"""Batches for the loop: order, views and captions from hashes, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from clipette.data.images import DecodeSettings
from clipette.data.loading import FailureLimit, load_image, map_ordered
from clipette.data.order import epoch_order, stable_hash
from clipette.data.preprocess import Preprocess
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import ConfigError
from clipette.tasks.batch import Batch
from clipette.tasks.outputs import Draw
from clipette.tasks.sampling import Order
from clipette.types import Failure, Floats, Ints, Sample, Tokenizer, View


class Outputs(Protocol):
    """A teacher's stored outputs, by position among the training samples and captions."""

    @property
    def has_texts(self) -> bool: ...

    def content(self, position: int) -> str: ...

    def draw(self, positions: Ints, epoch: int) -> Draw: ...

    def views_of(self, position: int) -> list[View]: ...

    def texts(self, captions: Ints) -> Floats: ...


@dataclass(frozen=True)
class Guide:
    """A further teacher's outputs, and which of them the losses read."""

    outputs: Outputs
    images: bool
    texts: bool


class ImageCache:
    """Decoded images by position, kept while they fit ``budget_mb``; a bad one is recorded once and replaced.

    The replacement is the next readable sample, so that a run with bad images is as repeatable as one without.
    ``content``: digest of the bytes that the teacher saw, by position; other bytes are a bad image too.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        settings: DecodeSettings,
        want: tuple[int, int],
        budget_mb: int,
        content: Callable[[int], str] = lambda at: "",
    ):
        self.samples = samples
        self.content = content
        self.settings = settings
        self.want = want
        self.failures: dict[int, Failure] = {}
        self._images: dict[int, Image] = {}
        self._left = budget_mb * 1_000_000

    def get(self, position: int) -> tuple[int, Image]:
        """(position used, upright RGB image)."""
        for step in range(len(self.samples)):
            at = (position + step) % len(self.samples)
            image = self._images.get(at) if at not in self.failures else None
            if image is None and at not in self.failures:
                image = self._load(at)
            if image is not None:
                return at, image
        raise ConfigError(f"none of the {len(self.samples)} training images can be read")

    def _load(self, at: int) -> Image | None:
        want = self.want if self.settings.scaled else None
        loaded = load_image(self.samples[at], settings=self.settings, want=want, content=self.content(at))
        if isinstance(loaded, Failure):
            self.failures[at] = loaded
            return None
        size = 4 * loaded.width * loaded.height
        if size <= self._left:
            self._left -= size
            self._images[at] = loaded
        return loaded


class CaptionIndex:
    """All captions in one list; sample i owns ``texts[starts[i]:starts[i + 1]]``."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.texts: list[str] = [caption for sample in samples for caption in sample.captions]
        self.starts: Ints = np.concatenate([[0], np.cumsum([len(s.captions) for s in samples])]).astype(np.int64)

    def pick(self, positions: Ints, keys: Sequence[str], seed: int, epoch: int, *, each: int = 1) -> Ints:
        """``each`` captions of each sample for this epoch: neighbours in its list, from a start drawn by a hash."""
        rows = np.empty((len(positions), each), dtype=np.int64)
        for row, (position, key) in enumerate(zip(positions, keys, strict=True)):
            first, stop = int(self.starts[position]), int(self.starts[position + 1])
            draw = stable_hash("caption", seed, epoch, key)
            rows[row] = [first + (draw + step) % max(1, stop - first) for step in range(each)]
        return rows.reshape(-1)


@dataclass(frozen=True)
class FeedPlan:
    """What the batches must carry. ``images`` false: a corpus of texts, for a text tower alone.

    ``preprocess``: the student's. ``tokenizer``: where captions are encoded in the loop. ``image_trunk`` [n, V, W]:
    cached outputs of a frozen image trunk for V fixed views, the stored ones where there are (no pixels are read then);
    ``text_trunk`` [captions, W] and ``text_fixed`` [captions, D]: cached outputs of a frozen text trunk or tower.
    ``teacher_preprocess``, ``teacher_tokenizer``: for an online teacher. ``own_views``: the student's view is drawn by
    ``policy`` though the teacher's vector is another's (the whole image's).
    """

    batch_size: int
    seed: int
    preprocess: Preprocess
    policy: ViewPolicy | None = None
    own_views: bool = False
    sizes: Mapping[int, int] = field(default_factory=dict)
    images: bool = True
    texts: bool = True
    captions_per_image: int = 1
    teacher_texts: bool = False
    teacher_images: bool = False
    tokenizer: Tokenizer | None = None
    image_trunk: Tensor | None = None
    text_trunk: Tensor | None = None
    text_fixed: Tensor | None = None
    teacher_preprocess: Preprocess | None = None
    teacher_tokenizer: Tokenizer | None = None
    threads: int = 2
    cache_mb: int = 3000
    settings: DecodeSettings = field(default_factory=DecodeSettings)
    max_failures: float = 0.1


class Feed:
    """Batches by step number: the same step gives the same batch, whatever ran before.

    ``guides``: further teachers' outputs by name, of the same views as ``outputs``; their vectors come as
    ``teacher_image@name``. ``order``: positions by epoch; every sample once, if not given. ``rank`` and ``world`` cut
    each global batch into equal, contiguous shares.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        plan: FeedPlan,
        outputs: Outputs | None = None,
        *,
        order: Order | None = None,
        guides: Mapping[str, Guide] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._reads_captions = plan.texts or plan.teacher_texts or any(each.texts for each in (guides or {}).values())
        if self._reads_captions:
            bare = next((s for s in samples if not s.captions), None)
            if bare is not None:
                raise ConfigError(f"sample '{bare.key}' has no caption, which the losses read: use image-only losses")
        if plan.batch_size > len(samples):
            raise ConfigError(_too_few(plan.batch_size, len(samples), world))
        if plan.batch_size % world:
            raise ConfigError(f"batch_size {plan.batch_size} cannot be shared equally by {world} processes")
        self.samples = samples
        self.plan = plan
        self.outputs = outputs
        self.guides = dict(guides or {})
        self.captions = CaptionIndex(samples)
        self.steps_per_epoch = len(samples) // plan.batch_size
        self._epoch = order or partial(epoch_order, len(samples), plan.seed)
        self._share = slice(rank * plan.batch_size // world, (rank + 1) * plan.batch_size // world)
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))
        self.cache = ImageCache(
            samples,
            settings=plan.settings,
            want=plan.preprocess.size,
            budget_mb=plan.cache_mb,
            **({"content": outputs.content} if outputs is not None and plan.teacher_images else {}),
        )
        self._limit = FailureLimit(plan.max_failures)
        self._pool = ThreadPoolExecutor(max(1, plan.threads), thread_name_prefix="clipette-feed")

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Images that could not be read, so far."""
        return tuple(self.cache.failures[i] for i in sorted(self.cache.failures))

    def recall(self, failures: Sequence[Failure]) -> None:
        """Failures that an interrupted run has recorded: they are not read, nor counted, a second time."""
        places = {sample.key: position for position, sample in enumerate(self.samples)}
        self.cache.failures.update({places[f.key]: f for f in failures if f.key in places})

    def positions(self, step: int) -> tuple[Ints, int]:
        """This rank's sample positions at ``step``, and the epoch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        whole = self._order[1][within * self.plan.batch_size : (within + 1) * self.plan.batch_size]
        return whole[self._share], epoch

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Image size in this epoch (progressive resolution)."""
        starts = [e for e in self.plan.sizes if e <= epoch]
        if not starts:
            return self.plan.preprocess.size
        side = self.plan.sizes[max(starts)]
        return side, side

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` to ``stop``, prepared ahead."""
        return map_ordered(self.batch, range(start, stop), threads=1, ahead=3)

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        positions, epoch = self.positions(step)
        inputs: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}
        tokens: dict[str, Tensor] = {}
        teacher_tokens: dict[str, Tensor] = {}
        if not self.plan.images:
            if self.plan.teacher_images and self.outputs is not None:
                targets["teacher_image"] = torch.from_numpy(self.outputs.draw(positions, epoch).vectors)
        elif self.plan.image_trunk is not None:
            draw = None
            if self.outputs is not None and self.plan.teacher_images:
                draw = self.outputs.draw(positions, epoch)
                targets["teacher_image"] = torch.from_numpy(draw.vectors)
            if draw is None or self.plan.own_views:
                views = self.plan.image_trunk.shape[1]
                chosen = np.array([self._hash("trunk view", epoch, p) % views for p in positions], dtype=np.int64)
            else:
                chosen = draw.chosen  # the trunk's rows of stored views stand in the store's order
            inputs["image_trunk"] = self.plan.image_trunk[torch.from_numpy(positions), torch.from_numpy(chosen)]
        else:
            positions = self._read_pixels(positions, epoch, inputs, targets)
        if self._reads_captions:
            self._read_texts(positions, epoch, inputs, targets, tokens, teacher_tokens)
            targets["text_ids"] = torch.from_numpy(positions).repeat_interleave(self.plan.captions_per_image)
        for name, guide in self.guides.items():
            if guide.images:
                vectors = guide.outputs.draw(positions, epoch).vectors
                targets[f"teacher_image@{name}"] = torch.from_numpy(vectors)
        targets["ids"] = torch.from_numpy(positions)
        labels = [-1 if self.samples[p].label is None else int(self.samples[p].label or 0) for p in positions]
        targets["labels"] = torch.tensor(labels, dtype=torch.int64)
        return Batch(inputs, targets, tokens, teacher_tokens)

    def _hash(self, what: str, epoch: int, position: int) -> int:
        return stable_hash(what, self.plan.seed, epoch, self.samples[position].key)

    def _read_pixels(self, positions: Ints, epoch: int, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Ints:
        found = list(self._pool.map(lambda p: self.cache.get(int(p)), positions))
        self._limit.check(list(self.cache.failures.values()), len(self.samples), what="training images")
        positions = np.array([at for at, _ in found], dtype=np.int64)
        views: list[View] = []
        if self.outputs is not None and self.plan.teacher_images and self.plan.teacher_preprocess is None:
            draw = self.outputs.draw(positions, epoch)
            views = draw.views
            targets["teacher_image"] = torch.from_numpy(draw.vectors)
        if self.plan.own_views or not views:
            views = [self._own_view(p, image, epoch) for p, (_, image) in zip(positions, found, strict=True)]
        images = [image for _, image in found]
        preprocess = replace(self.plan.preprocess, size=self.size_at(epoch), shorter=None)
        if preprocess.size == self.plan.preprocess.size:
            preprocess = self.plan.preprocess
        inputs["pixels"] = self._pixels(preprocess, images, views)
        if self.plan.teacher_preprocess is not None:
            inputs["teacher_pixels"] = self._pixels(self.plan.teacher_preprocess, images, views)
        return positions

    def _own_view(self, position: int, image: Image, epoch: int) -> View:
        if self.plan.policy is None:
            return View()
        return draw_view(self.plan.policy, image.size, self.plan.seed, self.samples[position].key, epoch)

    def _pixels(self, preprocess: Preprocess, images: Sequence[Image], views: Sequence[View]) -> Tensor:
        # [N, H, W, 3] seen as [N, 3, H, W] is channels-last: no copy, and the order convolutions like.
        stacked = np.empty((len(images), *preprocess.size, 3), dtype=np.float32).transpose(0, 3, 1, 2)

        def cut(row: int) -> None:
            preprocess.normalize(preprocess.pixels(images[row], views[row]), out=stacked[row])

        # In NumPy: an operation of PyTorch in this thread would start OpenMP threads of its own, which spin beside the
        # step's (docs/LOG.md).
        deque(self._pool.map(cut, range(len(images))), maxlen=0)
        return torch.from_numpy(stacked)

    def _read_texts(
        self,
        positions: Ints,
        epoch: int,
        inputs: dict[str, Tensor],
        targets: dict[str, Tensor],
        tokens: dict[str, Tensor],
        teacher_tokens: dict[str, Tensor],
    ) -> None:
        plan = self.plan
        keys = [self.samples[p].key for p in positions]
        rows = self.captions.pick(positions, keys, plan.seed, epoch, each=plan.captions_per_image)
        index = torch.from_numpy(rows)
        texts = [self.captions.texts[r] for r in rows]
        if plan.teacher_tokenizer is not None:
            teacher_tokens.update({name: torch.from_numpy(v) for name, v in plan.teacher_tokenizer(texts).items()})
        elif plan.teacher_texts and self.outputs is not None:
            targets["teacher_text"] = torch.from_numpy(self.outputs.texts(rows))
        for name, guide in self.guides.items():
            if guide.texts:
                targets[f"teacher_text@{name}"] = torch.from_numpy(guide.outputs.texts(rows))
        if not plan.texts:
            return
        if plan.text_fixed is not None:
            inputs["text_fixed"] = plan.text_fixed[index]
        elif plan.text_trunk is not None:
            inputs["text_trunk"] = plan.text_trunk[index]
        elif plan.tokenizer is not None:
            tokens.update({name: torch.from_numpy(value) for name, value in plan.tokenizer(texts).items()})

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _too_few(batch_size: int, samples: int, world: int) -> str:
    most = samples // world * world
    hint = f"use --set train.batch_size={most}, or more images" if most else "use more images"
    return f"batch_size {batch_size} exceeds the {samples} training sample{'s' if samples != 1 else ''}: {hint}"
