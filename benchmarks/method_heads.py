"""Tier 1 of bench-methods: heads over cached outputs of a frozen trunk, so that an arm takes seconds.

Trunk and teacher run once a data set: over the stored views of all training images, and over all images that any score
reads. Everything behind that is the product's own: objective, feed, optimiser and loop.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings
from clipette.evaluate.zero_shot import class_vectors
from clipette.io import digest_json, write_atomic
from clipette.models.core import Blueprint, DualEncoder, ImageTower
from clipette.models.heads import build_head
from clipette.models.inference import TorchEncoder
from clipette.models.spec import TimmImage
from clipette.models.students import timm_image_tower
from clipette.store import Store, open_store
from clipette.tasks.batch import Batch
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan, Guide
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.outputs import StoredOutputs
from clipette.tasks.pour import PourPlan
from clipette.tasks.pour import pour as pour_into
from clipette.tasks.sampling import NeighbourOrder
from clipette.tasks.task import Task
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.budget import trusts
from clipette.train.frozen import image_trunk_features
from clipette.train.loop import Loop
from clipette.train.recipe import ViewSettings
from clipette.train.settings import OptimizerSettings, TrainSettings
from clipette.train.worth import worth_of
from clipette.types import Encoder, Floats, Sample
from common import say
from method_list import Method
from method_sets import Benchmark, Doubles, Round

VIEWS = ViewSettings(count=4, scale=(0.5, 1.0))
HIDDEN, DROPOUT = 1024, 0.3
SIDE = 128
# What every arm's student is: another is another arm.
STUDENT = ["mobilenetv2_100", SIDE, HIDDEN, DROPOUT, VIEWS.model_dump(mode="json")]


@dataclass(frozen=True)
class Teacher:
    """A teacher and the folder it comes from, by which what it said is kept."""

    encoder: TorchEncoder
    mark: str
    stores: Mapping[str, Path]


@dataclass(frozen=True)
class Scored:
    """All images that any score of a data set reads, once; ``rows``: where each is. ``texts``: the teacher's vectors of
    each part's texts, by ``round/part``."""

    samples: tuple[Sample, ...]
    rows: Mapping[str, int]
    texts: Mapping[str, Floats]

    def values(self, vectors: Floats, part: Round) -> dict[str, Doubles]:
        """[N] per image, by part, of unit vectors [m, D] of all images."""
        out = {}
        for name, each in part.parts().items():
            rows = [self.rows[identity(sample)] for sample in each.data.samples]
            out[name] = each.values(vectors[rows], self.texts[f"{part.name}/{name}"])
        return out


@dataclass(frozen=True)
class Material:
    """All of a data set that no method changes. ``trunk`` [n, views, W]: of ``train``; ``seen`` [m, W] and ``said``
    [m, D]: the trunk's and the teacher's word on the scored images. ``tower``: the trunk's own, without a head."""

    tower: ImageTower
    teacher: Teacher
    cache: Path
    train: Mapping[str, int]
    trunk: Tensor
    store: Store
    guides: Mapping[str, tuple[Teacher, Store]]
    scored: Scored
    seen: Tensor
    said: Floats


def identity(sample: Sample) -> str:
    """Two data sets may use one key for two images."""
    return f"{sample.key} {sample.image.location if sample.image is not None else ''}"


def image_tower(shared: Path, side: int = SIDE) -> ImageTower:
    """MobileNetV2 with ImageNet's weights, at ``side`` px, without a head."""
    spec = {
        "kind": "timm",
        "name": "mobilenetv2_100",
        "args": {"pad_type": "same"},
        "weights": str(shared / "weights" / "mobilenetv2_100_same.safetensors"),
        "size": side,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "head": {"kind": "none"},
    }
    return timm_image_tower(TimmImage.model_validate(spec), None, Path()).eval()


def pour(teacher: Teacher, name: str, data: Dataset, cache: Path) -> Store:
    """The teacher's outputs on all training images of one data set; a store that another bench made serves too."""
    made = teacher.stores.get(name)
    if made is not None and (made / "manifest.json").is_file():
        return open_store(made)
    plan = PourPlan(images=False, views=VIEWS.count, captions=True, policy=VIEWS.policy())
    return open_store(pour_into(teacher.encoder, data, cache / "stores" / f"{name}-{teacher.mark}", plan).path)


