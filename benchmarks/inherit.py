"""Half of the width: weights taken from the teacher, against a random start, distilled alike on Flickr8k.

MobileNetV2 at half of the channels (128 px), in the space of T1 of ``flickr8k.py``, which is MobileNetV2 at all of
them. ``inherited`` begins with T1's leading channels (TinyCLIP's manual inheritance), ``scratch`` at random; recipe,
store, order of the images and steps are the same. Each start has the better of two rates, chosen on dev by the first
seed. Figures on dev, at each epoch; arms are kept and resumed.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from clipette.train.log import read_metrics
from common import arguments, bench_cache, finish, machine, say, shared_folder
from flickr8k import Bench, changed

STARTS = {"inherited": "inherit={by: leading, towers: [image]}", "scratch": "inherit=null"}
RATES = (3e-4, 1e-3)


def trained(bench: Bench, cache: Path, start: str, rate: float, seed: int, epochs: float) -> Path:
    """The run of one start, rate and seed, finished."""
    changes = [
        "student.image.name=mobilenetv2_050",
        STARTS[start],
        f"train.epochs={epochs}",
        "train.evaluate_every=0",
        f"train.optimizer.lr={rate}",
        f"train.optimizer.head_lr={rate}",
        f"seed={seed}",
    ]
    return changed(bench, "A", changes, cache, f"{start}-{rate:g}-{seed}")


def main() -> None:
    parser = arguments(__doc__, "bench-inherit")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--epochs", type=float, default=3.0)
    given = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    bench = Bench(shared, bench_cache("flickr8k"), *((0.2, 300) if given.smoke else (None, None)))
    seeds = [int(seed) for seed in given.seeds.split(",")]
    epochs = 0.5 if given.smoke else given.epochs
    arms: dict[str, dict[str, Any]] = {}
    for start in STARTS:

        def curve(rate: float, seed: int, start: str = start) -> list[float]:
            rows = read_metrics(
                trained(bench, bench_cache("inherit"), start, rate, seed, epochs) / "metrics.jsonl", "dev"
            )
            return [float(row["mean_recall"]) for row in rows]

        tried = {rate: curve(rate, seeds[0]) for rate in RATES}
        rate = max(tried, key=lambda each: tried[each][-1])
        curves = [curve(rate, seed) for seed in seeds]
        last = [each[-1] for each in curves]
        sd = stdev(last) if len(last) > 1 else 0.0
        arms[start] = {"rate": rate, "mean": mean(last), "sd": sd, "curves": curves, "first_seed_by_rate": tried}
        say(f"{start}, rate {rate:g}: dev mean recall {mean(last):.4f} ± {sd:.4f}")
    finish({"arms": arms, "seeds": seeds, "machine": machine()}, given.out)


if __name__ == "__main__":
    main()
