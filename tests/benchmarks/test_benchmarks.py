from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def smoke(project: Path, out: Path, *command: str) -> dict[str, Any]:
    """Run a benchmark on its tiny settings; its last line, which must be what it wrote."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(project / "src"),
        "CLIPETTE_CACHE": str(out / "cache"),
        "OMP_NUM_THREADS": "2",
    }
    whole = [sys.executable, *command, "--smoke", "--out", str(out)]
    done = subprocess.run(whole, cwd=project, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {"cpu", "cores", "torch", "date"} <= set(summary["machine"])
    return summary


@pytest.mark.bench
def test_pour_once_times_all_four_arms(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/pour_once.py")
    arms = ("store", "student_only", "open_clip_online", "online")
    assert all(summary[arm] > 0 for arm in arms)
    for arm in arms[1:]:
        assert summary["ratios"][f"store/{arm}"] == pytest.approx(summary["store"] / summary[arm], rel=1e-2)


@pytest.mark.bench
def test_npz_teacher_compares_student_untrained_and_probes(project: Path, shared: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/npz_teacher.py")
    for arm in ("untrained", "linear_probe", "ridge_probe", "class_text_kl", "class_text_kl+cosine"):
        assert set(summary[arm]) == {"top1", "top5", "kl", "cosine", "neighbours"}
    # Twelve photographs tell where CLIP's features lie, if not what is on the photographs.
    assert summary["ridge_probe"]["cosine"]["mean"] > summary["untrained"]["cosine"]["mean"] + 0.3
    assert summary["ridge_probe"]["kl"]["mean"] < summary["untrained"]["kl"]["mean"]
    # A finished arm is read back, not trained again.
    again = smoke(project, tmp_path, "benchmarks/npz_teacher.py")
    assert again["class_text_kl"] == summary["class_text_kl"]


def test_distil_killed_three_times_and_resumed_equals_never_killed(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/crash.py", "--what", "distill", "--kills", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])["distill"]
    assert summary["kills"] == 3
    assert summary["equal"]
    # Weights, optimiser, averages and the best of dev; the model, its words, the recipe and the curve.
    assert summary["files"] >= 8


@pytest.mark.bench
def test_search_beside_lancedb_and_faiss(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/search.py")
    arms = ("clipette", "lancedb", "faiss_hnsw", "faiss_flat")
    (found,) = summary["rows"].values()
    for arm in arms:
        assert found[arm]["peak_bytes"] > 0
        assert {"recall@10", "p50_ms", "p99_ms"} <= set(found[arm]["all"])
    assert found["faiss_flat"]["all"]["recall@10"] == 1.0
    assert found["clipette"]["all"]["recall@10"] >= 0.95
    duel = found["duel"]
    assert duel["p50_ratio"] == pytest.approx(duel["clipette"]["p50_ms"] / duel["lancedb"]["p50_ms"], abs=1e-2)
    assert found["ratios"]["p50 clipette/lancedb"] == duel["p50_ratio"]
    for arm in arms[2:]:
        ratio = found["clipette"]["all"]["p50_ms"] / found[arm]["all"]["p50_ms"]
        assert found["ratios"][f"p50 clipette/{arm}"] == pytest.approx(ratio, abs=1e-3)
    # A finished size is read back.
    assert smoke(project, tmp_path, "benchmarks/search.py")["rows"] == summary["rows"]


@pytest.mark.bench
def test_an_index_killed_three_times_loses_nothing(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/crash_index.py")
    assert (summary["sound"], summary["kills"], summary["second_writers_refused"]) == (True, 3, 1)
    assert summary["reader_looks"] > 0


@pytest.mark.bench
def test_half_of_the_width_inherited_and_from_scratch(project: Path, shared: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/inherit.py", "--seeds", "0,1")
    for arm in (summary["arms"]["inherited"], summary["arms"]["scratch"]):
        assert len(arm["curves"]) == 2
        assert set(arm["first_seed_by_rate"]) == {"0.0003", "0.001"}
