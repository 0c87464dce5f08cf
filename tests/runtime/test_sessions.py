"""Engines: equal vectors, bounded threads, calls from several threads, choice and refusal in words."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.runtime import sessions
from clipette.runtime.sessions import ENGINES, choose_engine, default_threads, open_session

INSTALLED = [name for name in ENGINES if importlib.util.find_spec(name) is not None]
needs_openvino = pytest.mark.skipif("openvino" not in INSTALLED, reason="OpenVINO is not installed")


def graph(opset: int = 20) -> bytes:
    """pixels [N, 3, H, W] → unit vectors [N, 5]: a convolution, the mean over places, a norm."""
    weight = np.random.default_rng(0).normal(0, 0.3, (5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("LpNormalization", ["f"], ["vectors"], "norm", axis=1, p=2),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 5])]
    made = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    out: bytes = model.SerializeToString()
    return out


def pixels(count: int, seed: int = 0) -> dict[str, Any]:
    return {"pixels": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def by_hand(given: Any) -> Any:
    """The graph in NumPy."""
    weight = numpy_helper.to_array(onnx.load_from_string(graph()).graph.initializer[0])
    windows = np.lib.stride_tricks.sliding_window_view(given, (3, 3), axis=(2, 3))
    vectors = np.maximum(np.einsum("ncxyij,ocij->noxy", windows, weight), 0).mean(axis=(2, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("engine", INSTALLED)
def test_an_engine_computes_what_the_graph_says_for_any_batch(engine: str) -> None:
    session = open_session(graph(), where="g", threads=1, engine=engine)
    assert session.inputs == ("pixels",)
    for count in (3, 1, 7):
        given = pixels(count)
        # What the graph does not read is left out.
        found = session({**given, "mask": np.ones(1)})
        np.testing.assert_allclose(found, by_hand(given["pixels"]), atol=1e-6)


@pytest.mark.parametrize("engine", INSTALLED)
def test_calls_from_several_threads_do_not_mix(engine: str) -> None:
    session = open_session(graph(), where="g", threads=1, engine=engine)
    expected = {seed: by_hand(pixels(2, seed)["pixels"]) for seed in range(8)}
    wrong: list[int] = []
    ready = threading.Barrier(8)

    def call(seed: int) -> None:
        ready.wait()
        for _ in range(20):
            if not np.allclose(session(pixels(2, seed)), expected[seed], atol=1e-6):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.parametrize("engine", INSTALLED)
def test_a_result_is_the_callers_own(engine: str) -> None:
    session = open_session(graph(), where="g", threads=1, engine=engine)
    first = session(pixels(2))
    kept = first.copy()
    session(pixels(2, 1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("engine", INSTALLED)
@pytest.mark.parametrize("data", [b"", b"no graph", graph(opset=999), graph()[: len(graph()) // 2]])
def test_what_is_no_graph_is_refused_with_its_place(engine: str, data: bytes) -> None:
    with pytest.raises(ModelError, match=r"here/image\.onnx|not an ONNX graph"):
        open_session(data, where="here/image.onnx", engine=engine)


def pretend(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(sessions, "_installed", lambda name: name in installed)


def test_the_choice_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sessions.ENGINE_VARIABLE, raising=False)
    pretend(monkeypatch, "onnxruntime")
    assert choose_engine() == choose_engine(preferred="openvino") == "onnxruntime"
    with pytest.raises(UnsupportedError, match=r"clipette\[openvino\]"):
        choose_engine("openvino")
    pretend(monkeypatch, "onnxruntime", "openvino")
    assert choose_engine() == "openvino", "where it is installed"
    assert choose_engine(preferred="onnxruntime") == "onnxruntime", "what the bundle was measured on"
    assert choose_engine("openvino", preferred="onnxruntime") == "openvino"
    assert choose_engine(preferred="abacus") == "openvino"
    monkeypatch.setenv(sessions.ENGINE_VARIABLE, "onnxruntime")
    assert choose_engine(preferred="openvino") == "onnxruntime"
    monkeypatch.setenv(sessions.ENGINE_VARIABLE, "abacus")
    with pytest.raises(ConfigError, match="engine 'abacus' is unknown"):
        choose_engine()


def test_what_openvino_does_not_know_runs_on_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sessions.ENGINE_VARIABLE, raising=False)
    pretend(monkeypatch, "onnxruntime", "openvino")

    def refuses(model: bytes, *, where: str, threads: int | None = None) -> Any:
        raise ModelError(f"{where}: OpenVINO cannot run this graph (x)")

    monkeypatch.setitem(sessions.ENGINES, "openvino", refuses)
    session = open_session(graph(), where="g", threads=1)
    np.testing.assert_allclose(session(pixels(2)), by_hand(pixels(2)["pixels"]), atol=1e-6)
    with pytest.raises(ModelError, match="OpenVINO cannot"):
        open_session(graph(), where="g", engine="openvino")


def test_threads_follow_the_environment_and_the_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sessions.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(sessions, "_quota", lambda: None)
    assert default_threads() == sessions.MOST_THREADS
    monkeypatch.setattr(sessions, "_quota", lambda: 2)
    assert default_threads() == 2


def test_onnxruntime_gets_the_threads_that_were_asked_for() -> None:
    session = open_session(graph(), where="g", threads=1, engine="onnxruntime")
    assert isinstance(session, sessions.OnnxSession)
    options = session._inner.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@needs_openvino
def test_openvino_computes_in_32_bits_on_the_asked_threads() -> None:
    session = open_session(graph(), where="g", threads=1, engine="openvino")
    assert isinstance(session, sessions.OpenVinoSession)
    assert session._inner.get_property("INFERENCE_NUM_THREADS") == 1
    assert "float32" in str(session._inner.get_property("INFERENCE_PRECISION_HINT")) or "f32" in str(
        session._inner.get_property("INFERENCE_PRECISION_HINT")
    )
