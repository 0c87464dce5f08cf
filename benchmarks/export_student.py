"""The Flickr8k student as bundles: parity, size, speed, memory and recall beside its teacher in PyTorch.

Student A of seed 0 and its teacher T1 come from the cache of ``flickr8k.py`` (trained there if need be). The student is
exported, quantized behind the gate (measured on dev, calibrated on training images), and everything is timed on this
machine, each model in a process of its own, on one thread and on all. Recall is measured on test, once.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clipette.benching import bench_models
from clipette.data.loading import iter_images
from clipette.data.sources import load_data
from clipette.errors import GateError
from clipette.evaluate.retrieval import retrieval
from clipette.export.bundle import export_bundle
from clipette.export.gate import Budget
from clipette.export.parity import TEXTS, measure_parity
from clipette.export.quantize import median_cosine
from clipette.export.smaller import quantize
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.runtime import load_bundle
from clipette.types import Encoder
from common import arguments, bench_cache, finish, machine, say, shared_folder
from flickr8k import Bench, train

PARITY_IMAGES, PARITY_TEXTS = 100, 200
FUZZED = 10_000


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Strings of words, entities, emoji and code points from everywhere that Unicode 12 had assigned."""
    drawn = random.Random(seed)
    letters = "abcXYZ 019 .,!?'\"-_()<>&;/\\\t\n"
    pieces = [*letters, "dog ", "it's", "&amp;", "<end_of_text>", "é", "ﬁ", "ſ", "🐕‍🦺", "½", "\u200b"]
    planes = ((0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x3040, 0x30FF), (0x4E00, 0x9FA5))

    def piece() -> str:
        return drawn.choice(pieces) if drawn.random() < 0.7 else chr(drawn.randint(*drawn.choice(planes)))

    return ["".join(piece() for _ in range(drawn.randint(0, 40))) for _ in range(count)]


def tokens_differ(model: TorchEncoder, bundle: Any, texts: list[str]) -> int:
    """How many of ``texts`` get other tokens in the bundle."""
    different = 0
    for start in range(0, len(texts), 200):
        batch = texts[start : start + 200]
        ours, theirs = bundle.tokenizer(batch), model.model.text_tower().tokenizer(batch)
        rows = np.zeros(len(batch), dtype=bool)
        for name in theirs:
            same = ours[name].shape == theirs[name].shape
            rows |= (ours[name] != theirs[name]).any(axis=1) if same else True
        different += int(rows.sum())
    return different


def recall(encoder: Encoder, data: str) -> dict[str, float]:
    """hit@1 image to text, and mean recall."""
    found = retrieval(encoder, load_data(data))
    return {"hit@1": found.i2t["hit@1"].value, "mean_recall": found.mean_recall.value}


def main() -> None:
    parser = arguments(__doc__, "bench-export")
    options: argparse.Namespace = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("real data absent: set CLIPETTE_SHARED to the folder that holds data/ and weights/")
    bench = Bench(shared, bench_cache("flickr8k"), *((0.2, 200) if options.smoke else (None, None)))
    student_run, teacher_run = train(bench, "A", 0), train(bench, "T1", 0)
    student, teacher = (resolve(str(run), device="cpu") for run in (student_run, teacher_run))
    assert isinstance(student, TorchEncoder)
    test, dev = bench.data("flickr8k-test-000.tar"), load_data(bench.data("flickr8k-dev-000.tar"))
    with tempfile.TemporaryDirectory(prefix="clipette-bench-export-") as name:
        folder = Path(name)
        say("exporting")
        fp32 = export_bundle(student, folder / "fp32.bundle").path
        opened = load_bundle(fp32)
        images = [each for _, each in iter_images(dev.limit(PARITY_IMAGES).samples)]
        texts = [*TEXTS, *(caption for sample in dev.samples[:40] for caption in sample.captions)][:PARITY_TEXTS]
        parity = measure_parity(student, opened, images, texts)  # type: ignore[arg-type]  # dev has no broken image
        strings = fuzzed(200 if options.smoke else FUZZED)
        summary: dict[str, Any] = {
            "machine": machine(),
            "parity": {"images": parity.images, "texts": parity.texts},
            "tokens": {"strings": len(strings), "different": tokens_differ(student, opened, strings)},
        }
        artefacts = {"teacher": str(teacher_run), "student": str(student_run), "fp32": str(fp32)}
        calibration = load_data(bench.data("flickr8k-train-000.tar"))
        for precision in ("int8", "fp16"):
            say(f"quantizing: {precision}")
            try:
                found = quantize(
                    fp32,
                    dev,
                    folder / f"{precision}.bundle",
                    calibration=calibration,
                    precision=precision,  # type: ignore[arg-type]  # both are
                    kept=0 if precision == "int8" else 1,
                    milder=True,
                    budget=Budget(),
                )
            except GateError as error:
                summary[precision] = {"refused": str(error)}
                continue
            summary[precision] = {"setting": found.setting, "gate": found.quality.to_dict()}
            artefacts[precision] = str(found.path)
        expected = student.encode_samples(dev.samples).vectors
        speeds = {threads: bench_models(list(artefacts.values()), threads=threads) for threads in (1, None)}
        for row, (artefact, reference) in enumerate(artefacts.items()):
            encoder = teacher if artefact == "teacher" else resolve(reference, device="cpu")
            say(f"{artefact}: recall on test")
            figures: dict[str, Any] = {**summary.get(artefact, {}), **speeds[None][row].flat(), **recall(encoder, test)}
            figures["one_thread"] = speeds[1][row].flat()
            figures["cosine"] = median_cosine(expected, encoder.encode_samples(dev.samples).vectors)
            summary[artefact] = figures
        best = summary.get("int8", {}).get("one_thread") or summary["fp32"]["one_thread"]
        summary["core_speedup"] = best["images_core_s"] / summary["teacher"]["one_thread"]["images_core_s"]
    finish(json.loads(json.dumps(summary)), options.out)


if __name__ == "__main__":
    main()
