"""bench-adapt in the rendered sample world: tokens in both towers, a style never seen before, PromptKD's stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from safetensors.torch import save_file

from adapt_table import TOKENS, seeds, smaller, study
from clipette.config import load_yaml
from clipette.data.sources import load_data
from clipette.evaluate.zero_shot import zero_shot
from clipette.io import digest_json, write_json
from clipette.models.saved import load_model
from clipette.resolve import resolve
from clipette.train.recipe import Recipe
from clipette.verbs import distill, pretrain
from common import PROJECT, bench_cache, say


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
            made[name] = known(name, recipe, pretrained, steps, options)
        return cls(made["teacher"], made["student"], train, test)


def known(name: str, recipe: str, data: str, steps: int, options: Any) -> str:
    """A model pre-trained on the world's captions, made once and kept."""
    out = bench_cache("adapt") / f"world-{name}-{steps}"
    if not (out / "summary.json").is_file():
        say(f"world: pre-training {name}")
        sets = [f"train.steps={steps}", *(["train.batch_size=16"] if options.smoke else [])]
        pretrain(PROJECT / "benchmarks" / "recipes" / f"{recipe}.yaml", data=data, out=out, overrides=sets)
    return str(out)


# The world's captions say "a picture of a …", and its words have no photo.
SAID = "a picture of a {}."
# Views of a scene as its model was pre-trained on: the published crops, down to .08 of a photograph, tear shapes apart.
WHOLE = ["views.scale=[0.8, 1.0]", "views.flip=0"]
# They learn of no views.
UNSEEN = ("zero-shot", "tpt", "linear-probe")
PHRASED = ("coop", "kgcoop", "cocoop", "maple", "promptsrc", "tpt")


def in_the_world(recipe: str) -> list[str]:
    """Overrides that word things as the world does."""
    phrase = ["method.tokens=4"] if recipe == "coop" else []
    phrase += ["method.start=a picture of a"] if recipe in PHRASED else []
    # Of CLIP's eighty templates its words are none: PromptSRC is held near the one that it knows.
    near = [f"method.templates={SAID}"] if recipe == "promptsrc" else []
    return [*([] if recipe in UNSEEN else WHOLE), f"templates={SAID}", *phrase, *near]


def world(options: Any) -> dict[str, Any]:
    """Methods with tokens in both towers, base-to-novel."""
    here = World.opened(options)
    shots = [2] if options.smoke else [16]
    rows: list[dict[str, Any]] = []
    for recipe in TOKENS:
        more = {"recipes": (recipe,), "shots": shots, "tests": [here.test], "overrides": in_the_world(recipe)}
        rows += study("world", here.teacher, here.train, "base-to-novel", options, **more)
    return {"base_to_novel": rows}


# What may lift a base, what is to keep novel, and what features alone can gain. Class texts begin further away here and
# cost nothing: a higher rate, and more steps. One context for all has no word for a class; ``per_class`` has.
FURTHER = ["train.steps=300", "train.optimizer.lr=4e-2"]
SHIFTED: dict[str, tuple[str, list[str]]] = {
    "zero-shot": ("zero-shot", []),
    "coop": ("coop", FURTHER),
    "coop, a context for each class": ("coop", [*FURTHER, "method.per_class=true"]),
    "kgcoop": ("kgcoop", FURTHER),
    **{name: (name, []) for name in ("vpt", "maple", "promptsrc", "wise-ft", "tip-adapter-f", "linear-probe")},
}


def shifted(options: Any) -> dict[str, Any]:
    """As ``world``, where there is something to gain: a base that knows plain pictures, and outlines to adapt to."""
    count, train, test = (256, 96, 96) if options.smoke else (20_000, 2400, 960)
    steps = 4 if options.smoke else 2 * options.steps
    base = known("plain", "methods-world-vit", f"world:pretrain?n={count}&size=64&domain=plain", steps, options)
    outlines = [f"world:shift-outline?n={size}&size=64&seed={seed}" for seed, size in ((1, train), (0, test))]
    rows: list[dict[str, Any]] = []
    for name, (recipe, sets) in SHIFTED.items():
        more = {"recipes": (recipe,), "shots": [2 if options.smoke else 16], "tests": outlines[1:]}
        more["overrides"] = [*in_the_world(recipe), *([] if options.smoke else sets)]
        folder = "shifted-per-class" if "method.per_class=true" in sets else "shifted"
        found = study(folder, base, outlines[0], "base-to-novel", options, **more)
        rows += [{**row, "method": name} for row in found]
    tested = {
        "recipes": ("zero-shot",),
        "tests": [f"world:test?n={test}&size=64"],
        "overrides": in_the_world("zero-shot"),
    }
    plain = study("plain", base, f"world:train?n={train}&size=64", "base-to-novel", options, **tested)
    return {"base_to_novel": rows, "zero_shot_plain": plain}


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
