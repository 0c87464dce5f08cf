"""A teacher that is only a file: OpenAI CLIP ViT-B/32's stored features, and a student distilled from them.

Data: 1,000 Flickr8k photographs without their captions, CLIP's features of them, and CLIP's features of 1,203 LVIS
names (``a {name}``). A seed splits the photographs into train, dev and held-back; dev alone selects; every figure is
agreement with the teacher's own predictions on the held-back ones. Arms, each over all seeds:

- ``untrained``: the student before distillation (ImageNet backbone, random head);
- ``linear_probe``: the frozen backbone's features, and a linear map trained on the teacher's soft labels;
- ``ridge_probe``: the same features, and ridge regression onto the teacher's features (no seed in it);
- ``class_text_kl``: the student, by KL between its and the teacher's distributions over the 1,203 names;
- ``class_text_kl+cosine``: the same and the cosine to the teacher's features.

Finished arms are kept in the cache, unfinished ones resume.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings
from clipette.data.order import epoch_order
from clipette.data.sources import load_data
from clipette.evaluate.agreement import agreement
from clipette.io import write_json
from clipette.models.core import DualEncoder, ImageTower
from clipette.models.inference import TorchEncoder
from clipette.models.stored import open_stored
from clipette.models.stored_vectors import ArrayLookup, StoredEncoder
from clipette.resolve import resolve
from clipette.train.frozen import image_trunk_features
from clipette.train.job import Job, identity_of
from clipette.train.recipe import Recipe
from clipette.train.run import run_job
from clipette.train.student import build_student
from clipette.types import Encoder
from common import arguments, bench_cache, finish, machine, say, shared_folder

PROMPT = "a {}"
SIZES = {"train": 700, "dev": 100, "held_back": 200}
MEASURES = ("top1", "top5", "kl", "cosine", "neighbours")
RIDGE = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
KL, COSINE = {"class_text_kl": 1.0}, {"class_text_kl": 1.0, "image_cosine": 2.0}
# Seven hundred photographs: half of the bend's units are left out at each step.
BENT = {"kind": "residual", "hidden": 512, "dropout": 0.5}


@dataclass(frozen=True)
class Setting:
    """What is chosen on dev for one arm: trained part, loss, epochs and learning rates."""

    train: str
    loss: Mapping[str, float]
    epochs: int
    lr: float
    head_lr: float
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    views: bool = False


# Hundreds of photographs allow few epochs: more overfit (docs/LOG.md).
GRIDS: dict[str, tuple[Setting, ...]] = {
    "linear_probe": tuple(Setting("head", KL, epochs, 0.0, lr) for lr in (1e-3, 5e-3) for epochs in (10, 30)),
    "class_text_kl": (
        Setting("head", KL, 15, 0.0, 2e-3, BENT, views=True),
        Setting("all", KL, 6, 1e-4, 2e-3, BENT, views=True),
    ),
    "class_text_kl+cosine": (
        Setting("head", COSINE, 10, 0.0, 5e-3, BENT, views=True),
        Setting("all", COSINE, 6, 1e-4, 5e-3, BENT, views=True),
    ),
}


@dataclass(frozen=True)
class Bench:
    """The data, the teacher and the options that all arms share."""

    options: Namespace
    shared: Path
    teacher: StoredEncoder
    classes: tuple[str, ...]
    parts: Mapping[str, Dataset]

    @property
    def size(self) -> int:
        return int(self.options.size)

    def job(self, setting: Setting, seed: int) -> Job:
        """The run of one setting; its folder is named by all that changes its weights."""
        job = Job(
            recipe=self.recipe(setting, seed),
            data=self.parts["train"],
            out=Path(),
            teacher=self.teacher,
            device="cpu",
            progress=False,
        )
        return replace(job, out=bench_cache("npz") / identity_of(job)[:16])

    def recipe(self, setting: Setting, seed: int) -> Recipe:
        image = {
            "kind": "timm",
            "name": "mobilenetv2_100",
            "args": {"pad_type": "same"},
            "weights": str(self.shared / "weights" / "mobilenetv2_100_same.safetensors"),
            "size": self.size,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "head": dict(setting.head),
            "train": setting.train,
        }
        values = {
            "name": "npz-teacher",
            "student": {"space": "teacher", "image": image},
            "loss": dict(setting.loss),
            # The file holds one vector an image: the student's own views stay mild.
            "views": {"count": 0, "student_only": setting.views, "scale": [0.6, 1.0]},
            "trunk_views": 12 if setting.views else 1,
            "classes": {"source": "teacher"},
            "seed": seed,
            "train": {
                "epochs": 1 if self.options.smoke else setting.epochs,
                "batch_size": 4 if self.options.smoke else 50,
                "optimizer": {"lr": setting.lr, "head_lr": setting.head_lr},
                "warmup": 0.1,
                "ema": 0.98,
            },
        }
        return Recipe.model_validate_json(json.dumps(values))


# ---------------------------------------------------------------- data and figures


def prepare(options: Namespace, shared: Path) -> Bench:
    """The teacher from its file; the photographs, unlabelled, in three parts."""
    path = shared / "data" / "clip_vitb32_teacher_features.npz"
    teacher = open_stored(
        f"stored:{path}?images=flickr8k_image_features&image_keys=flickr8k_files"
        f"&texts=lvis_text_features&text_keys=lvis_classes&prompt={PROMPT}&scale=100&name=CLIP ViT-B/32"
    )
    with np.load(path) as file:
        classes = tuple(str(name) for name in file["lvis_classes"])
    data = load_data(f"wds:{shared / 'data' / 'flickr8k-train-000.tar'}")
    # Unlabelled: the captions stay out of reach.
    data = replace(data, samples=tuple(replace(sample, captions=()) for sample in data.samples))
    order = [data.samples[i].key for i in epoch_order(len(data), options.split_seed, 0)]
    sizes = {"train": 12, "dev": 12, "held_back": 12} if options.smoke else SIZES
    ends = np.cumsum(list(sizes.values())).tolist()
    parts = {name: data.subset(order[end - sizes[name] : end]) for name, end in zip(sizes, ends, strict=True)}
    return Bench(options, shared, teacher, classes, parts)


def figures(bench: Bench, student: Encoder, part: str) -> dict[str, float]:
    """Agreement with the teacher on one part of the photographs."""
    result = agreement(
        bench.teacher,
        student,
        bench.parts[part],
        class_names=bench.classes,
        templates=PROMPT,
        student_text=bench.teacher,
    )
    return {name: figure.value for name, figure in result.figures().items() if name in MEASURES}


def in_teacher_space(bench: Bench, model: DualEncoder, name: str) -> TorchEncoder:
    return TorchEncoder(model, name=name, space=bench.teacher.space, device="cpu")


# ---------------------------------------------------------------- the arms


def untrained(bench: Bench, seed: int) -> dict[str, float]:
    """The very weights that distillation starts from."""
    student = build_student(bench.job(GRIDS["class_text_kl"][0], seed))
    return figures(bench, in_teacher_space(bench, student, "untrained"), "held_back")


def trained(bench: Bench, setting: Setting, seed: int) -> dict[str, dict[str, float]]:
    """Distil (or read from the cache) and measure on dev and held-back photographs."""
    job = bench.job(setting, seed)
    kept = job.out / "agreement.json"
    if kept.is_file():
        found: dict[str, dict[str, float]] = json.loads(kept.read_text())
        return found
    result = run_job(job)
    student = resolve(str(job.out), device="cpu")
    found = {part: figures(bench, student, part) for part in ("dev", "held_back")}
    write_json(kept, found)
    say(f"{setting} seed {seed}: {result.seconds:.0f} s, dev {_short(found['dev'])}")
    return found


def chosen(bench: Bench, arm: str) -> tuple[Setting, list[dict[str, Any]]]:
    """The setting whose first seed has the lowest KL to the teacher on dev."""
    grid = GRIDS[arm][:1] if bench.options.smoke else GRIDS[arm]
    tried = [(trained(bench, setting, bench.options.seeds[0])["dev"], setting) for setting in grid]
    best = min(tried, key=lambda pair: pair[0]["kl"])
    return best[1], [{**vars(setting), "dev": dev} for dev, setting in tried]


def ridge_probe(bench: Bench) -> tuple[dict[str, float], float]:
    """Closed form: min |XW + b - T|² + λ|W|², X the frozen trunk's features, T the teacher's; λ chosen on dev."""
    tower = build_student(bench.job(GRIDS["linear_probe"][0], 0)).image_tower()
    features = {name: trunk_features(tower, data) for name, data in bench.parts.items()}
    targets = bench.teacher.encode_samples(bench.parts["train"].samples).vectors.astype(np.float64)
    middle, centre = features["train"].mean(axis=0), targets.mean(axis=0)
    x, t = features["train"] - middle, targets - centre
    found: dict[float, dict[str, dict[str, float]]] = {}
    for penalty in RIDGE:
        weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ t)
        found[penalty] = {}
        for part in ("dev", "held_back"):
            keys = [sample.key for sample in bench.parts[part].samples]
            said = ArrayLookup(keys, (features[part] - middle) @ weight + centre, "ridge probe")
            found[penalty][part] = figures(bench, StoredEncoder(bench.teacher.facts, said, None), part)
    best = min(found, key=lambda penalty: found[penalty]["dev"]["kl"])
    return found[best]["held_back"], best


def trunk_features(tower: ImageTower, data: Dataset) -> npt.NDArray[np.float64]:
    """[n, W] what the frozen backbone says of the whole images; kept in the cache."""
    features = image_trunk_features(
        tower,
        data.samples,
        policy=None,
        views=1,
        seed=0,
        folder=bench_cache("trunks"),
        device=torch.device("cpu"),
        settings=DecodeSettings(),
    )
    return features[:, 0].double().numpy()


def _short(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) over seeds."""
    table = {name: np.array([run[name] for run in runs]) for name in MEASURES}
    return {
        name: {"mean": round(float(v.mean()), 4), "sd": round(float(v.std(ddof=1)) if len(v) > 1 else 0.0, 4)}
        for name, v in table.items()
    }


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, "bench-npz")
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--split-seed", type=int, default=0, help="draws the three parts of the photographs")
    parser.add_argument("--size", type=int, default=128, help="the student's image size in pixels")
    options = parser.parse_args(given)
    shared = shared_folder()
    if shared is None:
        raise SystemExit("needs the real data: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    if options.smoke:
        options.seeds, options.size = options.seeds[:1], 32
    bench = prepare(options, shared)
    arms: dict[str, Any] = {"untrained": {"held_back": spread([untrained(bench, seed) for seed in options.seeds])}}
    say(f"untrained {arms['untrained']}")
    ridge, penalty = ridge_probe(bench)
    arms["ridge_probe"] = {"held_back": spread([ridge]), "penalty": penalty}
    say(f"ridge_probe {arms['ridge_probe']}")
    for arm in GRIDS:
        setting, tried = chosen(bench, arm)
        runs = [trained(bench, setting, seed)["held_back"] for seed in options.seeds]
        arms[arm] = {"held_back": spread(runs), "chosen": vars(setting), "tried": tried}
        say(f"{arm} {arms[arm]['held_back']}")
    summary = {
        **{name: arm["held_back"] for name, arm in arms.items()},
        "chosen": {name: {k: v for k, v in arm.items() if k != "held_back"} for name, arm in arms.items()},
        "measures": "agreement with the teacher's predictions on held-back photographs; kl in nats, the rest 0 to 1",
        "split": {name: len(part) for name, part in bench.parts.items()},
        "split_seed": options.split_seed,
        "seeds": options.seeds,
        "size": bench.size,
        "classes": len(bench.classes),
        "data": bench.parts["train"].name,
        "machine": machine(),
    }
    finish(summary, options.out)


if __name__ == "__main__":
    main()
