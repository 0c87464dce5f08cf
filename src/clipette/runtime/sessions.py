"""onnxruntime sessions that behave: bounded threads, no files read behind our back, errors in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from clipette.errors import ModelError, UnsupportedError
from clipette.runtime.graphs import has_external_data

# In a container the machine's cores are not ours: as many threads as may run here, and not a whole server's.
MOST_THREADS = 16


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


class Session:
    """One graph: named arrays in, its first output out. Safe to call from several threads."""

    def __init__(self, model: bytes, *, where: str, threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise UnsupportedError("a bundle runs on onnxruntime: pip install 'clipette[serve]'") from error
        if has_external_data(model):
            raise ModelError(f"{where}: the graph keeps weights in other files: refused; export again into one file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from decoding and from the web server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._inner = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{where}: onnxruntime cannot run this graph ({first}); export the model again") from error
        self.inputs: tuple[str, ...] = tuple(each.name for each in self._inner.get_inputs())

    def __call__(self, arrays: Mapping[str, Any]) -> Any:
        """The first output; arrays that the graph does not read are left out."""
        return self._inner.run(None, {name: arrays[name] for name in self.inputs})[0]
