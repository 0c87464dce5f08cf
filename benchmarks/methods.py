"""Every distillation method on the same students, teacher, data and steps: one table, and what it does not tell.

**Tier 1** (all methods, five seeds). Frozen-trunk students: MobileNetV2 at 128 px with ImageNet's weights, whose word
on all stored views is computed once; a residual head into the space of T1 of ``flickr8k.py``, whose texts it shares. A
method is the ``loss`` of its shipped recipe; student, schedule and batch are common, so that only the loss differs:

- ``flickr8k``: captions; mean recall. Class-text methods get LVIS's 1,203 names for classes;
- ``caltech101``: base-to-novel; trained on base classes only (inductive); harmonic mean of base and novel top-1;
- ``pacs``: leave one domain out; top-1 on the left-out domain;
- ``caltech101-transductive``: unlabelled images of all classes, the novel ones too (PromptKD's protocol): a table of
  its own, of the methods that read neither labels nor captions;
- ``world``: the rendered sample world, for what needs a ViT (``method_world.py``): a table of its own;
- ``text``: two layers of the teacher's text tower (``method_text.py``): a table of its own.

Captions of labelled sets are made of class names; all images of one class are then partners in InfoNCE (UniCL), except
where a loss contrasts images with the teacher's (``image_to_teacher``). Peers' own losses stand beside ours
(``peers.py``).

**Tier 2** (``--tier 2``: the best four published methods by tier 1's dev figures, and our default; three seeds):
fine-tuned students (``method_tuned.py``).

Nothing is chosen on test. A part on which the teacher is under three times chance is reported and not ranked. Claims
are by paired bootstrap over seeds and items (``method_claims.py``). Finished arms are kept under ``CLIPETTE_CACHE``:
``make bench-methods SEEDS=0 METHODS=ood,dkd``. Once a first arm of each set is there (it pours, encodes and renders for
all), two processes with other seeds may run side by side. ``--estimate`` says how long what is missing would take.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipette.models.core import weights_digest
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from common import PROJECT, arguments, bench_cache, finish, machine, say, shared_folder
from flickr8k import Bench as FlickrBench
from flickr8k import arm_folder
from method_arms import Arms, Bench, Found, Scores, head_arm, once, stacked
from method_claims import Values, claims, everything, means, tabulate, teacher_report
from method_heads import Sizes, Teacher, method_needs, prepare, scored_images, teacher_vectors
from method_list import (
    BASELINES,
    BOTH,
    KNOWN,
    LABELLED_SET,
    PUBLISHED,
    TRIED,
    UNLABELLED,
    WORLD,
    find_method,
    group_of,
    kept_by,
)
from method_page import write_page
from method_sets import TRANSDUCTIVE, Benchmark, benchmark
from method_text import ARMS as TEXT_ARMS
from method_text import prepare_texts, train_text
from method_tuned import EPOCHS, Tuned, rounds_of, train_tuned, tuned_mark, tuned_method, tuned_sets, tuned_store
from method_world import SIZES, WORLD_FACTS, open_world, train_world, world_mark
from peers import PEERS, add_path, missing

REAL = ("flickr8k", "caltech101", "pacs")
STEPS = {"flickr8k": 400, "caltech101": 200, TRANSDUCTIVE: 200, "pacs": 200, "world": 300, "text": 400}
CHOSEN = 4
SMOKE = 64


# ---------------------------------------------------------------- tier 1


def real_tier(bench: Bench, arms: Arms, sets: Iterable[str], methods: Sequence[str]) -> tuple[list[Benchmark], Found]:
    """Every method on the real sets."""
    found = [benchmark(bench.shared, name, bench.limit) for name in sets]
    scores: dict[str, dict[str, list[Scores]]] = {name: {} for name in methods}
    second = bench.second if "mobileclip" in methods else None
    for each in found:
        make = once(partial(prepare, each, bench.shared, bench.teacher, second, bench.cache))
        for part in each.rounds:
            for name in methods:
                made = [head_arm(bench, arms, each, part, make, name, seed) for seed in bench.seeds]
                scores[name][part.name] = [one for one in made if one is not None]
    return found, ({} if arms.waiting else stacked(scores))


def unlabelled(name: str) -> bool:
    """Whether a method reads neither labels nor captions: on classes whose images are unlabelled nothing else runs."""
    # A recipe is asked as it is published; our default goes by what is known.
    known = UNLABELLED if name == "default" else LABELLED_SET
    needs = PEERS[name].needs if name in PEERS else method_needs(find_method(name, known))
    return not needs & {"labels", "student_text", "teacher_text"}


def transductive_tier(bench: Bench, arms: Arms, methods: Sequence[str]) -> dict[str, Any]:
    """The transductive protocol's own table."""
    found, values = real_tier(bench, arms, [TRANSDUCTIVE], methods)
    return summarised(found, values, teacher_said(bench, found)) if values else {}


