"""``clipette quantize``: a bundle made smaller, written only if it passes the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.loading import FailureLimit, iter_images
from clipette.errors import ConfigError
from clipette.evaluate.encoding import CachedEncoder
from clipette.export.bundle import KIND, unwritten, write_bundle
from clipette.export.folders import check_target
from clipette.export.gate import Budget, Quality, measure_quality, refuse
from clipette.export.nncf_int8 import Nncf
from clipette.export.quantize import Batches, Dynamic, Quantizer, Segment, Static, half, is_convolutional, segments
from clipette.runtime import BundleEncoder, load_bundle, open_bundle
from clipette.runtime.bundle import holds_bundle
from clipette.runtime.sessions import choose_engine
from clipette.types import Failure

Precision = Literal["int8", "fp16", "nncf"]
Texts = Literal["fp16", "int8"]
TEXTS: dict[str, Texts] = {"fp16": "fp16", "int8": "int8"}
PRECISIONS: dict[str, Precision] = {"int8": "int8", "fp16": "fp16", "nncf": "nncf"}
# What the gate measures it on, and what runs it where that is installed.
ENGINE_OF: dict[Precision, str] = {"int8": "onnxruntime", "fp16": "onnxruntime", "nncf": "openvino"}
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
    texts: Texts | None = None,
    milder: bool = False,
    budget: Budget = Budget(),
) -> Smaller:
    """Write a smaller copy of the bundle ``source``, if what ``data`` shows of it stays within ``budget``.

    ``int8``: convolutional image towers get 8-bit weights and activations, with ranges from ``calibration`` (default:
    a sample of ``data``); transformers 8-bit weights and activations scaled as they come. ``nncf``: both by NNCF, for
    OpenVINO. ``kept``: how many of the ten runs of layers stay as they are, chosen by trying each alone. ``milder``: go
    on to milder settings until one passes. ``fp16``: half the size at the same speed.

    ``texts``: beside an image tower in 8 bits, how texts are kept: ``fp16`` by default, for activations that are scaled
    as they come are scaled over a whole batch, and a text's vector then depends on what else is asked at that moment
    (Flickr8k's student through the server: hit@5 .4659, offline .4641; without VNNI 8 bits gained 12 % of speed).

    Raises:
        GateError: no setting that was tried stays within the budget.
        ConfigError: ``out`` holds something else; an unknown setting.
        UnsupportedError: NNCF is not installed.
    """
    if kept not in KEPT:
        raise ConfigError(f"kept: {kept} is none of {', '.join(str(count) for count in KEPT)}")
    engine = choose_engine(ENGINE_OF[precision])
    full = load_bundle(source)
    if full.bundle.manifest["precision"] != "fp32":
        raise ConfigError(f"{source} is {full.bundle.manifest['precision']} already: start from the full bundle")
    target = Path(out)
    check_target(target, holds_bundle, KIND)
    if target.resolve() == Path(source).resolve():
        raise ConfigError(f"{target}: this is the bundle that is to be made smaller; name another place for the result")
    reference = CachedEncoder(full)
    seen = calibration if calibration is not None else data.limit(4 * CALIBRATION_IMAGES)
    halved = precision == "int8" and "image.onnx" in full.bundle.files and texts != "int8"
    graphs = _Graphs(full, seen, precision, halved=("text.onnx",) if halved else ())
    levels = [count for count in KEPT if count >= kept][: None if milder else 1] if precision != "fp16" else [0]
    tried: list[tuple[str, Quality]] = []
    for count in levels:
        setting = "fp16" if precision == "fp16" else f"{precision}, {count} of 10 runs of layers kept"
        setting += ", texts fp16" if halved and "text.onnx" in full.bundle.files else ""
        files = {**full.bundle.files, **graphs(count)}
        facts = {**full.bundle.manifest, "precision": setting, "engine": engine}
        quality = measure_quality(reference, unwritten(target, facts, files), data)
        tried.append((setting, quality))
        if not quality.faults(budget):
            path = write_bundle(target, {**facts, "gate": quality.to_dict()}, files)
            return Smaller(path, setting, quality, _size(open_bundle(path).files), _size(full.bundle.files))
    raise refuse(tried, budget, "try a milder setting (--milder tries them in turn)")


def _size(files: Mapping[str, bytes]) -> int:
    return sum(len(content) for content in files.values())


class _Graphs:
    """The graphs of a bundle at any setting; what is costly to find out is found out once."""

    def __init__(self, full: BundleEncoder, data: Dataset, precision: Precision, *, halved: Sequence[str] = ()) -> None:
        self.full = full
        self._precision = precision
        self._halved = halved
        self._halves: dict[str, bytes] = {}
        self._quantizers: dict[str, Quantizer] = {}
        self._rankings: dict[str, list[Segment]] = {}
        self._data = data

    def __call__(self, kept: int) -> dict[str, bytes]:
        """The smaller graphs by file; ``kept``: runs of layers that stay as they are."""
        files = [name for name in ("image.onnx", "text.onnx") if name in self.full.bundle.files]
        halved = files if self._precision == "fp16" else [file for file in files if file in self._halved]
        out = {file: self._half(file) for file in halved}
        for file in [file for file in files if file not in halved]:
            worst = self._ranking(file)[:kept] if kept else []
            out[file] = self._quantizer(file)([name for segment in worst for name in segment.nodes])
        return out

    def _half(self, file: str) -> bytes:
        if file not in self._halves:
            self._halves[file] = half(self.full.bundle.files[file])
        return self._halves[file]

    def _quantizer(self, file: str) -> Quantizer:
        if file not in self._quantizers:
            graph = self.full.bundle.files[file]
            image = file == "image.onnx"
            kind: Callable[[bytes, Batches], Quantizer] = Static if image and is_convolutional(graph) else Dynamic
            if self._precision == "nncf":
                kind = Nncf
            self._quantizers[file] = kind(graph, self._pixels() if image else self._tokens())
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
