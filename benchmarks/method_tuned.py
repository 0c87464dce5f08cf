"""Tier 2 of bench-methods: whole students fine-tuned on Flickr8k and Caltech101's base classes, tested on everything.

One training an arm: MobileNetV2 at 128 px from its teacher's own weights, in the teacher's space, on 6,000 captioned
and some 300 labelled photographs together. Class-text losses read LVIS's and the base classes' names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipette.config import load_yaml
from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.io import digest_json
from clipette.resolve import resolve
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan
from clipette.tasks.pour import pour as pour_into
from clipette.train.job import Companion, Job
from clipette.train.recipe import Recipe
from clipette.train.run import run_job
from common import PROJECT
from method_heads import VIEWS, Scored, Teacher, encode_all
from method_list import CAPTIONED, LABELLED_SET, DataFacts, Method, find_method
from method_sets import Benchmark, Doubles, Part, Round, benchmark

ACROSS = {
    "cifar100": "cifar100.tar.gz?split=test",
    "eurosat": "eurosat.tar.gz?split=test",
    "fashion_mnist": "fashion_mnist.tar.gz?split=test",
}
EPOCHS = 3.0
STUDENT = PROJECT / "benchmarks" / "recipes" / "flickr8k-a.yaml"


def tuned_mark() -> str:
    """What all students share: arms of another recipe are other arms."""
    return digest_json(STUDENT.read_text())


@dataclass(frozen=True)
class Tuned:
    """What all tier-2 arms share."""

    shared: Path
    train: Dataset
    found: tuple[Benchmark, ...]
    teacher: Teacher
    store: Store
    second: tuple[Teacher, Store] | None
    scored: Scored
    names: tuple[str, ...]
    epochs: float


def tuned_sets(shared: Path, limit: int | None) -> tuple[Dataset, tuple[Benchmark, ...]]:
    """The joint training set, and the benchmarks it is tested on: each round has that training set."""
    flickr, caltech, pacs = (benchmark(shared, name, limit) for name in ("flickr8k", "caltech101", "pacs"))
    both = (flickr.rounds[0].train, caltech.rounds[0].train)
    joint = Dataset(
        " + ".join(each.reference for each in both),
        tuple(sample for each in both for sample in each.samples),
        both[1].class_names,
    )
    few = "" if limit is None else f"&limit={limit}"
    across = tuple(
        Round(name, joint, (), (Part(name, load_data(f"wds:{shared / 'data' / rest}{few}"), "top1"),))
        for name, rest in ACROSS.items()
    )
    # PACS's own training images are never seen here: its kept ones are no dev data of this training.
    found = (
        *(replace(each, rounds=tuple(replace(r, train=joint) for r in each.rounds)) for each in (flickr, caltech)),
        replace(pacs, rounds=tuple(replace(r, train=joint, dev=()) for r in pacs.rounds)),
        Benchmark("across", across),
    )
    return joint, found


def tuned_store(teacher: Teacher, train: Dataset, cache: Path) -> Store:
    """The teacher's word on the joint set: Flickr8k's part is taken from the store that bench-flickr8k made."""
    out = cache / "stores" / f"tuned-{teacher.mark}"
    made = teacher.stores.get("flickr8k")
    if not out.exists() and made is not None and made.is_dir():
        copied = out.with_name(f".{out.name}.part")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(made, copied)
        copied.rename(out)
    plan = PourPlan(images=False, views=VIEWS.count, captions=True, policy=VIEWS.policy())
    return open_store(pour_into(teacher.encoder, train, out, plan).path)


def tuned_method(name: str) -> Method:
    """As in tier 1; some images have labels here and all have captions."""
    if name == "default":
        return find_method(name, DataFacts(captions=True, labels=0.05))
    labelled = find_method(name, LABELLED_SET)
    return labelled if "class_text_ce" in labelled.loss else find_method(name, CAPTIONED)


def tuned_recipe(tuned: Tuned, method: Method, seed: int) -> Recipe:
    """Student A of bench-flickr8k with another loss."""
    base = load_yaml(Recipe, STUDENT).model_dump(mode="json")
    base["student"]["image"]["weights"] = str(tuned.shared / "weights" / "mobilenetv2_100_same.safetensors")
    names = [] if "class_text_ce" in method.loss else list(tuned.names)
    train = {**base["train"], "epochs": tuned.epochs, "batch_size": min(128, len(tuned.train) // 2)}
    train |= {"evaluate_every": 0, "save_every": 60}
    changed = {
        "name": method.name,
        "loss": dict(method.loss),
        "balance": method.balance,
        "sampling": {"neighbours": method.neighbours},
        "classes": {"names": names},
        "seed": seed,
        "train": train,
    }
    return Recipe.model_validate_json(json.dumps({**base, **changed}))


def train_tuned(tuned: Tuned, name: str, seed: int, folder: Path) -> dict[str, dict[str, Doubles]]:
    """One arm's scores: round → part → [N]. A killed training goes on; weights are not kept."""
    method = tuned_method(name)
    recipe = tuned_recipe(tuned, method, seed)
    out = folder / f"tuned-{name}-{seed}-{digest_json([recipe.model_dump(mode='json'), tuned.teacher.mark])[:8]}"
    also = {} if tuned.second is None else {"second": Companion(tuned.second[0].encoder, tuned.second[1])}
    chosen = {guide: also[guide] for guide in method.guides}
    run_job(Job(recipe, tuned.train, out, teacher=tuned.teacher.encoder, store=tuned.store, also=chosen))
    vectors = encode_all(resolve(str(out)), tuned.scored.samples)
    shutil.rmtree(out)
    return {part.name: tuned.scored.values(vectors, part) for part in rounds_of(tuned.found)}


def rounds_of(found: Sequence[Benchmark]) -> list[Round]:
    """All rounds of all benchmarks."""
    return [each for bench in found for each in bench.rounds]
