"""From a budget to a run: what is measured, planned, poured, resumed and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train import tiny

from clipette.config import load_yaml
from clipette.errors import ConfigError
from clipette.models.inference import TorchEncoder
from clipette.models.students import build_model
from clipette.store import open_store
from clipette.train import budget as rules
from clipette.train import planning
from clipette.train.budget import Budget
from clipette.train.planning import Setting, plan_within
from clipette.train.recipe import Recipe


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def teacher(side: int = 64) -> TorchEncoder:
    """An untrained teacher whose trunk can be shown smaller pictures."""
    image = {"kind": "timm", "name": "test_resnet", "size": side, "head": {"kind": "linear"}}
    spec = tiny.spec(image=image)
    captions = [c for s in tiny.dataset().samples for c in s.captions]
    return TorchEncoder(build_model(spec, captions=captions, seed=7), name="teacher", device="cpu")


def setting(out: Path, budget: Budget, **changes: Any) -> Setting:
    given = {"data": tiny.dataset(), "teacher": teacher(), "device": "cpu", **changes}
    return Setting(budget=budget, out=out, **given)


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "plan.json").read_text()))


def test_a_cost_alone_plans_the_dearest_student_below_it(tmp_path: Path) -> None:
    path = plan_within(setting(tmp_path, Budget(gmacs=1.0)))
    recipe = load_yaml(Recipe, path)
    assert recipe.student.image.model_dump()["size"] == 48
    assert recipe.student.space == "teacher"
    assert recipe.inherit is not None
    assert recipe.views.count == rules.MOST_VIEWS
    assert recipe.captions_per_image == 2
    assert recipe.train.batch_size == 8
    assert recipe.train.steps == rules.USUAL_EPOCHS[True] * 4
    facts = told(tmp_path)
    assert facts["gmacs"] < facts["teacher_gmacs"]
    assert facts["seconds"] is None


def test_a_time_is_divided_by_the_measured_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "seconds_a_view", lambda teacher, data: 0.001)
    monkeypatch.setattr(planning, "seconds_a_step", lambda job: 4.0)
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path, Budget(seconds=100))))
    # 32 images, 8 a step: 100 s less reserve and pouring are 5 to 6 epochs of 4 steps.
    assert recipe.train.steps is not None
    assert 16 <= recipe.train.steps <= 23
    assert recipe.train.evaluate_every == recipe.train.steps


def test_too_little_time_for_a_large_student_takes_a_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "seconds_a_view", lambda teacher, data: 0.001)
    tried = []

    def pace(job: Any) -> float:
        side = job.recipe.student.image.size
        tried.append(side)
        return 10.0 if side == 48 else 1.0

    monkeypatch.setattr(planning, "seconds_a_step", pace)
    # The cheaper of two is not a hopeless case by its GMACs: 60 s are 12 steps of 5 s.
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path, Budget(seconds=80, gmacs=1.0))))
    assert tried == [48, 32]
    assert recipe.student.image.model_dump()["size"] == 32


def test_time_for_a_head_alone_freezes_the_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "seconds_a_view", lambda teacher, data: 0.001)
    monkeypatch.setattr(planning, "seconds_a_step", lambda job: 5.0)
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path, Budget(seconds=50))))
    assert recipe.student.image.train == "head"
    assert told(tmp_path)["frozen"]


def test_too_little_time_for_anything_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "seconds_a_view", lambda teacher, data: 0.001)
    monkeypatch.setattr(planning, "seconds_a_step", lambda job: 1000.0)
    with pytest.raises(ConfigError, match="too little to run even the smallest student"):
        plan_within(setting(tmp_path, Budget(seconds=30)))
    monkeypatch.setattr(planning, "seconds_a_view", lambda teacher, data: 10.0)
    with pytest.raises(ConfigError, match="fewer images"):
        plan_within(setting(tmp_path / "other", Budget(seconds=30)))


def test_the_pace_is_that_of_real_steps_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = plan_within(setting(tmp_path, Budget(seconds=600)))
    facts = told(tmp_path)
    assert 0 < facts["seconds_a_step"] < 60
    assert facts["steps"] == load_yaml(Recipe, path).train.steps
    assert {each.name for each in tmp_path.iterdir()} - {"cache"} == {"plan.yaml", "plan.json", "store"}


def test_the_teacher_is_poured_as_the_run_will_ask_for_it(tmp_path: Path) -> None:
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path, Budget(gmacs=1.0))))
    store = open_store(tmp_path / "store")
    assert store.view_count == recipe.views.count
    assert store.texts is not None
    assert len(store.texts) == 64


def test_a_store_that_is_there_sets_the_views(tmp_path: Path) -> None:
    plan_within(setting(tmp_path / "first", Budget(gmacs=1.0)))
    poured = tmp_path / "first" / "store"
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path / "second", Budget(gmacs=1.0), store=poured)))
    assert recipe.views.count == 4
    assert not (tmp_path / "second" / "store").exists()


def test_without_captions_labels_are_learned_and_without_labels_the_answers(tmp_path: Path) -> None:
    data = tiny.dataset()
    bare = replace(data, samples=tuple(replace(sample, captions=()) for sample in data.samples))
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path / "labels", Budget(gmacs=1.0), data=bare)))
    assert set(recipe.loss) == {"class_text_ce", "image_to_teacher"}
    some = (replace(bare.samples[0], label=None, class_name=None), *bare.samples[1:])
    named = replace(bare, samples=some)
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path / "names", Budget(gmacs=1.0), data=named)))
    assert set(recipe.loss) == {"image_cosine", "class_text_kl"}


def test_what_the_user_sets_of_the_schedule_holds(tmp_path: Path) -> None:
    given = setting(tmp_path / "epochs", Budget(gmacs=1.0), overrides=("train.epochs=2", "views.count=0"))
    recipe = load_yaml(Recipe, plan_within(given))
    assert recipe.train.steps is None
    assert recipe.train.epochs == 2
    facts = told(tmp_path / "epochs")
    assert (facts["steps"], facts["epochs"], facts["views"]) == (8, 2.0, 0)


def test_the_users_own_student_keeps_its_shape(tmp_path: Path) -> None:
    own = tiny.spec(space="teacher", dim=None, text={"kind": "teacher"})
    recipe = load_yaml(Recipe, plan_within(setting(tmp_path, Budget(gmacs=1.0), student=own)))
    assert recipe.student == own
    assert recipe.inherit is None


def test_a_run_goes_on_by_its_own_plan_and_refuses_another(tmp_path: Path) -> None:
    first = plan_within(setting(tmp_path, Budget(gmacs=1.0)))
    before = first.read_bytes()
    assert plan_within(setting(tmp_path, Budget(gmacs=1.0))).read_bytes() == before
    with pytest.raises(ConfigError, match="another --out"):
        plan_within(setting(tmp_path, Budget(gmacs=0.9)))
