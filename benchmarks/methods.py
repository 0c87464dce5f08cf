"""Every distillation method on the same students, teacher, data and steps: one table, and what it does not tell.

Tier 1: frozen-trunk students (MobileNetV2 at 128 px, ImageNet weights, a residual head in the teacher's space), whose
trunk runs once over the stored views. Teacher: T1 of ``flickr8k.py``, poured once a set. A method is the ``loss`` of
its shipped recipe; student, schedule and batch are common, so that only the loss differs. Sets and their one score:

- ``flickr8k``: captions; mean recall on test. Class-text methods get 1,203 LVIS names for classes;
- ``caltech101``: base-to-novel; the students see base classes only; harmonic mean of base and novel top-1 on test;
- ``pacs``: leave one domain out; top-1 on the left-out domain's test images, mean over the four.

Captions of the labelled sets are ``a photo of a {class}``. Selection on dev only: nothing is selected here. Claims are
by paired bootstrap over seeds in ``summary["claims"]``. Finished arms are kept in the cache: ``make bench-methods
SEEDS=0 METHODS=ood,dkd``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from clipette.config import find_recipe, load_yaml
from clipette.data.dataset import Dataset
from clipette.data.prompts import fill
from clipette.data.sources import load_data
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.zero_shot import zero_shot
from clipette.io import digest_json, write_json
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan
from clipette.tasks.pour import pour as pour_into
from clipette.train.job import Job
from clipette.train.recipe import Recipe, ViewSettings
from clipette.train.run import run_job
from clipette.types import Encoder
from common import arguments, bench_cache, finish, machine, say, shared_folder

# Pair methods read captions, class methods class texts; the loss is the recipe's.
METHODS = (
    "clip",
    "default",
    "unlabelled",
    "lightclip",
    "affinity",
    "contrastive",
    "clip-kd",
    "clip-kd-gradient",
    "clip-kd-fusion",
    "rkd",
    "gram",
    "promptkd-stage2",
    "ood",
    "dkd",
    "dist",
    "standardized",
)
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
VIEWS = ViewSettings(count=4, scale=(0.5, 1.0))


@dataclass(frozen=True)
class Round:
    """One training of a set: what the student sees, and how it is scored on test (score, figures)."""

    name: str
    train: Dataset
    score: Callable[[Encoder], dict[str, float]]


def rounds(shared: Path, name: str, limit: int | None) -> list[Round]:
    """The trainings of one set."""
    few = "" if limit is None else f"&limit={limit}"

    def data(rest: str) -> Dataset:
        return load_data(f"wds:{shared / 'data' / rest}{few}")

    if name == "flickr8k":
        test = data("flickr8k-test-000.tar?seed=0")
        return [Round(name, data("flickr8k-train-{000..005}.tar?seed=0"), partial(_retrieved, test))]
    if name == "caltech101":
        tests = {part: data(f"caltech101.tar?split=test&classes={part}") for part in ("base", "novel")}
        train = captioned(data("caltech101.tar?split=train&classes=base"))
        return [Round(name, train, partial(_base_to_novel, tests))]
    found = []
    for domain in DOMAINS:
        others = ",".join(each for each in DOMAINS if each != domain)
        train = captioned(data(f"pacs.tar?split=train&domain={others}"))
        test = data(f"pacs.tar?split=test&domain={domain}")
        found.append(Round(f"{name}-{domain}", train, partial(_top1, test)))
    return found


def captioned(data: Dataset) -> Dataset:
    """The same samples with a caption made of the class name."""
    samples = tuple(replace(s, captions=(fill("a photo of a {}", str(s.class_name)),)) for s in data.samples)
    return replace(data, samples=samples)


def _retrieved(test: Dataset, encoder: Encoder) -> dict[str, float]:
    return {"score": retrieval(encoder, test).mean_recall.value}


def _base_to_novel(tests: Mapping[str, Dataset], encoder: Encoder) -> dict[str, float]:
    top1 = {part: zero_shot(encoder, test, "single").top1.value for part, test in tests.items()}
    both = sum(top1.values())
    return {"score": 2 * top1["base"] * top1["novel"] / both if both else 0.0, **top1}


def _top1(test: Dataset, encoder: Encoder) -> dict[str, float]:
    return {"score": zero_shot(encoder, test, "single").top1.value}


# ---------------------------------------------------------------- one arm


@dataclass(frozen=True)
class Bench:
    """What all arms share; ``mark``: the teacher's folder, by which arms and stores are kept."""

    shared: Path
    cache: Path
    teacher: TorchEncoder
    mark: str
    steps: int
    names: tuple[str, ...]

    def recipe(self, method: str, seed: int, part: Round) -> Recipe:
        captions = part.name == "flickr8k"
        loss = load_yaml(Recipe, find_recipe(method)).loss
        if captions:  # no labels
            loss.pop("class_text_ce", None)
        values = {
            "name": method,
            "student": {
                "space": "teacher",
                "image": {
                    "kind": "timm",
                    "name": "mobilenetv2_100",
                    "args": {"pad_type": "same"},
                    "weights": str(self.shared / "weights" / "mobilenetv2_100_same.safetensors"),
                    "size": 128,
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.5, 0.5, 0.5],
                    "head": {"kind": "residual", "hidden": 1024, "dropout": 0.3},
                    "train": "head",
                },
                "text": {"kind": "teacher"},
            },
            "loss": loss,
            "classes": {"names": list(self.names) if captions else []},
            "views": VIEWS.model_dump(mode="json"),
            "captions_per_image": 5 if captions else 1,
            "seed": seed,
            "train": {
                "steps": self.steps,
                "batch_size": min(128, len(part.train) // 2),
                "optimizer": {"lr": 1e-3, "weight_decay": 0.05},
            },
        }
        return Recipe.model_validate_json(json.dumps(values))


