"""Adaptation: methods on real data and in the rendered sample world, PromptKD's two stages, and what each costs.

Four parts, each kept arm by arm in the cache, so that an interrupted run goes on:

- ``real``: the LiT teacher (T1 of ``flickr8k.py``: a convolutional image tower, so text prompts and what works on
  stored features): caltech101 and cifar100 base-to-novel, pacs leaving one domain out, eurosat few-shot;
- ``world``: a model of two small transformers, pre-trained in the rendered sample world, for methods that put tokens
  into both towers, and for all others: base-to-novel over the world's classes;
- ``promptkd``: both stages, stage 2 with the zero-shot teacher, and direct prompt learning of the student, in the
  world; transductive and inductive rows apart;
- ``cost``: trained parameters, seconds, peak memory, and class texts computed once against at each step.

``make bench-adapt``; ``--parts``, ``--sets``, ``--methods``, ``--seeds`` and ``--smoke`` make it shorter: pieces that
ran before are read back by the whole.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import save_file

from clipette.adapt import settings
from clipette.adapt.vpt import VPT
from clipette.adapting import adapt, adapt_study
from clipette.config import load_yaml
from clipette.data.sources import load_data
from clipette.evaluate.zero_shot import zero_shot
from clipette.io import digest_json, write_json
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model
from clipette.resolve import resolve
from clipette.tasks.adapt import freeze
from clipette.train.recipe import Recipe
from clipette.verbs import distill, pretrain
from common import PROJECT, arguments, bench_cache, finish, machine, say, shared_folder

# A convolutional image tower takes these. CoCoOp and TPT encode every class text for every image: in the world only.
FEATURES = (
    "zero-shot",
    "coop",
    "kgcoop",
    "clip-adapter",
    "tip-adapter",
    "tip-adapter-f",
    "taskres",
    "linear-probe",
    "upl",
)
TOKENS = (*FEATURES, "cocoop", "vpt", "maple", "promptsrc", "wise-ft", "tpt")
# Nothing is drawn that they see: every seed would say the same.
SEEDLESS = ("zero-shot", "tpt")
SETS = ("caltech101", "cifar100", "pacs", "eurosat")
LOOP = ("coop", "kgcoop", "cocoop", "vpt", "maple", "promptsrc", "upl", "wise-ft")
PARTS = ("real", "world", "promptkd", "cost")


def newest_teacher() -> Path:
    """T1 of bench-flickr8k, of all its images, wherever it was made last."""
    made = sorted(bench_cache("flickr8k").glob("T1-0-*/summary.json"), key=lambda path: path.stat().st_mtime)
    whole = [path.parent for path in made if "limit=" not in json.loads(path.read_text())["data"]]
    if not whole:
        raise SystemExit("the teacher T1 is missing: run `make bench-flickr8k` first, or name another with --teacher")
    return whole[-1]


def study(name: str, base: str, data: str, protocol: str, options: Any, **more: Any) -> list[dict[str, Any]]:
    """One protocol's table."""
    out = bench_cache("adapt") / f"{name}-{digest_json([base, data, options.smoke])[:8]}"
    overrides = list(more.pop("overrides", []))
    recipes = more.pop("recipes")
    if options.methods:
        recipes = [recipe for recipe in recipes if recipe in options.methods.split(",")]
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        first = TO_NOVEL.get(recipe, []) if protocol == "base-to-novel" else []
        own = [*first, *overrides, *smaller(recipe, options.smoke)]
        drawn = seeds(options)[: 1 if recipe in SEEDLESS else None]
        given = {"base": base, "data": data, "out": out, "overrides": own, "seeds": drawn, **more}
        found = adapt_study([recipe], protocol, **given)
        table = found["table"]
        assert isinstance(table, list)
        rows += table
        say(f"{name} {recipe}: " + ", ".join(f"{row['figure']} {row['mean']:.4f} ± {row['sd']:.4f}" for row in table))
    if recipes:
        say(f"{name}: {time.perf_counter() - begun:.0f} s")
    return rows


# CoOp begins at a phrase there (its authors); alone a linear probe has no weights for a class that it has not seen.
TO_NOVEL = {"coop": ["method.tokens=4", "method.start=a photo of a"], "linear-probe": ["method.text_start=true"]}


def seeds(options: Any) -> list[int]:
    """``--seeds``, or one in a smoke run."""
    found = [int(seed) for seed in options.seeds.split(",")]
    return found[:1] if options.smoke else found


