"""``clipette quantize``: a bundle made smaller, written only if it passes the gate."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit, iter_images
from clipette.errors import ConfigError
from clipette.evaluate.encoding import CachedEncoder
from clipette.export.bundle import check_target, write_bundle
from clipette.export.gate import Budget, Quality, measure_quality, refuse
from clipette.export.quantize import Batches, Dynamic, Segment, Static, half, segments
from clipette.runtime import BundleEncoder, load_bundle, open_bundle
from clipette.types import Failure

Precision = Literal["int8", "fp16"]
PRECISIONS: dict[str, Precision] = {"int8": "int8", "fp16": "fp16"}
# How many of the ten runs of layers stay in 32 bits, from the boldest setting to the mildest.
KEPT = (0, 1, 2, 4, 6)
CALIBRATION_IMAGES = 128
CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Smaller:
    """What was written: at which setting, with what left of its quality."""

    path: Path
    setting: str
    quality: Quality
    bytes: int
    bytes_before: int


def quantize(
    source: str | Path,
    data: Dataset,
    out: str | Path,
    *,
    calibration: Dataset | None = None,
    precision: Precision = "int8",
    kept: int = 1,
    milder: bool = False,
    budget: Budget = Budget(),
) -> Smaller:
    """Write a smaller copy of the bundle ``source``, if what ``data`` shows of it stays within ``budget``.

    Convolutional image towers get 8-bit weights and activations, with ranges from ``calibration`` (default: a sample
    of ``data``); transformers 8-bit weights and activations scaled as they come. ``kept``: how many of the ten runs of
    layers stay as they are, chosen by trying each alone. ``milder``: go on to milder settings until one passes.

    Raises:
        GateError: no setting that was tried stays within the budget.
        ConfigError: ``out`` holds something else; an unknown setting.
    """
    if kept not in KEPT:
        raise ConfigError(f"kept: {kept} is none of {', '.join(str(count) for count in KEPT)}")
    full = load_bundle(source)
    if full.bundle.manifest["precision"] != "fp32":
        raise ConfigError(f"{source} is {full.bundle.manifest['precision']} already: start from the full bundle")
    check_target(Path(out))
    reference = CachedEncoder(full)
    graphs = _Graphs(full, calibration if calibration is not None else data.limit(4 * CALIBRATION_IMAGES))
    levels = [count for count in KEPT if count >= kept][: None if milder else 1] if precision == "int8" else [0]
    tried: list[tuple[str, Quality]] = []
    before = sum(len(content) for content in full.bundle.files.values())
    for count in levels:
        setting = f"int8, {count} of 10 runs of layers kept" if precision == "int8" else "fp16"
        made = Path(tempfile.mkdtemp(prefix="clipette-smaller-"))
        try:
            files = graphs.int8(count) if precision == "int8" else graphs.fp16()
            write_bundle(
                made / "bundle", {**full.bundle.manifest, "precision": setting}, {**full.bundle.files, **files}
            )
            quality = measure_quality(reference, load_bundle(made / "bundle"), data)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        tried.append((setting, quality))
        if not quality.faults(budget):
            facts = {**full.bundle.manifest, "precision": setting, "gate": quality.to_dict()}
            path = write_bundle(Path(out), facts, {**full.bundle.files, **files})
            size = sum(len(content) for content in open_bundle(path).files.values())
            return Smaller(path, setting, quality, size, before)
    raise refuse(tried, budget)


class _Graphs:
    """The graphs of a bundle at any setting; what is costly to find out is found out once."""

    def __init__(self, full: BundleEncoder, data: Dataset) -> None:
        self.full = full
        self._quantizers: dict[str, Static | Dynamic] = {}
        self._rankings: dict[str, list[Segment]] = {}
        self._data = data

    def int8(self, kept: int) -> dict[str, bytes]:
        out = {}
        for file in self._files():
            worst = self._ranking(file)[:kept] if kept else []
            out[file] = self._quantizer(file)([name for segment in worst for name in segment.nodes])
        return out

    def fp16(self) -> dict[str, bytes]:
        return {file: half(self.full.bundle.files[file]) for file in self._files()}

    def _files(self) -> list[str]:
        return [name for name in ("image.onnx", "text.onnx") if name in self.full.bundle.files]

    def _quantizer(self, file: str) -> Static | Dynamic:
        if file not in self._quantizers:
            graph = self.full.bundle.files[file]
            batches = self._pixels() if file == "image.onnx" else self._tokens()
            kind = Static if file == "image.onnx" and _is_convolutional(graph) else Dynamic
            self._quantizers[file] = kind(graph, batches)
        return self._quantizers[file]

    def _ranking(self, file: str) -> list[Segment]:
        if file not in self._rankings:
            self._rankings[file] = segments(self._quantizer(file), what=file)
        return self._rankings[file]

    def _pixels(self) -> Batches:
        preprocess = self.full.preprocess
        assert preprocess is not None
        samples = self._data.limit(CALIBRATION_IMAGES).samples
        read = [image for _, image in iter_images(samples, want=preprocess.size)]
        failures = [each for each in read if isinstance(each, Failure)]
        FailureLimit().check(failures, len(read), what="images to calibrate with")
        pixels = [preprocess(image) for image in read if not isinstance(image, Failure)]
        starts = range(0, len(pixels), CALIBRATION_BATCH)
        return [{"pixels": np.stack(pixels[start : start + CALIBRATION_BATCH])} for start in starts]

    def _tokens(self) -> Batches:
        captions = [caption for sample in self._data.samples for caption in sample.captions]
        texts = list(dict.fromkeys(captions or [f"a photo of a {name}" for name in self._data.class_names]))
        if not texts or self.full.tokenizer is None:
            raise ConfigError("quantizing a text tower needs captions or class names to try it on: name such --data")
        texts = texts[:CALIBRATION_IMAGES]
        starts = range(0, len(texts), CALIBRATION_BATCH)
        found: list[Mapping[str, Any]] = [self.full.tokenizer(texts[i : i + CALIBRATION_BATCH]) for i in starts]
        return found


def _is_convolutional(graph: bytes) -> bool:
    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    return kinds.count("Conv") > kinds.count("MatMul")
