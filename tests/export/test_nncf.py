"""NNCF on graphs of both kinds, without a model: what is quantized, what is kept, what runs where."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.test_sessions import graph as convolutional
from tests.runtime.test_sessions import pixels

from clipette.export.nncf_int8 import Nncf
from clipette.export.quantize import median_cosine, vectors
from clipette.runtime.sessions import open_session

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nncf", "openvino")), reason="NNCF is not installed"
)


def products() -> bytes:
    """input_ids [N, 16] → unit vectors [N, 8]: two products, a bend between them."""
    drawn = np.random.default_rng(0)
    weights = {"a": drawn.normal(0, 0.3, (16, 32)), "b": drawn.normal(0, 0.3, (32, 8))}
    nodes = [
        helper.make_node("MatMul", ["input_ids", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "bend"),
        helper.make_node("MatMul", ["r", "b"], ["o"], "second"),
        helper.make_node("LpNormalization", ["o"], ["vectors"], "norm", axis=1, p=2),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 8])]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    out: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    return out


GRAPHS = {
    "convolutions": (convolutional(), [pixels(8, seed) for seed in range(4)], "conv"),
    "products": (
        products(),
        [{"input_ids": np.random.default_rng(s).normal(size=(8, 16)).astype(np.float32)} for s in range(4)],
        "first",
    ),
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_quantized_but_for_what_is_kept(name: str) -> None:
    graph, batches, first = GRAPHS[name]
    quantizer = Nncf(graph, batches)
    every = [node.name for node in onnx.load_from_string(graph).graph.node]
    assert first in every
    before = vectors(graph, batches)
    np.testing.assert_allclose(vectors(quantizer(every), batches), before, atol=1e-6)
    small = quantizer()
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(small).graph.node)
    for engine in ("onnxruntime", "openvino"):
        session = open_session(small, where="g", threads=1, engine=engine)
        after = np.concatenate([session(batch) for batch in batches])
        assert 0.98 < median_cosine(before, after) < 1, engine
    # Any batch goes through.
    one = {key: value[:1] for key, value in batches[0].items()}
    assert open_session(small, where="g", engine="openvino")(one).shape == (1, before.shape[1])