def smaller(recipe: str, smoke: bool) -> list[str]:
    """Overrides that fit a recipe: published budgets are for a ViT-B/16 and hours of a GPU."""
    loop = recipe in LOOP
    sets = [f"views.count={2 if smoke else 4}"] if recipe != "linear-probe" else []
    if smoke:
        sets += ["train.steps=2", "train.batch_size=2"] if loop else []
        sets += ["method.tokens=4"] if recipe in ("coop", "upl") else []
        sets += ["method.fit.epochs=2"] if recipe in ("clip-adapter", "tip-adapter-f", "taskres") else []
        sets += ["method.views=4"] if recipe == "tpt" else []
        return sets
    return [*sets, *FEWER.get(recipe, [])]


# The class texts cost the same whatever the batch: large ones at a higher rate, and as many steps as there is time for.
TEXTS = ["train.steps=100", "train.batch_size=128", "train.optimizer.lr=4e-3"]
FEWER = {
    "coop": TEXTS,
    "kgcoop": TEXTS,
    "upl": TEXTS,
    "cocoop": ["train.epochs=4", "train.batch_size=4"],
    "vpt": ["train.epochs=10"],
    "wise-ft": ["train.optimizer.lr=1e-4"],
    "tpt": ["method.views=16"],
}


# ---------------------------------------------------------------- real data


def real(options: Any, shared: Path) -> dict[str, Any]:
    """The LiT teacher on four data sets."""
    base = str(options.teacher)
    few = "?limit=120" if options.smoke else ""

    def data(name: str) -> str:
        return f"wds:{shared / 'data' / name}{few}"

    shots = {"shots": [2] if options.smoke else [8]}
    curve = {"shots": [1, 2] if options.smoke else [1, 2, 4, 8, 16]}
    short = ("zero-shot", "coop", "clip-adapter", "tip-adapter", "tip-adapter-f", "taskres", "linear-probe")
    few_shots = {"recipes": FEATURES, **shots}
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        # It has eight images a class: four to learn from, four to choose by.
        "caltech101": (data("caltech101.tar"), "base-to-novel", {**few_shots, "shots": [2 if options.smoke else 4]}),
        "cifar100": (data("cifar100.tar.gz"), "base-to-novel", few_shots),
        "pacs": (data("pacs.tar"), "domain-generalisation", few_shots),
        "eurosat": (data("eurosat.tar.gz"), "few-shot", {"recipes": short, **curve}),
    }
    return {
        name: study(name, base, reference, protocol, options, **dict(more))
        for name, (reference, protocol, more) in asked.items()
        if name in options.sets.split(",")
    }


# ---------------------------------------------------------------- the rendered sample world


@dataclass(frozen=True)
class World:
    """Models of two transformers, pre-trained on the world's captions, and its 48 seen classes in references."""

    teacher: str
    student: str
    train: str
    test: str

    @classmethod
    def opened(cls, options: Any) -> World:
        """Made once and kept."""
        sizes = (256, 96, 96) if options.smoke else (8000, 2400, 960)
        pretrained, train, test = (
            f"world:{split}?n={size}&size=64" for split, size in zip(("pretrain", "train", "test"), sizes, strict=True)
        )
        steps = 4 if options.smoke else options.steps
        made = {}
        for name, recipe in (("teacher", "adapt-world-teacher"), ("student", "methods-world-vit")):
            out = bench_cache("adapt") / f"world-{name}-{steps}"
            if not (out / "summary.json").is_file():
                say(f"world: pre-training the {name}")
                sets = [f"train.steps={steps}", *(["train.batch_size=16"] if options.smoke else [])]
                pretrain(
                    PROJECT / "benchmarks" / "recipes" / f"{recipe}.yaml", data=pretrained, out=out, overrides=sets
                )
            made[name] = str(out)
        return cls(made["teacher"], made["student"], train, test)


# The world's captions say "a picture of a …", and its words have no photo.
SAID = "a picture of a {}."
PHRASED = ("coop", "kgcoop", "cocoop", "maple", "promptsrc", "tpt")


def in_the_world(recipe: str) -> list[str]:
    """Overrides that word things as the world does."""
    phrase = ["method.tokens=4"] if recipe == "coop" else []
    phrase += ["method.start=a picture of a"] if recipe in PHRASED else []
    # Of CLIP's eighty templates its words are none: PromptSRC is held near the one that it knows.
    return [f"templates={SAID}", *phrase, *([f"method.templates={SAID}"] if recipe == "promptsrc" else [])]


