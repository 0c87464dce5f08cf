"""What a size keeps: retention of T1's mean recall on Flickr8k test against total GMACs, down to ten times cheaper.

Students of T1 of ``flickr8k.py``, each smaller than the last: fewer pixels, fewer text layers, at last a small text
transformer of its own. Two of them are that benchmark's students A and B, taken from its cache where they are finished.
Arms are kept and resumed (``CLIPETTE_CACHE``); nothing is chosen on test. Intervals: paired bootstrap over images and,
where there are several, seeds. GMACs: one image and one text of 32 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipette.data.sources import load_data
from clipette.evaluate import plots
from clipette.evaluate.cost import measure_costs
from clipette.evaluate.results import Figure
from clipette.io import write_atomic, write_json
from clipette.resolve import resolve
from clipette.types import Encoder
from common import arguments, bench_cache, finish, machine, say, shared_folder
from flickr8k import Bench, changed, train
from method_claims import weights
from method_page import write_template
from method_sets import Doubles, Part

SMALL_TEXT = (
    "{kind: small, width: 128, layers: 2, heads: 4, tokenizer: words, vocabulary: 4096, context_length: 32, "
    "head: {kind: linear}, train: all}"
)


@dataclass(frozen=True)
class Size:
    """A student: an arm of bench-flickr8k as it is, or a changed recipe of one. ``changes``: ``--set`` lines."""

    recipe: str
    changes: tuple[str, ...] = ()


def _side(pixels: int) -> tuple[str, ...]:
    """Trained at 7/8 of the side, as A is: views show things larger than whole pictures do."""
    return (f"student.image.size={pixels}", f"train.sizes={{0: {max(32, pixels * 7 // 8 // 16 * 16)}}}")


SIZES: Mapping[str, Size] = {
    "160 px, all 6 text layers": Size("A", _side(160)),
    "128 px, all 6 text layers (A)": Size("A"),
    "160 px, 2 text layers": Size("B", _side(160)),
    "128 px, 2 text layers (B)": Size("B"),
    "96 px, 2 text layers": Size("B", _side(96)),
    "96 px, 1 text layer": Size("B", (*_side(96), "student.text.layers=[0]")),
    "96 px, small text": Size("B", (*_side(96), f"student.text={SMALL_TEXT}", "train.optimizer.text_lr=1e-3")),
    "64 px, small text": Size("B", (*_side(64), f"student.text={SMALL_TEXT}", "train.optimizer.text_lr=1e-3")),
}


def trained(bench: Bench, cache: Path, name: str, seed: int, epochs: float | None) -> Path:
    """The run of one size and seed, finished."""
    size = SIZES[name]
    if not size.changes:
        return train(bench, size.recipe, seed)
    changes = [*bench.overrides, *size.changes, f"seed={seed}"]
    if epochs is not None:
        changes.append(f"train.epochs={epochs}")
    return changed(bench, size.recipe, changes, cache, f"{size.recipe}-{seed}")


def values(encoder: Encoder, part: Part) -> Doubles:
    """[N] each test image's share of the mean recall."""
    encoded = encoder.encode_samples(part.data.samples)
    if len(encoded.keys) != len(part.data):
        raise SystemExit(f"{encoded.failures[0].location}: {encoded.failures[0].reason}")
    return part.values(encoded.vectors, encoder.encode_texts(part.texts))


def measured(folder: Path, part: Part) -> dict[str, Any]:
    """Per-image values and GMACs of one run, kept beside it."""
    kept = folder / "pareto.json"
    mark = part.data.fingerprint()
    if kept.is_file():
        known = dict(json.loads(kept.read_text()))
        if known["data"] == mark:
            return known
    encoder = resolve(str(folder))
    say(f"{folder.name}: measuring on test")
    cost = measure_costs([encoder], timing=None)[0]
    assert cost is not None
    result = {"data": mark, "gmacs": cost.flat()["gmacs"], "values": values(encoder, part).tolist()}
    write_json(kept, result)
    return result


def retention(student: Doubles, teacher: Doubles, draws: int = 5000, seed: int = 0) -> Figure:
    """mean(student [S, N]) / mean(teacher [N]) with 95 % over seeds and, independently, images (the same for both)."""
    generator = np.random.default_rng(seed)
    seeds = weights(generator, draws, student.shape[0])
    items = weights(generator, draws, student.shape[1])
    drawn = np.einsum("bs,sn,bn->b", seeds, student, items) / (items @ teacher)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(float(student.mean() / teacher.mean()), float(low), float(high), student.shape[1])


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, value) no other beats: none is as good at less cost, or better at the same."""
    return [
        not any((c < cost and v >= value) or (c <= cost and v > value) for c, v in points) for cost, value in points
    ]


def page(summary: Mapping[str, Any], points: Mapping[str, tuple[float, Figure]], out: Path) -> None:
    """``pareto.png`` and ``report.html``."""
    # A chart has eight colours, for the eight sizes: the teacher is the 1 of its scale.
    chart = plots.pareto(points, x="GMACs of one image and one text (log scale)", y="kept of T1's mean recall")
    write_atomic(out / "pareto.png", chart)
    write_template("pareto.html.j2", {"title": "What a size keeps", "summary": summary, "chart": chart}, out)


def main() -> None:
    parser = arguments(__doc__, "bench-pareto")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--sizes", help=f"semicolon-separated, of: {'; '.join(SIZES)}")
    parser.add_argument("--epochs", type=float, help="in place of the recipes' own (A and B keep theirs)")
    given = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    bench = Bench(shared, bench_cache("flickr8k"), *((0.2, 300) if given.smoke else (None, None)))
    cache = bench_cache("pareto")
    names = [name.strip() for name in given.sizes.split(";")] if given.sizes else list(SIZES)
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise SystemExit(f"unknown size '{unknown[0]}'; known: {'; '.join(SIZES)}")
    part = Part("flickr8k", load_data(bench.data("flickr8k-test-000.tar")), "retrieval")
    teacher = measured(train(bench, "T1", 0), part)
    own = np.array(teacher["values"])
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows: dict[str, Any] = {}
    points: dict[str, tuple[float, Figure]] = {}
    for name in names:
        runs = [measured(trained(bench, cache, name, seed, given.epochs), part) for seed in seeds]
        kept = retention(np.array([run["values"] for run in runs]), own)
        points[name] = (float(runs[0]["gmacs"]), kept)
        rows[name] = {
            "gmacs": round(float(runs[0]["gmacs"]), 5),
            "times_cheaper": round(float(teacher["gmacs"]) / float(runs[0]["gmacs"]), 3),
            "retention": round(kept.value, 5),
            "low": kept.low,
            "high": kept.high,
            "mean_recall": float(np.mean([run["values"] for run in runs])),
        }
        say(f"{name}: {rows[name]['times_cheaper']:.1f} times cheaper, keeps {kept.value:.1%}")
    marked = front([(cost, figure.value) for cost, figure in points.values()])
    for row, best in zip(rows.values(), marked, strict=True):
        row["front"] = best
    summary = {
        "teacher": {"gmacs": teacher["gmacs"], "mean_recall": float(own.mean())},
        "sizes": rows,
        "seeds": seeds,
        "machine": machine(),
    }
    page(summary, points, given.out)
    finish(summary, given.out)


if __name__ == "__main__":
    main()
