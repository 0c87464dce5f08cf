"""A real teacher on real data: LiT teachers T0 and T1, students A and B, each beside its twin without a teacher.

Every arm is kept under ``CLIPETTE_CACHE`` (default ``~/.cache/clipette``) and resumed where it was cut off, so that the
whole may run in pieces: ``make bench-flickr8k SEEDS=0``, then ``SEEDS=1``. Arms are trained by the verbs of the command
line on flickr8k-train, watched on dev, and measured once on test; nothing is chosen on test.

The twin of a student has the same initial weights, data, views' law, batch and steps; its loss is InfoNCE on the
captions. A's twin keeps T1's text tower, as A does; B's twin learns its text tower, as B does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from clipette import verbs
from clipette.data.sources import load_data
from clipette.errors import DataError
from clipette.evaluate.cost import measure_costs
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.zero_shot import zero_shot
from clipette.io import digest, digest_json, write_json
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from common import arguments, bench_cache, finish, machine, say, shared_folder

RECIPES = Path(__file__).parent / "recipes"
ARMS = ("T0", "T1", "A", "B", "A_no_teacher", "B_no_teacher")
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
ZERO_SHOT = {
    "caltech101": "caltech101.tar?split=test",
    "cifar100": "cifar100.tar.gz?split=test",
    "eurosat": "eurosat.tar.gz?split=test",
    **{f"pacs_{domain}": f"pacs.tar?split=test&domain={domain}" for domain in DOMAINS},
}
HITS = ("hit@1", "hit@5", "hit@10")


@dataclass(frozen=True)
class Bench:
    """Where data and kept arms are; ``epochs``: another length for all students, in smoke tests."""

    shared: Path
    cache: Path
    epochs: float | None = None
    limit: int | None = None

    def data(self, name: str) -> str:
        joint = "&" if "?" in name else "?"
        few = "" if self.limit is None else f"{joint}limit={self.limit}"
        return f"wds:{self.shared / 'data' / name}{few}"

    @property
    def overrides(self) -> list[str]:
        weights = self.shared / "weights" / "mobilenetv2_100_same.safetensors"
        changed = [f"student.image.weights={weights}"]
        return changed if self.epochs is None else [*changed, f"train.epochs={self.epochs}"]


def arm_folder(bench: Bench, arm: str, seed: int) -> Path:
    """A folder for each (arm, seed, recipe): a changed recipe is another arm."""
    recipe = (RECIPES / f"flickr8k-{arm.split('_')[0].lower()}.yaml").read_bytes()
    mark = digest_json([digest(recipe), bench.epochs, bench.limit])[:8]
    return bench.cache / f"{arm}-{seed}-{mark}"


def train(bench: Bench, arm: str, seed: int) -> Path:
    """Train one arm, or find it finished."""
    folder = arm_folder(bench, arm, seed)
    if (folder / "summary.json").is_file():
        return folder
    say(f"{arm}, seed {seed}: training in {folder}")
    recipe = RECIPES / f"flickr8k-{arm.split('_')[0].lower()}.yaml"
    common: dict[str, Any] = {
        "data": bench.data("flickr8k-train-{000..005}.tar"),
        "dev": bench.data("flickr8k-dev-000.tar"),
        "out": folder,
    }
    overrides = [*bench.overrides, f"seed={seed}"]
    if arm == "T0":
        return verbs.pretrain(recipe, overrides=overrides, **common)
    if arm == "T1":
        before = train(bench, "T0", 0)
        return verbs.distill(recipe, teacher=str(before), overrides=[*overrides, f"init={before}"], **common)
    if arm.endswith("no_teacher"):
        overrides += ["loss={clip: 1}", "views.count=1"]
    teacher = train(bench, "T1", 0)
    shared_store = None if arm.endswith("no_teacher") and arm[0] == "B" else pour(bench, teacher)
    return verbs.distill(recipe, teacher=str(teacher), store=shared_store, overrides=overrides, **common)


def changed(bench: Bench, student: str, changes: Sequence[str], cache: Path, name: str) -> Path:
    """T1's student A or B by a changed recipe, trained or found finished: ``cache/name-…``, marked by all it is of."""
    recipe = RECIPES / f"flickr8k-{student.lower()}.yaml"
    teacher = train(bench, "T1", 0)
    mark = digest_json([recipe.read_text(), list(changes), bench.limit, teacher.name])[:8]
    out = cache / f"{name}-{mark}"
    if (out / "summary.json").is_file():
        return out
    say(f"training in {out}")
    return verbs.distill(
        recipe,
        teacher=str(teacher),
        store=pour(bench, teacher),
        data=bench.data("flickr8k-train-{000..005}.tar"),
        dev=bench.data("flickr8k-dev-000.tar"),
        overrides=changes,
        out=out,
    )