def world(options: Any) -> dict[str, Any]:
    """Methods with tokens in both towers, base-to-novel."""
    here = World.opened(options)
    shots = [2] if options.smoke else [16]
    rows: list[dict[str, Any]] = []
    for recipe in TOKENS:
        more = {"recipes": (recipe,), "shots": shots, "tests": [here.test], "overrides": in_the_world(recipe)}
        rows += study("world", here.teacher, here.train, "base-to-novel", options, **more)
    return {"base_to_novel": rows}


def promptkd(options: Any) -> dict[str, Any]:
    """PromptKD's stages against each other, and against prompts that the student learns by itself."""
    here = World.opened(options)
    shots = 2 if options.smoke else 16
    steps = ["train.steps=4", "train.batch_size=4"] if options.smoke else ["train.epochs=10", "train.batch_size=32"]
    first = [*smaller("promptsrc", options.smoke), *in_the_world("promptsrc")]
    stage = {"recipe": "promptsrc", "shots": shots, "set": first}
    test = {half: load_data(f"{here.test}&classes={half}") for half in ("base", "novel")}
    # The prompted teacher's classes are named in the wording that its context stands for.
    teachers = {"both stages": (stage, "single"), "zero-shot teacher": (None, SAID)}
    # The paper distils from unlabelled images of all classes; inductively neither a novel one's images nor its name.
    unlabelled = {"transductive": (here.train, "base"), "inductive": (f"{here.train}&classes=base", "all")}
    arms: dict[str, dict[str, Any]] = {}
    for (protocol, (data, learns)), (arm, (first_stage, wording)) in product(unlabelled.items(), teachers.items()):
        adapted = first_stage and {**first_stage, "classes": learns}
        by_seed: dict[str, dict[str, float]] = {}
        for seed in seeds(options):
            told = digest_json([here.teacher, here.student, data, steps, adapted, wording, seed])[:8]
            out = bench_cache("adapt") / f"promptkd-{protocol}-{arm.split()[0]}-{told}"
            if not (out / "scores.json").is_file():
                second_stage(here, data, adapted, wording, [*steps, f"seed={seed}"], out)
                # Of novel classes the student has no stored texts where it was not to know them.
                spoken = resolve(str(out / "teacher") if adapted else here.teacher)
                student = resolve(str(out))
                scored = {half: zero_shot(student, part, wording, text_encoder=spoken) for half, part in test.items()}
                write_json(out / "scores.json", {half: result.top1.value for half, result in scored.items()})
            by_seed[str(seed)] = json.loads((out / "scores.json").read_text())
            say(f"promptkd, {protocol}, {arm}, seed {seed}: {by_seed[str(seed)]}")
        arms.setdefault(protocol, {})[arm] = summary(by_seed)
    rows: list[dict[str, Any]] = []
    for recipe in ("zero-shot", "promptsrc"):
        more = {"recipes": (recipe,), "shots": [shots], "tests": [here.test], "overrides": in_the_world(recipe)}
        rows += study("student", here.student, here.train, "base-to-novel", options, **more)
    return {**arms, "student_alone": rows}


def second_stage(here: World, data: str, adapted: object, wording: str, sets: Sequence[str], out: Path) -> None:
    """PromptKD's student of a teacher that is ``adapted`` first, or of the zero-shot one."""
    student = {"space": "teacher", "image": promptkd_image(here.student)}
    weight = 1000 / len(load_data(data).class_names)
    told = [f"student={json.dumps(student)}", f"adapt={json.dumps(adapted)}", f"classes.templates={wording}"]
    told.append(f"loss.class_text_kl.weight={weight:.1f}")
    distill("promptkd", teacher=here.teacher, data=data, out=out, overrides=[*told, *sets])


def promptkd_image(student: str) -> dict[str, Any]:
    """The student's image tower as PromptKD has it: trunk frozen, visual tokens and a projector to learn."""
    spec = load_yaml(Recipe, Path(student) / "recipe.yaml").student.image.model_dump(mode="json")
    weights = Path(student) / "trunk.safetensors"
    if not weights.is_file():
        tower = load_model(Path(student)).model.image_tower()
        save_file({name: value.contiguous() for name, value in tower.trunk.state_dict().items()}, weights)
    head = {"kind": "bn_mlp", "hidden": 256}
    return {
        **spec,
        "weights": str(weights.resolve()),
        "prompts": {"count": 8, "depth": 3},
        "head": head,
        "train": "head",
    }


