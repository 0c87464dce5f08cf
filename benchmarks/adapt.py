"""Adaptation: methods on real data and in the rendered sample world, PromptKD's two stages, and what each costs.

Five parts, each kept arm by arm in the cache, so that an interrupted run goes on:

- ``real``: the LiT teacher (T1 of ``flickr8k.py``: a convolutional image tower, so text prompts and what works on
  stored features): caltech101 and cifar100 base-to-novel, pacs leaving one domain out, eurosat few-shot;
- ``world``: a model of two small transformers, pre-trained in the rendered sample world, for methods that put tokens
  into both towers, and for all others: base-to-novel over the world's classes;
- ``shifted``: a model pre-trained on the world's plain pictures alone, adapted to outlines, which it has never seen;
- ``promptkd``: both stages, stage 2 with the zero-shot teacher, and direct prompt learning of the student, in the
  world; transductive and inductive rows apart;
- ``cost``: trained parameters, seconds, peak memory, and class texts computed once against at each step.

``make bench-adapt``; ``--parts``, ``--sets``, ``--methods``, ``--seeds`` and ``--smoke`` make it shorter: pieces that
ran before are read back by the whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt_cost import cost, one
from adapt_table import FEATURES, seeds, study
from adapt_world import promptkd, shifted, world
from clipette.io import write_json
from common import arguments, bench_cache, finish, machine, shared_folder

SETS = ("caltech101", "cifar100", "pacs", "eurosat")
PARTS = ("real", "world", "shifted", "promptkd", "cost")


def newest_teacher() -> Path:
    """T1 of bench-flickr8k, of all its images, wherever it was made last."""
    made = sorted(bench_cache("flickr8k").glob("T1-0-*/summary.json"), key=lambda path: path.stat().st_mtime)
    whole = [path.parent for path in made if "limit=" not in json.loads(path.read_text())["data"]]
    if not whole:
        raise SystemExit("the teacher T1 is missing: run `make bench-flickr8k` first, or name another with --teacher")
    return whole[-1]


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
        raise SystemExit("real data absent: set CLIPETTE_SHARED, or leave it out: --parts world,shifted,promptkd,cost")
    if "real" in parts:
        options.teacher = options.teacher or newest_teacher()
        found["teacher"] = options.teacher.name
    for part in parts:
        found[part] = real(options, shared) if part == "real" and shared else WORK[part](options)
        write_json(options.out / "summary.json", found)
    finish(found, options.out)


WORK = {"world": world, "shifted": shifted, "promptkd": promptkd, "cost": cost}

if __name__ == "__main__":
    main()
