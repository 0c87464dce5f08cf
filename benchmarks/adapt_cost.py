"""What each method of bench-adapt costs, in a process of its own, and class texts computed once against each step."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from adapt_table import LOOP, TOKENS, smaller
from adapt_world import SAID, World, in_the_world
from clipette.adapt import settings
from clipette.adapt.vpt import VPT
from clipette.adapting import adapt
from clipette.data.sources import load_data
from clipette.io import digest_json, write_json
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.tasks.adapt import freeze
from common import bench_cache, say


def cost(options: Any) -> dict[str, Any]:
    """Each method in a process of its own (its peak of memory is its own), and texts once against each step."""
    here = World.opened(options)
    found: dict[str, Any] = {}
    for recipe in TOKENS[:3] if options.smoke else TOKENS:
        kept = bench_cache("adapt") / f"cost-{recipe}-{digest_json([here.teacher, options.smoke])[:8]}.json"
        if not kept.is_file():
            command = [
                sys.executable,
                str(Path(__file__).with_name("adapt.py")),
                "--one",
                recipe,
                *(["--smoke"] if options.smoke else []),
            ]
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