def prepare(found: Benchmark, shared: Path, teacher: Teacher, second: Teacher | None, cache: Path) -> Material:
    """Run trunk and teachers once over what this data set's rounds read; kept in ``cache``."""
    tower = image_tower(shared)
    train = {sample.key: sample for each in found.rounds for sample in each.train.samples}
    data = replace(found.rounds[0].train, samples=tuple(train.values()))
    store = pour(teacher, found.name, data, cache)
    others = {} if second is None else {"second": (second, pour(second, found.name, data, cache))}
    outputs = StoredOutputs(store, data.samples, (), seed=0)
    scored = scored_images([found], teacher, cache)
    say(f"{found.name}: the trunk's word on {len(train)} × {VIEWS.count} views and {len(scored.samples)} images")
    common: dict[str, Any] = {"folder": cache / "trunks", "device": torch.device("cpu"), "settings": DecodeSettings()}
    views = [outputs.views_of(position) for position in range(len(train))]
    trunk = image_trunk_features(
        tower, data.samples, policy=VIEWS.policy(), views=VIEWS.count, seed=0, stored=views, **common
    )
    seen = image_trunk_features(tower, scored.samples, policy=None, views=1, seed=0, **common)[:, 0]
    said = teacher_vectors(teacher, scored, cache)
    rows = {key: row for row, key in enumerate(train)}
    return Material(tower, teacher, cache, rows, trunk, store, others, scored, seen, said)


def scored_images(found: Sequence[Benchmark], teacher: Teacher, cache: Path) -> Scored:
    """The images of all parts of all rounds, and the teacher's word on their texts."""
    parts = {f"{each.name}/{name}": part for b in found for each in b.rounds for name, part in each.parts().items()}
    samples = {identity(sample): sample for part in parts.values() for sample in part.data.samples}
    texts = {
        name: _kept(cache, [teacher.mark, part.texts], partial(teacher.encoder.encode_texts, part.texts))
        for name, part in parts.items()
    }
    return Scored(tuple(samples.values()), {name: row for row, name in enumerate(samples)}, texts)


def teacher_vectors(teacher: Teacher, scored: Scored, cache: Path) -> Floats:
    """[m, D] the teacher's vectors of the scored images."""
    return _kept(cache, [teacher.mark, list(scored.rows)], partial(encode_all, teacher.encoder, scored.samples))


def trusted(teacher: Teacher, train: Dataset, store: Store) -> bool:
    """Whether our default, as ``clipette distill`` plans it, trusts this teacher's answers on this training set."""
    return trusts(worth_of(teacher.encoder, train, store))


def encode_all(encoder: Encoder, samples: Sequence[Sample]) -> Floats:
    """[m, D] of all samples: a benchmark's images are all readable."""
    encoded = encoder.encode_samples(samples)
    if len(encoded.keys) != len(samples):
        raise SystemExit(f"{encoded.failures[0].location}: {encoded.failures[0].reason}")
    return encoded.vectors


def _kept(cache: Path, what: object, make: Callable[[], Floats]) -> Floats:
    path = cache / "vectors" / f"{digest_json(what)[:16]}.npy"
    if not path.is_file():
        made = make()
        write_atomic(path, _bytes(made))
    return np.asarray(np.load(path))


def _bytes(array: Floats) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# ---------------------------------------------------------------- one arm


