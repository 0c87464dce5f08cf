"""Arms of bench-methods: kept on disk when finished, made when missing."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeAlias, TypeVar

import numpy as np

from clipette.io import digest_json, write_atomic
from clipette.models.inference import TorchEncoder
from clipette.tasks.objective import TeacherFacts
from common import say
from method_heads import (
    STUDENT,
    Material,
    Sizes,
    TaskOf,
    Teacher,
    method_needs,
    objective_of,
    score_head,
    train_head,
    trusted,
)
from method_list import CAPTIONED, LABELLED_SET, UNLABELLED, find_method, kept_by
from method_sets import TRANSDUCTIVE, Benchmark, Doubles, Round
from peers import PEERS, task_of

# Seconds of one arm on one quiet core, for the estimate while none is measured.
USUAL = {
    "flickr8k": 14.0,
    "caltech101": 5.0,
    TRANSDUCTIVE: 6.0,
    "pacs": 5.0,
    "world": 80.0,
    "text": 10.0,
    "tuned": 420.0,
}

Scores: TypeAlias = Mapping[str, Doubles]
T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """What all arms share; ``steps`` by set."""

    shared: Path
    cache: Path
    teacher: Teacher
    second: Teacher | None
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: Mapping[str, int]
    limit: int | None


# ---------------------------------------------------------------- arms, kept


class Arms:
    """Finished arms on disk: one file of per-item scores each, written whole."""

    def __init__(self, folder: Path, *, estimating: bool = False) -> None:
        self.folder = folder
        self.estimating = estimating
        self.waiting: dict[str, int] = {}

    def get(self, kind: str, name: str, what: object, make: Callable[[], Scores]) -> dict[str, Doubles] | None:
        """The arm's scores by part, from its file or made now; None while estimating. ``what`` tells arms apart."""
        path = self.folder / kind / f"{name}-{digest_json(what)[:12]}.npz"
        if path.is_file():
            with np.load(path) as file:
                return {part: np.asarray(file[part]) for part in file.files if part != "seconds"}
        if self.estimating:
            self.waiting[kind] = self.waiting.get(kind, 0) + 1
            return None
        begun = time.perf_counter()
        scores = dict(make())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, seconds=time.perf_counter() - begun, **scores)
        write_atomic(path, buffer.getvalue())
        say(f"{name}: {', '.join(f'{part} {value.mean():.4f}' for part, value in scores.items())}")
        return scores

    def seconds(self, kind: str) -> float:
        """Median seconds of this kind's finished arms (the first also prepares for all), or what they usually take."""
        found = []
        for path in (self.folder / kind).glob("*.npz"):
            with np.load(path) as file:
                found.append(float(file["seconds"]))
        return median(found) if found else USUAL[kind]


Found = dict[str, dict[str, dict[str, Doubles]]]


def stacked(found: Mapping[str, Mapping[str, Sequence[Scores]]]) -> Found:
    """method → round → part → [S, N] of method → round → one dictionary a seed."""
    return {
        method: {
            name: {part: np.stack([each[part] for each in seeds]) for part in seeds[0]}
            for name, seeds in rounds.items()
        }
        for method, rounds in found.items()
    }


def head_arm(
    bench: Bench, arms: Arms, found: Benchmark, part: Round, make: Callable[[], Material], name: str, seed: int
) -> Scores | None:
    """One method or peer, round and seed."""
    sizes = Sizes(bench.steps[found.name])
    classes = bench.names if part.captions else part.train.class_names
    peer = PEERS.get(name)
    if peer is None:
        known = CAPTIONED if part.captions else UNLABELLED if found.name == TRANSDUCTIVE else LABELLED_SET
        what: object = kept_by(name, known)
        guides, each = find_method(name, known).guides, (5 if part.captions else 1)
    else:
        what, guides, each = name, (), 1

    def train() -> Scores:
        material = make()
        if peer is None:
            sure = replace(known, trusted=bool(known.labels) and trusted(bench.teacher, part.train, material.store))
            method = find_method(name, sure)
            facts = {g: _facts(material.guides[g][0].encoder) for g in guides}
            task: TaskOf = objective_of(method, facts, seed)
            needs, neighbours, contrasts = method_needs(method), method.neighbours, "image_to_teacher" in method.loss
        else:
            task, needs, neighbours, contrasts = task_of(peer), peer.needs, 0, True
        head = train_head(
            part,
            material,
            sizes,
            task_of=task,
            needs=needs,
            seed=seed,
            names=classes,
            captions_per_image=each,
            by_class=not part.captions and not contrasts,
            neighbours=neighbours,
            guides=guides,
        )
        return score_head(head, part, material)

    mark = [what, vars(sizes), STUDENT, seed, part.train.fingerprint(), bench.teacher.mark, list(classes), each]
    if guides and bench.second is not None:
        mark.append(bench.second.mark)
    return arms.get(found.name, f"{part.name}-{name}-{seed}", mark, train)


def _facts(encoder: TorchEncoder) -> TeacherFacts:
    return TeacherFacts(encoder.dim, encoder.logit_scale, encoder.logit_bias)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """``make`` called at most once, and only where an arm is missing."""
    kept: list[T] = []

    def get() -> T:
        if not kept:
            kept.append(make())
        return kept[0]

    return get
