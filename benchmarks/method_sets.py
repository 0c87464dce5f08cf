"""The data of bench-methods: what a student is trained on, and on which images it is scored, item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from clipette.data.dataset import Dataset
from clipette.data.order import stable_hash
from clipette.data.prompts import class_prompts, fill
from clipette.data.sources import load_data
from clipette.metrics.retrieval import hit_at, rank_relevant, relevance
from clipette.types import Floats

Doubles: TypeAlias = npt.NDArray[np.float64]
Read: TypeAlias = Callable[[str], Dataset]
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
TRANSDUCTIVE = "caltech101-transductive"
STYLES = ("outline", "noise", "inverted", "blurred")
RANKS = (1, 5, 10)
# One training image of four is kept for choosing between methods: 2 of Caltech's 8 a class, 9 of PACS's 35.
DEV_SHARE = 4
# Below this many times chance a teacher has nothing to give, and what its students score is noise.
RANKED_FROM = 3.0


@dataclass(frozen=True)
class Part:
    """Images of one score: the mean over them of ``values``. ``weight`` is its share of its round's score."""

    name: str
    data: Dataset
    kind: Literal["retrieval", "top1"]

    @property
    def chance(self) -> float:
        """What a model scores that knows nothing."""
        if self.kind == "top1":
            return 1.0 / len(self.data.class_names)
        images, texts = len(self.data), sum(len(s.captions) for s in self.data.samples)
        each = texts // images
        forward = [1 - comb(texts - each, k) / comb(texts, k) for k in RANKS]
        return float(np.mean([*forward, *(min(1.0, k / images) for k in RANKS)]))

    @property
    def texts(self) -> list[str]:
        """What the student's images are compared with: captions, or class texts."""
        if self.kind == "top1":
            return [prompts[0] for prompts in class_prompts(self.data.class_names, "single")]
        return [caption for sample in self.data.samples for caption in sample.captions]

    def values(self, images: Floats, texts: Floats) -> Doubles:
        """[N] what each image contributes: the mean of them is the score."""
        if self.kind == "top1":
            labels = np.array([s.label for s in self.data.samples])
            return np.asarray((images @ texts.T).argmax(axis=1) == labels, dtype=np.float64)
        owners = np.repeat(np.arange(len(images)), [len(s.captions) for s in self.data.samples])
        pairs = relevance(owners, np.arange(len(texts)), queries=len(images), items=len(texts))
        forward, backward = rank_relevant(images, texts, pairs), rank_relevant(texts, images, pairs.transposed())
        # Mean recall is a mean over images and one over captions: an image's captions count by their share.
        share = len(images) / len(texts)
        by_image = [hit_at(forward, k) for k in RANKS]
        by_text = [np.bincount(owners, weights=hit_at(backward, k), minlength=len(images)) * share for k in RANKS]
        return np.asarray(np.mean([*by_image, *by_text], axis=0), dtype=np.float64)


@dataclass(frozen=True)
class Round:
    """One training and its scores: ``dev`` for choosing, ``test`` for the tables.

    ``combine``: how the parts make the score. ``captions``: people wrote them; else they are made of class names, and
    all images of one class are partners in in-batch losses.
    """

    name: str
    train: Dataset
    dev: tuple[Part, ...]
    test: tuple[Part, ...]
    combine: Literal["mean", "harmonic"] = "mean"
    captions: bool = True

    def parts(self) -> dict[str, Part]:
        """All parts by ``dev/name`` and ``test/name``."""
        named = [("dev", each) for each in self.dev] + [("test", each) for each in self.test]
        return {f"{split}/{part.name}": part for split, part in named}


@dataclass(frozen=True)
class Benchmark:
    """Rounds whose mean is one column of the table."""

    name: str
    rounds: tuple[Round, ...]


