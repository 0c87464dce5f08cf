from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipette.health import Finding, doctor, examine


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from safetensors.numpy import save_file

    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    save_file({"a": np.ones((3, 4), np.float32), "b": np.ones(2, np.float16)}, folder / "model" / "model.safetensors")
    (folder / "model" / "model.json").write_text(json.dumps({"format": 1}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return folder


def test_the_machine_is_described() -> None:
    found = {finding.name: finding for finding in doctor()}
    assert {"python", "clipette", "libraries", "cores", "memory", "disk", "threads", "gpu", "[train]"} <= set(found)
    assert "numpy" in found["libraries"].value
    assert "GiB" in found["memory"].value


def test_too_many_threads_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    threads = next(finding for finding in doctor() if finding.name == "threads")
    assert threads.status == "note"
    assert "OMP_NUM_THREADS=9999" in threads.value


def test_a_whole_run_is_sound(run: Path) -> None:
    assert examine(run) == [Finding(str(run), "ok", "3 files are whole")]


def test_cut_weights_are_found(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    data = weights.read_bytes()
    for kept in (0, 4, 20, len(data) - 1):
        weights.write_bytes(data[:kept])
        (finding,) = examine(run)
        assert finding.status == "bad", kept
        assert "model/model.safetensors" in finding.value


def test_damaged_headers_and_logs_are_found(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    weights.write_bytes(data)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    found = [finding.value for finding in examine(run)]
    assert len(found) == 2
    assert any("metrics.jsonl: line 2" in value for value in found)
    assert any("header is not readable" in value for value in found)


def test_folders_that_are_nothing(tmp_path: Path) -> None:
    assert examine(tmp_path / "absent")[0].value == "no such folder"
    assert examine(tmp_path)[0].status == "bad"


def test_a_store_is_read_through(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{")
    (finding,) = examine(tmp_path)
    assert finding.status == "bad"