def world_tier(bench: Bench, arms: Arms, methods: Sequence[str]) -> dict[str, Any]:
    """The sample world's own table."""
    steps = bench.steps["world"]
    make = once(partial(open_world, bench.cache, steps, smoke=bench.limit is not None))

    def train(name: str, seed: int) -> Scores:
        return train_world(make(), name, seed, bench.cache / "runs")

    scores: dict[str, dict[str, list[Scores]]] = {}
    for name in methods:
        what = [kept_by(name, WORLD_FACTS), steps, SIZES, world_mark()]
        made = [
            arms.get("world", f"world-{name}-{seed}", [*what, seed], partial(train, name, seed)) for seed in bench.seeds
        ]
        scores[name] = {"world": [one for one in made if one is not None]}
    if arms.waiting.get("world"):
        return {}
    world = make()
    return summarised([world.bench], stacked(scores), teacher_report([world.bench], world.said(bench.cache)))


def text_tier(bench: Bench, arms: Arms, methods: Sequence[str]) -> dict[str, Any]:
    """The text tower's own table: on Flickr8k, which has captions."""
    found = benchmark(bench.shared, "flickr8k", bench.limit)
    part, sizes = found.rounds[0], Sizes(bench.steps["text"])
    make = once(partial(prepare, found, bench.shared, bench.teacher, None, bench.cache))
    texts = once(partial(prepare_texts, part, bench.teacher, bench.cache))

    def train(name: str, seed: int) -> Scores:
        return train_text(part, make(), texts(), bench.teacher, sizes, name, seed)

    scores: dict[str, dict[str, list[Scores]]] = {}
    for name in methods:
        what = [name, vars(sizes), part.train.fingerprint(), bench.teacher.mark]
        made = [
            arms.get("text", f"text-{name}-{seed}", [*what, seed], partial(train, name, seed)) for seed in bench.seeds
        ]
        scores[name] = {part.name: [one for one in made if one is not None]}
    if arms.waiting.get("text"):
        return {}
    return summarised([found], stacked(scores), teacher_said(bench, [found]), of="text-cosine")


def teacher_said(bench: Bench, found: Sequence[Benchmark]) -> dict[str, Any]:
    """The teacher's own scores, chance, and which parts are ranked."""
    out: dict[str, Any] = {}
    for each in found:
        scored = scored_images([each], bench.teacher, bench.cache)
        vectors = teacher_vectors(bench.teacher, scored, bench.cache)
        out |= teacher_report([each], {part.name: scored.values(vectors, part) for part in each.rounds})
    return out


def summarised(
    found: Sequence[Benchmark], values: Values, report: Mapping[str, Any], *, of: str = "default", dev: bool = True
) -> dict[str, Any]:
    """Means, dev means, claims and every figure of one table."""
    counted = {name: bool(facts["ranked"]) for name, facts in report.items()}
    for side in ("test", "dev"):
        mine = [name for name in counted if name.split("/")[1] == side]
        if mine and not any(counted[name] for name in mine):
            say(f"the teacher is under three times chance on every {side} part: shown all the same, and worth nothing")
            counted |= dict.fromkeys(mine, True)
    table = tabulate(found, values, counted)
    rows = means(table)
    if dev:
        chosen = means(tabulate(found, values, counted, side="dev"))
        for name, row in rows.items():
            row["dev"] = chosen[name]["mean"]
    return {
        "methods": rows,
        "claims": {"of": of, **claims(table, of)} if of in values else {},
        "parts": everything(found, values),
        "teacher": dict(report),
    }


# ---------------------------------------------------------------- tier 2