def combined(values: Sequence[float], how: Literal["mean", "harmonic"]) -> float:
    """The score of a round from the means of its parts."""
    if how == "mean":
        return float(np.mean(values))
    return float(len(values) / sum(1.0 / value for value in values)) if all(value > 0 for value in values) else 0.0


def benchmark(shared: Path, name: str, limit: int | None = None) -> Benchmark:
    """One real data set's rounds; ``limit``: at most so many samples of each split, for smoke tests."""
    few = "" if limit is None else f"&limit={limit}"

    def data(rest: str) -> Dataset:
        return load_data(f"wds:{shared / 'data' / rest}{few}")

    if name == "flickr8k":
        train = data("flickr8k-train-{000..005}.tar?seed=0")
        sides = {split: Part(name, data(f"flickr8k-{split}-000.tar?seed=0"), "retrieval") for split in ("dev", "test")}
        return Benchmark(name, (Round(name, train, (sides["dev"],), (sides["test"],)),))
    if name == "caltech101":
        return Benchmark(name, (_caltech(data),))
    if name == TRANSDUCTIVE:
        return Benchmark(name, (_unlabelled(data),))
    return Benchmark(name, tuple(_left_out(data, domain) for domain in DOMAINS))


def _caltech(data: Read) -> Round:
    """CoOp's base-to-novel: trained on base classes. Dev: kept base images, and the novel classes' training images."""
    train, base = held_out(data("caltech101.tar?split=train&classes=base"))
    novel = data("caltech101.tar?split=train&classes=novel")
    test = {half: data(f"caltech101.tar?split=test&classes={half}") for half in ("base", "novel")}
    return Round(
        "caltech101",
        captioned(train),
        (Part("base", base, "top1"), Part("novel", novel, "top1")),
        tuple(Part(half, each, "top1") for half, each in test.items()),
        combine="harmonic",
        captions=False,
    )


def _unlabelled(data: Read) -> Round:
    """PromptKD's protocol: images of all classes, novel ones too, without labels or captions; all class names known."""
    train, dev = held_out(data("caltech101.tar?split=train"))
    test = data("caltech101.tar?split=test")

    def halves(each: Dataset) -> tuple[Part, ...]:
        return tuple(Part(half, each.filter(classes=half), "top1") for half in ("base", "novel"))

    return Round(TRANSDUCTIVE, train, halves(dev), halves(test), combine="harmonic", captions=False)


def _left_out(data: Read, domain: str) -> Round:
    """Trained on three domains. Dev: kept images of the same three (the fourth is never looked at)."""
    others = ",".join(each for each in DOMAINS if each != domain)
    train, dev = held_out(data(f"pacs.tar?split=train&domain={others}"))
    test = data(f"pacs.tar?split=test&domain={domain}")
    sides = (Part("seen domains", dev, "top1"),), (Part(domain, test, "top1"),)
    return Round(f"pacs-{domain}", captioned(train), *sides, captions=False)


def held_out(data: Dataset, every: int = DEV_SHARE) -> tuple[Dataset, Dataset]:
    """(the rest, one of ``every`` samples): evenly over classes and domains, chosen by a hash of the key."""
    ordered = sorted(data.samples, key=lambda s: (s.class_name or "", s.domain or "", stable_hash("dev", s.key)))
    kept = {sample.key for sample in ordered[every - 1 :: every]}
    rest = tuple(s for s in data.samples if s.key not in kept)
    return replace(data, samples=rest), replace(data, samples=tuple(s for s in data.samples if s.key in kept))


def captioned(data: Dataset) -> Dataset:
    """The same samples with a caption made of the class name."""
    samples = tuple(replace(s, captions=(fill("a photo of a {}", str(s.class_name)),)) for s in data.samples)
    return replace(data, samples=samples)


def ranked(teacher: Mapping[str, float], chances: Mapping[str, float]) -> dict[str, bool]:
    """Which parts count: those on which the teacher has three times chance or more."""
    return {name: teacher[name] >= RANKED_FROM * chances[name] for name in teacher}