def pour(bench: Bench, teacher: Path) -> Path:
    """T1's outputs, poured once for all students and seeds."""
    return verbs.pour(
        str(teacher),
        [bench.data("flickr8k-train-{000..005}.tar")],
        bench.cache / f"store-{teacher.name}",
        classes=False,
        views=4,
        view_policy={"scale": [0.5, 1.0]},
    )


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Test figures of one arm, kept beside it."""
    kept = folder / "test.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    encoder = resolve(str(folder))
    say(f"{folder.name}: measuring on test")
    found = retrieval(encoder, load_data(bench.data("flickr8k-test-000.tar")))
    result: dict[str, Any] = {
        "i2t": {name: found.i2t[name].value for name in HITS},
        "t2i": {name: found.t2i[name].value for name in HITS},
        "mean_recall": found.mean_recall.value,
        "zero_shot": {},
    }
    for name, reference in ZERO_SHOT.items():
        try:
            scored = zero_shot(encoder, load_data(bench.data(reference)), "single")
        except DataError as error:
            say(f"{name} left out: {error}")
            continue
        result["zero_shot"][name] = scored.top1.value
    assert isinstance(encoder, TorchEncoder)
    cost = measure_costs([encoder], timing=None)[0]
    assert cost is not None
    result["gmacs_image"] = cost.image.gmacs if cost.image else None
    result["gmacs_text"] = cost.text.gmacs if cost.text else None
    summary = json.loads((folder / "summary.json").read_text())
    result["seconds"] = summary["seconds"]
    write_json(kept, result)
    return result


def combine(results: Sequence[dict[str, Any]], how: Callable[[list[float]], float]) -> dict[str, Any]:
    """The same figures, combined over seeds."""
    out: dict[str, Any] = {}
    for name, value in results[0].items():
        if isinstance(value, dict):
            out[name] = combine([each[name] for each in results], how)
        else:
            out[name] = None if value is None else how([each[name] for each in results])
    return out


def main() -> None:
    parser = arguments(__doc__, "bench-flickr8k")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the students, comma-separated")
    parser.add_argument("--arms", default=",".join(ARMS), help="which arms, comma-separated")
    options: argparse.Namespace = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    bench = Bench(shared, bench_cache("flickr8k"), *((0.2, 300) if options.smoke else (None, None)))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    summary: dict[str, Any] = {"machine": machine(), "seeds": seeds}
    for arm in (name for name in ARMS if name in options.arms.split(",")):
        # Teachers have one seed: every student must have the same teacher.
        results = [measure(bench, train(bench, arm, seed)) for seed in (seeds if arm[0] in "AB" else [0])]
        summary[arm] = combine(results, mean)
        if len(results) > 1:
            summary[arm]["sd"] = combine(results, stdev)["mean_recall"]
        say(f"{arm}: mean recall {summary[arm]['mean_recall']:.4f} over {len(results)} seed(s)")
    for student in ("A", "B"):
        if student in summary and "T1" in summary:
            kept = summary[student]["mean_recall"] / summary["T1"]["mean_recall"]
            say(f"{student} keeps {kept:.1%} of T1's mean recall")
            summary[student]["retention"] = kept
    finish(summary, options.out)


if __name__ == "__main__":
    main()