def arm(bench: Bench, part: Round, store: Store, method: str, seed: int) -> dict[str, float]:
    """Scores of one method, seed and training, from the cache or made."""
    recipe = bench.recipe(method, seed, part)
    mark = digest_json([recipe.model_dump(mode="json"), part.train.fingerprint(), bench.mark])[:12]
    folder = bench.cache / "arms" / f"{part.name}-{method}-{seed}-{mark}"
    kept = folder / "scores.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    result = run_job(Job(recipe, part.train, folder, teacher=bench.teacher, store=store, progress=False))
    scores = {**part.score(resolve(str(folder))), "seconds": round(result.seconds, 1)}
    write_json(kept, scores)
    say(f"{part.name} {method} seed {seed}: {scores}")
    return scores


def pour(bench: Bench, part: Round) -> Store:
    """The teacher's outputs on one training set."""
    plan = PourPlan(images=False, views=VIEWS.count, captions=True, policy=VIEWS.policy())
    out = bench.cache / "stores" / f"{part.name}-{bench.mark}"
    return open_store(pour_into(bench.teacher, part.train, out, plan).path)


# ---------------------------------------------------------------- the table


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each method's mean over sets."""
    out = {}
    for method, sets in found.items():
        each = [mean(values) for values in zip(*sets.values(), strict=True)]
        out[method] = {
            "mean": round(mean(each), 4),
            "sd": round(stdev(each), 4) if len(each) > 1 else 0.0,
            "sets": {name: round(mean(values), 4) for name, values in sets.items()},
        }
    return out


def claims(found: Mapping[str, Mapping[str, Sequence[float]]], best: str, draws: int = 10_000) -> dict[str, Any]:
    """Paired bootstrap over seeds: how sure it is that ``best`` beats each other method on the mean over sets."""
    generator = np.random.default_rng(0)
    means = {method: np.mean(np.array(list(sets.values())), axis=0) for method, sets in found.items()}
    out = {}
    for method, values in means.items():
        if method == best:
            continue
        difference = means[best] - values
        rows = generator.integers(len(difference), size=(draws, len(difference)))
        drawn = difference[rows].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        out[method] = {"difference": float(difference.mean()), "low": float(low), "high": float(high)}
    return out


def main() -> None:
    parser = arguments(__doc__, "bench-methods")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--sets", default="flickr8k,caltech101,pacs", help="comma-separated")
    parser.add_argument("--steps", type=int, default=400, help="steps of every arm")
    parser.add_argument("--teacher", type=Path, help="run directory; T1 of bench-flickr8k by default")
    options = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    folder = options.teacher or newest_teacher()
    teacher = resolve(str(folder))
    assert isinstance(teacher, TorchEncoder)
    with np.load(shared / "data" / "clip_vitb32_teacher_features.npz") as file:
        names = tuple(str(name) for name in file["lvis_classes"])
    steps = 4 if options.smoke else options.steps
    bench = Bench(shared, bench_cache("methods"), teacher, folder.name, steps, names)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.smoke else None]
    found: dict[str, dict[str, list[float]]] = {method: {} for method in options.methods.split(",")}
    reference: dict[str, float] = {}
    for name in options.sets.split(","):
        parts = rounds(shared, name, 64 if options.smoke else None)
        reference[name] = mean(part.score(teacher)["score"] for part in parts)
        say(f"{name}: teacher {reference[name]:.4f}")
        stores = [pour(bench, part) for part in parts]
        for method in found:
            found[method][name] = [
                mean(arm(bench, part, store, method, seed)["score"] for part, store in zip(parts, stores, strict=True))
                for seed in seeds
            ]
            say(f"{name} {method}: {mean(found[method][name]):.4f}")
    methods = table(found)
    best = max(methods, key=lambda method: float(methods[method]["mean"]))
    summary = {
        "default": methods.get("default"),
        "methods": methods,
        "teacher": reference,
        "best": best,
        "claims": {"of": "default", **claims(found, "default")} if "default" in found else {},
        "seeds": seeds,
        "steps": bench.steps,
        "machine": machine(),
    }
    finish(summary, options.out)


def newest_teacher() -> Path:
    """T1 of bench-flickr8k, wherever it was made last."""
    made = sorted(bench_cache("flickr8k").glob("T1-0-*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not made:
        raise SystemExit("the teacher T1 is missing: run `make bench-flickr8k` first, or name another with --teacher")
    return made[-1].parent


if __name__ == "__main__":
    main()
