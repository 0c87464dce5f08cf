"""What all parts of bench-adapt share: its methods, what each is given there, and one protocol's table."""

from __future__ import annotations

import time
from typing import Any

from clipette.adapting import adapt_study
from clipette.io import digest_json
from common import bench_cache, say

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
LOOP = ("coop", "kgcoop", "cocoop", "vpt", "maple", "promptsrc", "upl", "wise-ft")


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
        own = [*first, *smaller(recipe, options.smoke), *overrides]
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
