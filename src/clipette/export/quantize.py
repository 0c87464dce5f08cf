"""Graphs in 8 bits: weights per channel, activations by calibration (static) or on the fly (dynamic)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from clipette.errors import UnsupportedError
from clipette.progress import track
from clipette.runtime.sessions import OnnxSession
from clipette.types import Floats

# What is worth 8 bits: products with weights.
PRODUCTS = ("Conv", "Gemm", "MatMul")
# A graph is cut into so many runs of layers; each is tried alone to see what its 8 bits cost.
SEGMENTS = 10
# Scales and biases are not worth a node of their own.
SMALLEST_HALVED = 1024

Batches = Sequence[Mapping[str, Any]]


class Quantizer(Protocol):
    """A graph, data to try it on, and the graph in 8 bits but for the nodes in ``keep``."""

    graph: bytes
    batches: Batches

    def __call__(self, keep: Sequence[str] = ()) -> bytes:
        """The smaller graph."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of neighbouring layers and what the vectors lose when it alone is in 8 bits: 1 - median cosine."""

    nodes: tuple[str, ...]
    loss: float


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every weight belongs to one node.

    PyTorch's exporter merges equal weights; onnxruntime's dynamic quantization (1.31) then scales the shared tensor
    once for each of its users and returns garbage without a word.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    # The quantizer turns weights around and infers the shapes anew: recorded ones contradict it.
    del out.graph.value_info[:]
    weights = {each.name: each for each in out.graph.initializer}
    used: dict[str, int] = {}
    for node in out.graph.node:
        for place, name in enumerate(node.input):
            if name not in weights:
                continue
            used[name] = used.get(name, 0) + 1
            if used[name] > 1:
                copy = out.graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = f"{name}__{used[name]}"
                node.input[place] = copy.name
    return out


def runs_of_layers(model: onnx.ModelProto, count: int = SEGMENTS) -> list[tuple[str, ...]]:
    """All nodes in at most ``count`` runs of neighbours with equally many products by weights, in the graph's order."""
    weights = {each.name for each in model.graph.initializer}
    nodes = list(model.graph.node)
    starts = [i for i, n in enumerate(nodes) if n.op_type in PRODUCTS and any(name in weights for name in n.input)]
    if not starts:
        return []
    firsts = [int(piece[0]) for piece in np.array_split(np.array(starts), min(count, len(starts)))]
    edges = [0, *firsts[1:], len(nodes)]
    return [tuple(node.name for node in nodes[low:high]) for low, high in pairwise(edges)]


def dynamic(graph: bytes, *, keep: Sequence[str] = ()) -> bytes:
    """8-bit weights, and activations scaled batch by batch: for transformers. ``keep``: nodes that stay as they are."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = unshared(onnx.load_from_string(graph))
    with quiet(), tempfile.TemporaryDirectory(prefix="clipette-int8-") as folder:
        out = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # 7-bit weights: without VNNI, sums of two 8-bit products overflow 16 bits and saturate.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )
        return out.read_bytes()


class Static:
    """8-bit weights and activations, whose ranges come from ``batches``: for convolutions.

    The ranges are found once and serve every choice of layers.
    """

    def __init__(self, graph: bytes, batches: Batches) -> None:
        if not batches:
            raise UnsupportedError("static quantization needs images to calibrate with: name them with --data")
        self.graph = graph
        self.batches = batches
        self.model = unshared(onnx.load_from_string(graph)).SerializeToString()
        # What onnxruntime's calibration found, as it keeps it.
        self._ranges: bytes | None = None

    def __call__(self, keep: Sequence[str] = ()) -> bytes:
        """The graph in 8 bits, but for the nodes in ``keep``."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with quiet(), tempfile.TemporaryDirectory(prefix="clipette-int8-") as name:
            folder = Path(name)
            full, out, ranges = folder / "fp32.onnx", folder / "int8.onnx", folder / "ranges.json"
            full.write_bytes(self.model)
            if self._ranges is not None:
                ranges.write_bytes(self._ranges)
            quantize_static(
                str(full),
                out,
                _Reader(self.batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(keep),
                calibration_cache_path=ranges,
            )
            self._ranges = ranges.read_bytes()
            return out.read_bytes()


class Dynamic:
    """``dynamic`` with the shape of ``Static``: a call with the nodes that stay as they are."""

    def __init__(self, graph: bytes, batches: Batches) -> None:
        self.graph = graph
        self.batches = batches

    def __call__(self, keep: Sequence[str] = ()) -> bytes:
        """The graph in 8 bits, but for the nodes in ``keep``."""
        return dynamic(self.graph, keep=keep)


def is_convolutional(graph: bytes) -> bool:
    """Whether convolutions are most of its products."""
    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    return kinds.count("Conv") > kinds.count("MatMul")


def segments(quantizer: Quantizer, *, what: str = "") -> list[Segment]:
    """The graph's runs of layers, each tried alone; the one that bears 8 bits worst first. ``what``: for the bar."""
    # Names of nodes do not change when shared weights are told apart.
    runs = runs_of_layers(onnx.load_from_string(quantizer.graph))
    expected = vectors(quantizer.graph, quantizer.batches)
    found = []
    for run in track(runs, total=len(runs), description=f"layers of {what} in 8 bits", unit="runs"):
        others = [name for other in runs if other is not run for name in other]
        loss = 1.0 - median_cosine(expected, vectors(quantizer(others), quantizer.batches))
        found.append(Segment(run, loss))
    return sorted(found, key=lambda segment: -segment.loss)


def half(graph: bytes) -> bytes:
    """Weights in 16 bits, arithmetic in 32: half the size at the same speed.

    Each weight passes through a Cast that onnxruntime folds away when it loads the graph. (Its own converter to 16-bit
    arithmetic made a text tower's graph crash the process, onnxruntime 1.31.)
    """
    model = onnx.load_from_string(graph)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < SMALLEST_HALVED:
            continue
        name = weight.name
        weight.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), f"{name}__half")
        )
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], f"widen_{name}", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    out: bytes = model.SerializeToString()
    return out


class _Reader:
    """onnxruntime's protocol of calibration data."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.rewind()

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left: Iterator[Mapping[str, Any]] = iter(self._batches)


def vectors(graph: bytes, batches: Batches) -> Floats:
    """[N, D] unit vectors of all batches."""
    session = OnnxSession(graph, where="the quantized graph")
    return np.concatenate([session(batch) for batch in batches])


def median_cosine(one: Floats, other: Floats) -> float:
    """Of two [N, D] arrays of unit vectors, row by row."""
    return float(np.median((one.astype(np.float64) * other).sum(axis=1)))


@contextmanager
def quiet() -> Iterator[None]:
    """Quantizers log their own progress and advice."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
