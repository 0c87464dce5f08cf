"""Graphs at work: onnxruntime everywhere, OpenVINO where it is installed; bounded threads, errors in words."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from clipette.errors import ConfigError, ModelError, UnsupportedError
from clipette.runtime.bundle import OPSET
from clipette.runtime.graphs import has_external_data, operator_set

log = logging.getLogger(__name__)

# In a container the machine's cores are not ours: as many threads as may run here, and not a whole server's.
MOST_THREADS = 16
ENGINE_VARIABLE = "CLIPETTE_ENGINE"


def default_threads() -> int:
    """Threads of one session: ``OMP_NUM_THREADS``, else the cores this process may use within a container's quota."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated):
        return int(stated)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota() or cores, MOST_THREADS))


def _quota() -> int | None:
    """CPUs that control group version 2 grants, rounded up; None without a limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


class Session(Protocol):
    """One graph: named arrays in, its first output out. Safe to call from several threads.

    ``width``: of the vectors it gives, where the graph states it.
    """

    engine: str
    inputs: tuple[str, ...]
    width: int | None

    def __call__(self, arrays: Mapping[str, Any]) -> Any:
        """The first output; arrays that the graph does not read are left out."""
        ...


class OnnxSession:
    """A ``Session`` of onnxruntime. Raises ``ModelError`` where it cannot run the graph."""

    def __init__(self, model: bytes, *, where: str, threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise UnsupportedError("a bundle runs on onnxruntime: pip install 'clipette[serve]'") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from decoding and from the web server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._inner = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise _cannot_run("onnxruntime", where, error) from error
        self._where = where
        self.engine = "onnxruntime"
        self.inputs = tuple(each.name for each in self._inner.get_inputs())
        shape = self._inner.get_outputs()[0].shape
        self.width = shape[-1] if shape and isinstance(shape[-1], int) else None

    def __call__(self, arrays: Mapping[str, Any]) -> Any:
        try:
            return self._inner.run(None, {name: arrays[name] for name in self.inputs})[0]
        except Exception as error:  # as above
            raise _cannot_run("onnxruntime", self._where, error) from error


class OpenVinoSession:
    """A ``Session`` of OpenVINO on the CPU. Raises ``ModelError`` where it cannot run the graph."""

    def __init__(self, model: bytes, *, where: str, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UnsupportedError("OpenVINO is not installed: pip install 'clipette[openvino]'") from error
        settings = {
            "INFERENCE_NUM_THREADS": threads or default_threads(),
            "NUM_STREAMS": 1,
            # By default it computes in 16 bits where the processor can, and the vectors would be others.
            "INFERENCE_PRECISION_HINT": "f32",
            # Other processes have the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            self._inner = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)
        except Exception as error:  # it raises RuntimeError for everything
            raise _cannot_run("OpenVINO", where, error) from error
        self._where = where
        self.engine = "openvino"
        self.inputs = tuple(each.any_name for each in self._inner.inputs)
        last = list(self._inner.outputs[0].partial_shape)[-1:]
        self.width = int(last[0].get_length()) if last and last[0].is_static else None
        # A request holds one call's tensors.
        self._requests = threading.local()

    def __call__(self, arrays: Mapping[str, Any]) -> Any:
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._inner.create_infer_request()
        try:
            request.infer({name: arrays[name] for name in self.inputs}, share_inputs=True)
        except Exception as error:  # as above
            raise _cannot_run("OpenVINO", self._where, error) from error
        return request.get_output_tensor(0).data.copy()


def _cannot_run(engine: str, where: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(f"{where}: {engine} cannot run this graph ({first}); export the model again")


ENGINES: dict[str, Callable[..., Session]] = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}


def choose_engine(asked: str | None = None, preferred: str | None = None) -> str:
    """The engine that was asked for (``CLIPETTE_ENGINE`` otherwise), else ``preferred``, else OpenVINO, else
    onnxruntime; of the latter the first that is installed.

    Raises ``ConfigError`` for an unknown one, ``UnsupportedError`` for one that was asked for and is not installed.
    """
    stated = asked or os.environ.get(ENGINE_VARIABLE)
    if stated:
        if stated not in ENGINES:
            raise ConfigError(f"engine '{stated}' is unknown: choose one of {', '.join(ENGINES)}")
        if not _installed(stated):
            extra = "openvino" if stated == "openvino" else "serve"
            raise UnsupportedError(f"the engine {stated} is not installed: pip install 'clipette[{extra}]'")
        return stated
    wanted = [name for name in ENGINES if name == preferred]
    return next((name for name in (*wanted, "openvino") if _installed(name)), "onnxruntime")


def _installed(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None


def open_session(
    model: bytes, *, where: str, threads: int | None = None, engine: str | None = None, preferred: str | None = None
) -> Session:
    """A session over an ONNX graph; ``engine`` and ``preferred`` as in ``choose_engine``.

    A graph that OpenVINO does not know runs on onnxruntime, unless OpenVINO was asked for. Raises ``ModelError`` where
    the graph names other files or cannot be run.
    """
    try:
        external, stated = has_external_data(model), operator_set(model)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    if external:
        raise ModelError(f"{where}: the graph keeps weights in other files: refused; export again into one file")
    if stated > OPSET:
        # OpenVINO would guess.
        raise ModelError(f"{where}: ONNX operator set {stated}, this Clipette reads up to {OPSET}: upgrade it")
    chosen = choose_engine(engine, preferred)
    try:
        return ENGINES[chosen](model, where=where, threads=threads)
    except ModelError as error:
        if chosen == "onnxruntime" or engine or os.environ.get(ENGINE_VARIABLE) or not _installed("onnxruntime"):
            raise
        log.info("%s; onnxruntime takes it", error)
        return OnnxSession(model, where=where, threads=threads)