def summary(by_seed: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Means over seeds, with the harmonic mean of base and novel."""
    rows = []
    for scores in by_seed.values():
        both = scores["base"] + scores["novel"]
        rows.append({**scores, "harmonic_mean": 2 * scores["base"] * scores["novel"] / both if both else 0.0})
    return {
        name: {
            "mean": round(mean(row[name] for row in rows), 4),
            "sd": round(stdev(row[name] for row in rows), 4) if len(rows) > 1 else 0.0,
        }
        for name in rows[0]
    }


# ---------------------------------------------------------------- cost


def cost(options: Any) -> dict[str, Any]:
    """Each method in a process of its own (its peak of memory is its own), and texts once against each step."""
    here = World.opened(options)
    found: dict[str, Any] = {}
    for recipe in TOKENS[:3] if options.smoke else TOKENS:
        kept = bench_cache("adapt") / f"cost-{recipe}-{digest_json([here.teacher, options.smoke])[:8]}.json"
        if not kept.is_file():
            command = [sys.executable, __file__, "--one", recipe, *(["--smoke"] if options.smoke else [])]
            command += ["--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"
                raise SystemExit(f"{recipe}: {why}")
            write_json(kept, json.loads(done.stdout.splitlines()[-1]))
        found[recipe] = json.loads(kept.read_text())
        say(f"cost {recipe}: {found[recipe]}")
    return {"methods": found, "texts_once": texts_once(here, options)}


def one(recipe: str, options: Any) -> dict[str, Any]:
    """One method on the world's base classes, here: parameters, bytes, seconds, steps, peak memory in 10⁶ bytes."""
    here, smoke = World.opened(options), options.smoke
    out = bench_cache("adapt") / f"cost-{recipe}-{'smoke' if smoke else 'whole'}"
    sets = [*smaller(recipe, smoke), *in_the_world(recipe), "classes=base", f"shots={2 if smoke else 16}"]
    if recipe in LOOP and not smoke:
        sets += ["train.steps=20", "train.batch_size=4"] if recipe != "cocoop" else ["train.steps=20"]
    adapt(recipe, base=here.teacher, data=here.train, out=out, overrides=sets, resume=False)
    told = json.loads((out / "summary.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {name: told[name] for name in ("parameters", "bytes", "seconds", "steps")} | {"peak_mb": round(peak, 1)}


def texts_once(here: World, options: Any) -> dict[str, float]:
    """Seconds a step of a method with frozen class texts: computed once, against at each step."""
    encoder = resolve(here.teacher)
    assert isinstance(encoder, TorchEncoder)
    frozen = freeze(encoder)
    names = load_data(here.train).class_names
    learner = VPT(settings.VPT(tokens=4), frozen, names, templates=SAID)
    size = encoder.model.image_tower().preprocess.size
    pixels, labels = torch.randn(4, 3, *size), torch.zeros(4, dtype=torch.int64)

    def step(again: bool) -> None:
        if again:
            learner.texts = frozen.class_vectors(names, SAID)
        features = learner.features(pixels)
        learner.terms(features, {"labels": labels})["cross_entropy"].backward()

    seconds = {}
    for name, again in (("once", False), ("each_step", True)):
        step(again)
        begun = time.perf_counter()
        rounds = 3 if options.smoke else 30
        for _ in range(rounds):
            step(again)
        seconds[name] = (time.perf_counter() - begun) / rounds
    ratio = seconds["each_step"] / seconds["once"]
    return {**{name: round(value, 5) for name, value in seconds.items()}, "ratio": round(ratio, 3)}


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "bench-adapt")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--methods", default="", help="comma-separated; all, if not given")
    parser.add_argument("--sets", default=",".join(SETS), help="of the real data sets, comma-separated")
    parser.add_argument("--steps", type=int, default=600, help="of the world's pre-training")
    parser.add_argument("--teacher", type=Path, help="run directory; T1 of bench-flickr8k by default")
    parser.add_argument("--one", help="one method's cost, in this process")
    options = parser.parse_args(given)
    if options.one:
        print(json.dumps(one(options.one, options)), flush=True)
        return
    parts = options.parts.split(",")
    found: dict[str, Any] = {"seeds": seeds(options), "machine": machine()}
    shared = shared_folder()
    if "real" in parts and shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED, or leave it out: --parts world,promptkd,cost")
    if "real" in parts:
        options.teacher = options.teacher or newest_teacher()
        found["teacher"] = options.teacher.name
    for part in parts:
        found[part] = real(options, shared) if part == "real" and shared else WORK[part](options)
        write_json(options.out / "summary.json", found)
    finish(found, options.out)


WORK = {"world": world, "promptkd": promptkd, "cost": cost}

if __name__ == "__main__":
    main()
