"""The Flickr8k student as bundles: parity, size, speed, memory and recall beside its teacher in PyTorch.

Student A of seed 0 and its teacher T1 come from the cache of ``flickr8k.py`` (trained there if need be). The student is
exported, quantized behind the gate (measured on dev, calibrated on training images), and everything is timed on this
machine, each model in a process of its own, on one thread and on all. Recall is measured on test, once.

A small model of every kind that is loaded goes the same way, on real pictures and texts; and one tokenizer of each kind
reads ten thousand strings that nobody would choose.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipette.benching import bench_models
from clipette.data.loading import iter_images
from clipette.data.sources import load_data
from clipette.errors import GateError
from clipette.evaluate.retrieval import retrieval
from clipette.export.bundle import export_bundle
from clipette.export.fuzz import differing, fuzzed
from clipette.export.gate import Budget
from clipette.export.parity import TEXTS, measure_parity
from clipette.export.quantize import median_cosine
from clipette.export.smaller import PRECISIONS, quantize
from clipette.export.tokens import bundled_tokenizer
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.runtime import load_bundle
from clipette.runtime.tokens import build_tokenizer
from clipette.types import Encoder, ImageInput
from common import PROJECT, arguments, bench_cache, finish, machine, say, shared_folder
from flickr8k import Bench, train

# The kinds of models and tokenizers are those that the tests try.
sys.path.insert(0, str(PROJECT))

PARITY_IMAGES, PARITY_TEXTS = 100, 200
FUZZED = 10_000
# The figures of an artefact that are its summary; all others are behind them.
FIGURES = ("images_s", "texts_s", "ms_1", "mb", "peak_mb", "cosine", "hit@1")


def parity_of_kinds(images: Sequence[ImageInput], texts: Sequence[str], folder: Path, *, few: bool) -> dict[str, Any]:
    """max |ONNX - PyTorch| of a coordinate, for one small model of every kind."""
    from tests.export.kinds import KINDS

    found: dict[str, Any] = {}
    for name, build in list(KINDS.items())[: 2 if few else None]:
        here = folder / name.replace(" ", "-").replace(",", "")
        model = TorchEncoder(build(here), name=name, device="cpu")
        opened = load_bundle(export_bundle(model, here / "bundle").path)
        parity = measure_parity(model, opened, images, texts)  # type: ignore[arg-type]  # any image will do
        found[name] = {"images": parity.images, "texts": parity.texts}
        say(f"{name}: images {parity.images:.1e}, texts {parity.texts:.1e}")
    return found


def tokens_of_kinds(strings: Sequence[str], folder: Path) -> dict[str, int]:
    """How many strings get other tokens without PyTorch, for one tokenizer of each kind."""
    from tests.runtime.trained import families

    return {
        name: len(differing(build_tokenizer(*bundled_tokenizer(tokenizer)), tokenizer, strings))
        for name, tokenizer in families(folder / "tokenizers").items()
    }


def recall(encoder: Encoder, data: str) -> dict[str, float]:
    """hit@1 image to text, and mean recall."""
    found = retrieval(encoder, load_data(data))
    return {"hit@1": found.i2t["hit@1"].value, "mean_recall": found.mean_recall.value}


def smaller(bench: Bench, fp32: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Each precision that this machine can make: where it is and what the gate saw, or why it was refused."""
    dev = load_data(bench.data("flickr8k-dev-000.tar"))
    calibration = load_data(bench.data("flickr8k-train-000.tar"))
    found: dict[str, dict[str, Any]] = {}
    for name, precision in PRECISIONS.items():
        if precision == "nncf" and importlib.util.find_spec("nncf") is None:
            say("nncf left out: it is not installed (pip install 'clipette[openvino]')")
            continue
        say(f"quantizing: {name}")
        try:
            made = quantize(
                fp32,
                dev,
                folder / f"{name}.bundle",
                calibration=calibration,
                precision=precision,
                kept=1 if precision == "fp16" else 0,
                milder=True,
                budget=Budget(),
            )
        except GateError as error:
            found[name] = {"refused": str(error)}
            continue
        found[name] = {"path": str(made.path), "setting": made.setting, "gate": made.quality.to_dict()}
    return found


def measure(bench: Bench, teacher: Path, student: Path, fp32: Path, folder: Path) -> dict[str, Any]:
    """The summary of each artefact, the teacher first."""
    made = smaller(bench, fp32, folder)
    artefacts = {"teacher": str(teacher), "student": str(student), "fp32": str(fp32)}
    artefacts |= {name: each["path"] for name, each in made.items() if "path" in each}
    dev = load_data(bench.data("flickr8k-dev-000.tar"))
    expected = resolve(str(student), device="cpu").encode_samples(dev.samples).vectors
    say("timing, on one thread and on all")
    one, every = (bench_models(list(artefacts.values()), threads=threads) for threads in (1, None))
    summary: dict[str, Any] = {name: each for name, each in made.items() if "refused" in each}
    for row, (name, reference) in enumerate(artefacts.items()):
        say(f"{name}: recall on test")
        encoder = resolve(reference, device="cpu")
        figures = {**every[row].flat(), **recall(encoder, bench.data("flickr8k-test-000.tar"))}
        figures["cosine"] = median_cosine(expected, encoder.encode_samples(dev.samples).vectors)
        first = {figure: figures.pop(figure) for figure in FIGURES}
        how = {key: value for key, value in made.get(name, {}).items() if key != "path"}
        summary[name] = {**first, **figures, **how, "one_thread": one[row].flat(), "engine": every[row].engine}
    smallest = next((name for name in ("nncf", "int8", "fp32") if name in artefacts), "fp32")
    speeds = {name: summary[name]["one_thread"]["images_core_s"] for name in (smallest, "teacher")}
    summary["core_speedup"] = {"artefact": smallest, "times_teacher": speeds[smallest] / speeds["teacher"]}
    return summary


def main() -> None:
    parser = arguments(__doc__, "bench-export")
    options: argparse.Namespace = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    bench = Bench(shared, bench_cache("flickr8k"), *((0.2, 300) if options.smoke else (None, None)))
    student, teacher = train(bench, "A", 0), train(bench, "T1", 0)
    dev = load_data(bench.data("flickr8k-dev-000.tar"))
    images: list[Any] = [each for _, each in iter_images(dev.limit(PARITY_IMAGES).samples)]
    texts = [*TEXTS, *(caption for sample in dev.samples for caption in sample.captions)][:PARITY_TEXTS]
    strings = fuzzed(200 if options.smoke else FUZZED)
    summary: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="clipette-bench-export-") as name:
        folder = Path(name)
        model = resolve(str(student), device="cpu")
        assert isinstance(model, TorchEncoder)
        say("exporting")
        fp32 = export_bundle(model, folder / "fp32.bundle").path
        parity = measure_parity(model, load_bundle(fp32), images, texts)
        summary["parity"] = {
            "images": len(images),
            "texts": len(texts),
            "flickr8k student": {"images": parity.images, "texts": parity.texts},
            **parity_of_kinds(images, texts, folder, few=options.smoke),
        }
        summary["tokens"] = {"strings": len(strings), "different": tokens_of_kinds(strings, folder)}
        summary |= measure(bench, teacher, student, fp32, folder)
    finish(json.loads(json.dumps(summary)), options.out)


if __name__ == "__main__":
    main()
