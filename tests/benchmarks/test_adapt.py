"""bench-adapt on its tiny settings: every part runs, and a finished arm is read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.benchmarks.test_benchmarks import smoke

pytestmark = pytest.mark.bench


def test_the_world_and_promptkd(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/adapt.py", "--parts", "world,promptkd")
    rows = summary["world"]["base_to_novel"]
    assert {row["figure"] for row in rows} == {"base", "novel", "harmonic_mean"}
    assert len(rows) == 3 * 15
    assert all(row["protocol"] == "inductive" for row in rows)
    for protocol in ("transductive", "inductive"):
        assert set(summary["promptkd"][protocol]) == {"both stages", "zero-shot teacher"}
    assert {row["method"] for row in summary["promptkd"]["student_alone"]} == {"zero-shot", "promptsrc"}
    again = smoke(project, tmp_path, "benchmarks/adapt.py", "--parts", "world")
    assert again["world"] == summary["world"]


def test_a_style_that_was_never_seen(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/adapt.py", "--parts", "shifted", "--methods", "zero-shot,kgcoop")
    assert [row["method"] for row in summary["shifted"]["base_to_novel"]] == ["zero-shot"] * 3 + ["kgcoop"] * 3
    assert len(summary["shifted"]["zero_shot_plain"]) == 3


def test_costs(project: Path, tmp_path: Path) -> None:
    summary = smoke(project, tmp_path, "benchmarks/adapt.py", "--parts", "cost")
    costs = summary["cost"]["methods"]
    assert costs["coop"]["parameters"] == 4 * 128
    assert all(each["peak_mb"] > 0 for each in costs.values())
    assert summary["cost"]["texts_once"]["ratio"] > 0


def test_real_data(project: Path, shared: Path, tmp_path: Path) -> None:
    from tests.adapt import tiny

    base = tiny.write_base(tmp_path / "base")
    summary = smoke(project, tmp_path, "benchmarks/adapt.py", "--parts", "real", "--teacher", base)
    assert set(summary["real"]) == {"caltech101", "cifar100", "pacs", "eurosat"}
    domains = {row["figure"] for row in summary["real"]["pacs"]}
    assert "mean" in domains
    assert len(domains) == 5
    assert {row["shots"] for row in summary["real"]["eurosat"]} == {1, 2}


def test_the_teacher_is_one_of_all_images(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortened run of bench-flickr8k leaves a T1 too, and may be the newer one."""
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(project / "benchmarks"))
    import adapt  # type: ignore[import-not-found]

    with pytest.raises(SystemExit, match="T1 is missing"):
        adapt.newest_teacher()
    for age, (name, data) in enumerate({"T1-0-a": "wds:t.tar", "T1-0-b": "wds:t.tar?limit=300"}.items()):
        folder = tmp_path / "bench" / "flickr8k" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"data": data}))
        os.utime(folder / "summary.json", (age, age))
    assert adapt.newest_teacher().name == "T1-0-a"