@dataclass(frozen=True)
class Sizes:
    """The common schedule of a data set's arms."""

    steps: int
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05

    def settings(self, images: int) -> TrainSettings:
        """For a set of ``images``: all arms have the same."""
        return TrainSettings(
            steps=self.steps,
            batch_size=min(self.batch, max(2, images // 2)),
            optimizer=OptimizerSettings(lr=self.lr, weight_decay=self.weight_decay),
            evaluate_every=self.steps,
            save_every=self.steps,
        )


class ByClass:
    """A feed whose images are partners in in-batch losses where their class is one (UniCL): captions made of class
    names are the same text for all of them, and no image must be taught to reject its own class."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.steps_per_epoch = feed.steps_per_epoch
        self.recall, self.close = feed.recall, feed.close

    @property
    def failures(self) -> tuple[Any, ...]:
        return self.feed.failures

    def run(self, start: int, stop: int) -> Iterator[Batch]:
        for batch in self.feed.run(start, stop):
            labels = batch.targets["labels"]
            targets = {**batch.targets, "ids": labels}
            if "text_ids" in targets:
                targets["text_ids"] = labels.repeat_interleave(len(targets["text_ids"]) // len(labels))
            yield replace(batch, targets=targets)


TaskOf = Callable[[DualEncoder, TeacherFacts], Task]


def student_head(tower: ImageTower, teacher: TorchEncoder, seed: int) -> DualEncoder:
    """A residual head from the trunk's width to the teacher's space; the scale is the teacher's."""
    width = tower.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head("residual", width, teacher.dim, HIDDEN, DROPOUT)
    made = ImageTower(
        nn.Identity(), head, preprocess=tower.preprocess, width=teacher.dim, blueprint=Blueprint("head only", {})
    )
    student = DualEncoder(made, None, logit_scale=math.log(teacher.logit_scale))
    student.logit_scale.requires_grad_(False)
    return student


def objective_of(method: Method, guides: Mapping[str, TeacherFacts], seed: int) -> TaskOf:
    """The method as the loop's task."""

    def build(student: DualEncoder, facts: TeacherFacts) -> Task:
        # The student's texts are its teacher's: terms of texts alone have no gradient, and RKD's angles among 640
        # captions cost minutes a hundred steps.
        terms = tuple(each for each in read_terms(method.loss) if "student_image" in each.term.needs)
        wanted = {name: guides[name] for name in method.guides}
        return Objective(student, terms, teacher=facts, guides=wanted, balance=cast(Any, method.balance), seed=seed)

    return build


def train_head(
    part: Round,
    material: Material,
    sizes: Sizes,
    *,
    task_of: TaskOf,
    needs: frozenset[str],
    seed: int,
    names: Sequence[str],
    captions_per_image: int,
    by_class: bool,
    neighbours: int = 0,
    guides: Sequence[str] = (),
) -> nn.Module:
    """One head, trained. ``names``: classes of class-text losses; ``needs``: which tensors the task reads."""
    samples, tower, teacher = part.train.samples, material.tower, material.teacher.encoder
    captions = CaptionIndex(samples).texts
    outputs = StoredOutputs(material.store, samples, captions, seed=seed)
    rows = torch.tensor([material.train[sample.key] for sample in samples])
    settings = sizes.settings(len(samples))
    texts = "student_text" in needs
    plan = FeedPlan(
        batch_size=settings.batch_size,
        seed=seed,
        preprocess=tower.preprocess,
        policy=VIEWS.policy(),
        captions_per_image=captions_per_image,
        texts=texts,
        teacher_texts="teacher_text" in needs,
        # Whatever the losses read, every method sees the same stored views.
        teacher_images=True,
        image_trunk=material.trunk[rows],
        text_fixed=torch.from_numpy(outputs.texts(np.arange(len(captions)))) if texts else None,
        threads=1,
    )
    order = None
    if neighbours:
        everyone = np.arange(len(samples), dtype=np.int64)
        order = NeighbourOrder(outputs.draw(everyone, 0).vectors, seed, group=neighbours)
    theirs = {
        name: Guide(StoredOutputs(material.guides[name][1], samples, captions, seed=seed), True, True)
        for name in guides
    }
    feed = Feed(samples, plan, outputs, order=order, guides=theirs)
    made = partial(class_vectors, teacher, names, "single")
    vectors = torch.from_numpy(_kept(material.cache, [material.teacher.mark, "classes", list(names)], made))
    facts = TeacherFacts(teacher.dim, teacher.logit_scale, teacher.logit_bias, vectors)
    task = task_of(student_head(tower, teacher, seed), facts)
    fed = cast(Feed, ByClass(feed)) if by_class else feed
    with tempfile.TemporaryDirectory(prefix="clipette-arm-") as folder:
        loop = Loop(task, fed, settings, folder=Path(folder), seed=seed, device=torch.device("cpu"))
        try:
            loop.run(progress=False)
        finally:
            feed.close()
    return task.student.image_tower().head


def method_needs(method: Method) -> frozenset[str]:
    """Which tensors a method reads."""
    return needs_of(read_terms(method.loss))


def score_head(head: nn.Module, part: Round, material: Material) -> dict[str, Doubles]:
    """[N] per image, by part."""
    with torch.inference_mode():
        made = torch.nn.functional.normalize(head.eval()(material.seen), dim=-1).numpy()
    return material.scored.values(made, part)
