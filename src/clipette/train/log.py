"""``metrics.jsonl``: what a run measured, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.io import write_atomic
from clipette.tasks.task import StepOutput
from clipette.train.ranks import rank


class MetricsLog:
    """Lines of kind ``train`` or ``dev``, cut back to the resumed step; only rank 0 writes."""

    def __init__(self, path: Path, *, resumed: int, batch_size: int, steps_per_epoch: int) -> None:
        self.path = path
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._file = None
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(f"{line}\n" for line in _kept_lines(path, resumed)).encode())
            self._file = path.open("a")

    def _write(self, kind: str, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            where = {
                "kind": kind,
                "step": step,
                "images": step * self._batch_size,
                "epoch": round(step / self._steps_per_epoch, 4),
                "seconds": round(seconds, 3),
            }
            self._file.write(json.dumps({**where, **values}) + "\n")

    def train(self, step: int, seconds: float, output: StepOutput, *, norm: float, factor: float) -> None:
        """One step. ``effective``: each weighted term's share of the sum of their absolute values."""
        size = sum(abs(value) for value in output.terms.values()) or 1.0
        values = {
            "loss": float(output.loss.detach()),
            "raw": dict(output.raw),
            "weighted": dict(output.terms),
            "effective": {name: abs(value) / size for name, value in output.terms.items()},
            "gradient_norm": norm,
            "rate_factor": factor,
        }
        self._write("train", step, seconds, values)

    def dev(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """The student on dev data: the curve of quality against images seen and against seconds."""
        self._write("dev", step, seconds, values)
        self.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _kept_lines(path: Path, resumed: int) -> list[str]:
    """Whole lines up to the resumed step; a line that a kill cut short is dropped."""
    kept = []
    if resumed > 0 and path.is_file():
        for line in path.read_text().splitlines():
            try:
                if int(json.loads(line)["step"]) <= resumed:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return kept


def read_metrics(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind."""
    if not path.is_file():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return [line for line in lines if line.get("kind") == kind]
