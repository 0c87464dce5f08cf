"""``clipette distill --budget``: a run from nothing but a teacher, data and a budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train import tiny
from tests.train.small_world import write_pictures

from clipette import verbs
from clipette.errors import ConfigError
from clipette.models.saved import save_model


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    image = {"kind": "timm", "name": "test_resnet", "size": 64, "head": {"kind": "linear"}}
    save_model(tiny.student(seed=7, dim=24, image=image), tmp_path / "teacher" / "model", name="teacher")
    return tmp_path / "teacher"


def test_a_budget_makes_a_whole_run(tmp_path: Path, teacher: Path) -> None:
    data = f"csv:{write_pictures(tmp_path / 'data')}"
    out = tmp_path / "run"
    given = {"teacher": str(teacher), "data": data, "budget": "10m,1gmacs", "out": out, "device": "cpu"}
    assert verbs.distill(overrides=["train.steps=2", "seed=5"], **given) == out  # type: ignore[arg-type]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["seed"] == 5
    plan = json.loads((out / "plan.json").read_text())
    assert plan["inherits"]
    assert plan["gmacs"] < plan["teacher_gmacs"]
    # Given again it is finished, and nothing is planned anew.
    assert verbs.distill(overrides=["train.steps=2", "seed=5"], **given) == out  # type: ignore[arg-type]
    assert json.loads((out / "plan.json").read_text()) == plan


def test_a_budget_stands_in_place_of_a_recipe(tmp_path: Path, teacher: Path) -> None:
    data = f"csv:{write_pictures(tmp_path / 'data')}"
    with pytest.raises(ConfigError, match="leave out the recipe"):
        verbs.distill("default", teacher=str(teacher), data=data, budget="1m", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="needs --teacher and --data"):
        verbs.distill(teacher=str(teacher), budget="1m", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="neither a time nor a cost"):
        verbs.distill(teacher=str(teacher), data=data, budget="soon", out=tmp_path / "run")
