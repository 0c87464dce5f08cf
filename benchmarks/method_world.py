"""The sample world's share of bench-methods' tier 1: methods that need a ViT whose patches or layers they change.

The teacher is the demo's (a small ResNet on the broad split); every student starts from one small ViT that knows the
world a little from captions. PromptKD freezes it and learns visual prompts and a projector; MFD hides three quarters of
its patches; the others train all of it. Data, views, steps, batch and optimiser are common.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipette import verbs
from clipette.config import find_recipe, load_yaml
from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.data.world import WorldSpec
from clipette.data.world_write import write_worlds
from clipette.io import digest_json, write_atomic
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model, state_bytes
from clipette.resolve import resolve
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan
from clipette.tasks.pour import pour as pour_into
from clipette.train.job import Job
from clipette.train.recipe import Recipe
from clipette.train.run import run_job
from common import PROJECT, say
from method_heads import Scored, Teacher, encode_all, scored_images, teacher_vectors, trusted
from method_list import DataFacts, Method, find_method
from method_sets import STYLES, Benchmark, Doubles, Part, Round

SIZES = {
    "pretrain": 12_000,
    "train": 4_000,
    "dev": 480,
    "test": 960,
    "novel": 960,
    **{f"shift-{s}": 480 for s in STYLES},
}
PROMPTS = {"count": 8, "depth": 3}
MASKED = 0.75
# The world's pictures have captions and labels.
WORLD_FACTS = DataFacts(captions=True)


RECIPE = PROJECT / "benchmarks" / "recipes" / "methods-world-vit.yaml"


def world_mark() -> str:
    """What makes teacher and start: an arm of another is another arm."""
    return digest_json(
        [find_recipe(name).read_text() for name in ("demo-teacher", "demo-student")] + [RECIPE.read_text()]
    )


@dataclass(frozen=True)
class World:
    """The world with its teacher and what that poured; ``weights``: the students' start."""

    bench: Benchmark
    teacher: Teacher
    store: Store
    weights: Path
    image: Mapping[str, Any]
    scored: Scored
    steps: int

    def said(self, cache: Path) -> dict[str, dict[str, Doubles]]:
        """The teacher's own scores: round → part → [N]."""
        vectors = teacher_vectors(self.teacher, self.scored, cache)
        return {part.name: self.scored.values(vectors, part) for part in self.bench.rounds}


def open_world(cache: Path, steps: int, *, smoke: bool) -> World:
    """Render, train teacher and start, pour: all kept in ``cache``."""
    sizes = dict.fromkeys(SIZES, 96) if smoke else SIZES
    folder = cache / ("world-smoke" if smoke else "world")
    written = write_worlds(folder / "data", [WorldSpec(split, count) for split, count in sizes.items()])
    data = {split: " + ".join(f"wds:{path}" for path in tars) for split, tars in zip(sizes, written, strict=True)}
    short = ["train.steps=4", "train.batch_size=16"] if smoke else []
    for name, recipe in (("teacher", "demo-teacher"), ("vit", RECIPE)):
        if not (folder / name / "summary.json").is_file():
            say(f"world: training {name}")
            verbs.pretrain(recipe, data=data["pretrain"], out=folder / name, overrides=short)
    encoder = resolve(str(folder / "teacher"))
    assert isinstance(encoder, TorchEncoder)
    teacher = Teacher(encoder, f"world-{encoder.space[:12]}", {})
    weights = folder / "vit.safetensors"
    if not weights.is_file():
        start = load_model(folder / "vit").model.image_tower()
        write_atomic(weights, state_bytes({name: v.contiguous() for name, v in start.trunk.state_dict().items()}))
    train = load_data(data["train"])
    plan = PourPlan(images=False, views=4, captions=True, policy=_views().views.policy())
    store = open_store(pour_into(encoder, train, folder / "store", plan).path)
    bench = Benchmark("world", (_round(train, data),))
    image = load_yaml(Recipe, RECIPE).student.image.model_dump(mode="json")
    return World(bench, teacher, store, weights, image, scored_images(bench_list(bench), teacher, cache), steps)


def bench_list(bench: Benchmark) -> Sequence[Benchmark]:
    """One benchmark as a list of them."""
    return [bench]


def _views() -> Recipe:
    """The demo's student has the law of views that this world is distilled with."""
    return load_yaml(Recipe, find_recipe("demo-student"))


def _round(train: Dataset, data: Mapping[str, str]) -> Round:
    def part(name: str, split: str) -> Part:
        return Part(name, load_data(data[split]), "top1")

    styles = [load_data(data[f"shift-{style}"]) for style in STYLES]
    shifted = replace(styles[0], reference="shifted", samples=tuple(s for each in styles for s in each.samples))
    test = (part("seen", "test"), part("novel", "novel"), Part("shifted", shifted, "top1"))
    return Round("world", train, (part("seen", "dev"),), test)


def world_recipe(world: World, method: Method, seed: int) -> Recipe:
    """The method on the world's ViT, in its teacher's space."""
    image = {**world.image, "weights": str(world.weights), "head": {"kind": "residual"}, "train": "all"}
    if method.name == "promptkd":
        image |= {"prompts": PROMPTS, "head": {"kind": "bn_mlp"}, "train": "head"}
    if method.name == "clip-kd-masked":
        image |= {"args": {**image["args"], "patch_drop_rate": MASKED}}
    shown = _views()
    values = {
        "name": method.name,
        "student": {"space": "teacher", "image": image, "text": {"kind": "teacher"}},
        "loss": dict(method.loss),
        "balance": method.balance,
        "views": shown.views.model_dump(mode="json"),
        "captions_per_image": 5,
        "seed": seed,
        "train": {
            "steps": world.steps,
            "batch_size": min(128, len(world.bench.rounds[0].train) // 2),
            "threads": 1,
            "warmup": 0.1,
            "save_every": max(1, world.steps // 3),
            "optimizer": {"lr": 1e-3, "weight_decay": 0.05},
        },
    }
    return Recipe.model_validate_json(json.dumps(values))


def train_world(world: World, name: str, seed: int, folder: Path) -> dict[str, Doubles]:
    """One arm's scores, by part; ``folder`` holds the run while it lasts, and a killed one goes on."""
    part = world.bench.rounds[0]
    known = replace(WORLD_FACTS, trusted=trusted(world.teacher, part.train, world.store))
    recipe = world_recipe(world, find_method(name, known), seed)
    out = folder / f"world-{name}-{seed}-{digest_json(recipe.model_dump(mode='json'))[:8]}"
    run_job(Job(recipe, part.train, out, teacher=world.teacher.encoder, store=world.store, progress=False))
    vectors = encode_all(resolve(str(out)), world.scored.samples)
    shutil.rmtree(out)
    return world.scored.values(vectors, part)