def choose(dev: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The best published methods by tier 1's dev figures."""
    names = [name for name in dev if name in PUBLISHED and name not in BASELINES]
    return sorted(names, key=lambda name: (-float(dev[name]["dev"]), name))[:CHOSEN]


def tuned_tier(bench: Bench, arms: Arms, methods: Sequence[str], epochs: float) -> dict[str, Any]:
    """Fine-tuned students of the chosen methods and our default."""
    train, found = tuned_sets(bench.shared, bench.limit)
    rounds = rounds_of(found)
    second = bench.second if "mobileclip" in methods else None

    def prepared() -> Tuned:
        store = tuned_store(bench.teacher, train, bench.cache)
        also = None if second is None else (second, tuned_store(second, train, bench.cache))
        scored = scored_images(found, bench.teacher, bench.cache)
        names = tuple(dict.fromkeys((*bench.names, *train.class_names)))
        return Tuned(bench.shared, train, found, bench.teacher, store, also, scored, names, epochs)

    make = once(prepared)

    def flat(name: str, seed: int) -> Scores:
        whole = train_tuned(make(), name, seed, bench.cache / "runs")
        return {f"{part}|{each}": values for part, parts in whole.items() for each, values in parts.items()}

    scores: dict[str, dict[str, list[Scores]]] = {name: {part.name: [] for part in rounds} for name in methods}
    for name in methods:
        for seed in bench.seeds:
            what = [tuned_method(name).to_dict(), epochs, train.fingerprint(), bench.teacher.mark, tuned_mark(), seed]
            one = arms.get("tuned", f"tuned-{name}-{seed}", what, partial(flat, name, seed))
            for part in rounds if one is not None else []:
                cut = {key.partition("|")[2]: v for key, v in one.items() if key.partition("|")[0] == part.name}
                scores[name][part.name].append(cut)
    if arms.waiting:
        return {}
    scored = scored_images(found, bench.teacher, bench.cache)
    vectors = teacher_vectors(bench.teacher, scored, bench.cache)
    report = teacher_report(found, {part.name: scored.values(vectors, part) for part in rounds})
    return summarised(found, stacked(scores), report, dev=False)


# ---------------------------------------------------------------- the whole


def options() -> argparse.Namespace:
    parser = arguments(__doc__, "bench-methods")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seeds", help="comma-separated; 0,1,2,3,4 in tier 1 and 0,1,2 in tier 2 if not given")
    parser.add_argument(
        "--methods", help="comma-separated: methods, candidates of our default, peers; all if not given"
    )
    parser.add_argument(
        "--sets", default=",".join((*REAL, TRANSDUCTIVE, "world", "text")), help="tier 1, comma-separated"
    )
    parser.add_argument("--steps", type=int, help="steps of every tier-1 arm, in place of each set's own")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of a tier-2 arm")
    parser.add_argument("--teacher", type=Path, help="run directory; T1 of bench-flickr8k by default")
    parser.add_argument("--second", type=Path, help="MobileCLIP's second teacher; T0 of bench-flickr8k by default")
    parser.add_argument("--peers", type=Path, help="a folder with further packages: peers that are not installed here")
    parser.add_argument(
        "--estimate", action="store_true", help="say what is missing and how long it takes; run nothing"
    )
    return parser.parse_args()


def main() -> None:
    given = options()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    if given.out == PROJECT / "runs" / "bench-methods" and given.tier == 2:
        given.out = PROJECT / "runs" / "bench-methods-tuned"
    add_path(given.peers)
    # Heads are too small for two threads; whole students are not.
    torch.set_num_threads(1 if given.tier == 1 else torch.get_num_threads())
    bench = open_bench(given, shared)
    arms = Arms(bench.cache / "arms", estimating=given.estimate)
    absent = missing()
    summary = tier_one(bench, arms, given, absent) if given.tier == 1 else tier_two(bench, arms, given)
    if given.estimate:
        estimate(arms)
        return
    summary |= {"tier": given.tier, "seeds": list(bench.seeds), "steps": dict(bench.steps), "machine": machine()}
    write_page(summary, given.out)
    finish(summary, given.out)


def open_bench(given: argparse.Namespace, shared: Path) -> Bench:
    """Teachers, cache and sizes."""
    first = given.teacher or made(shared, "T1")
    assert first is not None
    teacher, folder = named_teacher(first), given.second or made(shared, "T0", needed=False)
    # T1 learned from T0's word on the same views: that store serves again.
    second = None if folder is None else named_teacher(folder, {"flickr8k": first / "store"})
    with np.load(shared / "data" / "clip_vitb32_teacher_features.npz") as file:
        names = tuple(str(name) for name in file["lvis_classes"])
    usual = "0,1,2,3,4" if given.tier == 1 else "0,1,2"
    seeds = tuple(int(seed) for seed in (given.seeds or usual).split(","))
    steps = {name: given.steps or count for name, count in STEPS.items()}
    if given.smoke:
        steps, seeds = dict.fromkeys(STEPS, 4), seeds[:2]
    cache = bench_cache("methods-smoke" if given.smoke else "methods")
    return Bench(shared, cache, teacher, second, names, seeds, steps, SMOKE if given.smoke else None)


def named_teacher(folder: Path, stores: Mapping[str, Path] | None = None) -> Teacher:
    """A run as a teacher, with the stores that bench-flickr8k poured by it."""
    encoder = resolve(str(folder))
    if not isinstance(encoder, TorchEncoder):
        raise SystemExit(f"{folder} is no run directory")
    # Not its space: a student has its teacher's.
    mark = f"{folder.name}-{weights_digest(encoder.model)[:8]}"
    return Teacher(encoder, mark, stores or {"flickr8k": folder.parent / f"store-{folder.name}"})


def made(shared: Path, arm: str, *, needed: bool = True) -> Path | None:
    """A teacher of bench-flickr8k, by its present recipe: a smoke test's is another."""
    folder = arm_folder(FlickrBench(shared, bench_cache("flickr8k")), arm, 0)
    if (folder / "summary.json").is_file():
        return folder
    if needed:
        raise SystemExit(f"the teacher {arm} is missing: run `make bench-flickr8k` first, or name another (--teacher)")
    return None


def tier_one(bench: Bench, arms: Arms, given: argparse.Namespace, absent: Mapping[str, str]) -> dict[str, Any]:
    """All methods on the real sets, the world's and the text tower's tables."""
    peers = [name for name, peer in PEERS.items() if peer.package not in absent]
    for package, how in absent.items():
        say(f"peer {package} is missing: {how}")
    wanted = given.methods.split(",") if given.methods else None
    wanted = [name for each in wanted for name in (TRIED if each == "candidates" else [each])] if wanted else None
    everyone = (*KNOWN, *TRIED, *WORLD, *TEXT_ARMS, *PEERS)
    unknown = set(wanted or ()) - {*everyone}
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; known: {', '.join(everyone)}")

    def asked(names: Sequence[str]) -> list[str]:
        return [name for name in names if wanted is None or name in wanted]

    sets = given.sets.split(",")
    real = [name for name in sets if name in REAL]
    known = [name for name in KNOWN if name != "mobileclip" or bench.second is not None]
    known += TRIED if wanted else ()
    found, values = real_tier(bench, arms, real, asked([*known, *peers])) if real else ([], {})
    blind = asked([name for name in (*known, *peers) if unlabelled(name)])
    open_set = transductive_tier(bench, arms, blind) if TRANSDUCTIVE in sets and blind else {}
    drawn = asked([*WORLD, *(BOTH if wanted else ())]) if "world" in sets else []
    world = world_tier(bench, arms, drawn) if drawn else {}
    texts = [name for name in TEXT_ARMS if not name.startswith("sentence") or "sentence_transformers" not in absent]
    text = text_tier(bench, arms, asked(texts)) if "text" in sets and asked(texts) else {}
    if arms.estimating:
        return {}
    whole = summarised(found, values, teacher_said(bench, found)) if values else {"methods": {}, "claims": {}}
    apart = {"transductive": open_set, "world": world, "text": text}
    return {**sorted_rows(whole), **apart, "missing_peers": dict(absent)}


def sorted_rows(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The summary's shape: our default, published methods, baselines, candidates and peers apart."""
    rows = whole["methods"]
    groups: dict[str, dict[str, Any]] = {"methods": {}, "baselines": {}, "candidates": {}, "peers": {}}
    for name, row in rows.items():
        if name != "default":
            groups["peers" if name in PEERS else group_of(name)][name] = row
    return {**whole, "default": rows.get("default"), **groups}


def tier_two(bench: Bench, arms: Arms, given: argparse.Namespace) -> dict[str, Any]:
    """The chosen methods, fine-tuned."""
    if given.methods:
        methods = given.methods.split(",")
        unknown = set(methods) - {*KNOWN, *TRIED}
        if unknown:
            raise SystemExit(f"unknown methods {sorted(unknown)}; known: {', '.join((*KNOWN, *TRIED))}")
    else:
        dev = tier_one_dev(bench)
        methods = ["default", *choose(dev)]
        say(f"chosen by tier 1's dev figures: {', '.join(methods[1:])}")
    whole = tuned_tier(bench, arms, methods, 0.5 if given.smoke else given.epochs)
    return {} if arms.estimating else {**sorted_rows(whole), "chosen_by": "tier 1 dev" if not given.methods else "hand"}


def tier_one_dev(bench: Bench) -> Mapping[str, Mapping[str, Any]]:
    """Tier 1's dev means of the published methods, from its kept arms; every one of five seeds must be there."""
    arms = Arms(bench.cache / "arms", estimating=True)
    methods = [name for name in PUBLISHED if name not in BASELINES and (name != "mobileclip" or bench.second)]
    first = replace(bench, seeds=bench.seeds if bench.limit else (0, 1, 2, 3, 4))
    found, values = real_tier(first, arms, REAL, ["default", *methods])
    if arms.waiting:
        absent = ", ".join(f"{count} of {kind}" for kind, count in arms.waiting.items())
        raise SystemExit(f"tier 1 is not finished ({absent} are missing): run it first, or name --methods")
    report = teacher_said(bench, found)
    return summarised(found, values, report)["methods"]


def estimate(arms: Arms) -> None:
    """What is missing, and how long it takes on one core."""
    total = 0.0
    for kind, count in arms.waiting.items():
        each = arms.seconds(kind)
        total += count * each
        print(f"{kind}: {count} arms × {each:.0f} s")
    print(f"together {total / 60:.0f} min, beside what is poured and encoded once; two processes by seeds take half")


if __name__ == "__main__":
    main()
