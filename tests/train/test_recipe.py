"""Every recipe of the package is one that runs: it parses, its terms exist, and PAPERS.md knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from tests.tasks.tiny import tiny_model

from clipette.config import dump_yaml, load_yaml, shipped_recipes
from clipette.errors import ConfigError
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.adapt_recipe import AdaptRecipe
from clipette.train.recipe import Recipe, ViewSettings
from clipette.verbs import read_recipe

PAPERS = Path(__file__).parents[2] / "docs" / "PAPERS.md"


ADAPT = [name for name, path in shipped_recipes().items() if "\nmethod:" in path.read_text()]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.optimizer.betas", "[2, 0.9]"),
        ("train.optimizer.betas", "[0.9, 1.0]"),
        ("train.optimizer.eps", "0"),
        ("train.optimizer.momentum", "-5"),
        ("train.clip_norm", "-1"),
        ("train.max_scale", "0"),
        ("train.max_scale", "-1"),
        ("train.cache_mb", "-1"),
        ("train.sizes", "{-1: 32}"),
        ("train.sizes", "{0: 0}"),
        ("student.logit_scale", "0"),
        ("student.logit_scale", "-5"),
        ("student.logit_scale", "1e9"),
        ("student.dim", "0"),
        ("student.dim", "-1"),
        ("student.image.size", "0"),
        ("student.image.std", "[0.2, 0, 0.2]"),
        ("student.image.head.hidden", "-4"),
        ("student.image.head.dropout", "2"),
        ("student.text", "{kind: small, layers: 0}"),
        ("student.text", "{kind: small, heads: 0}"),
        ("student.text", "{kind: small, context_length: 0}"),
        ("student.text", "{kind: hf, path: x, context_length: 0}"),
        ("views.count", "100000"),
        ("seed", "9" * 40),
        ("seed", "-1"),
        ("loss.clip", "much"),
        ("loss.clip", ".inf"),
    ],
)
def test_what_no_training_takes_is_refused_in_a_line(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("default", [f"{key}={value}"], default="default")
    assert str(caught.value).startswith(f"--set {key}: {key}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_seed_of_adaptation_is_one_that_generators_take() -> None:
    for seed in ("-1", "9" * 40):
        with pytest.raises(ConfigError, match=r"^--set seed: seed: expected"):
            load_yaml(AdaptRecipe, shipped_recipes()["coop"], [f"seed={seed}"])


@pytest.mark.parametrize("name", ADAPT)
def test_a_shipped_recipe_of_adapt_is_whole(name: str) -> None:
    recipe = load_yaml(AdaptRecipe, shipped_recipes()[name])
    assert recipe.name == name
    assert load_yaml(AdaptRecipe, dump_yaml(recipe)) == recipe, "a run's recipe.yaml begins the same run"
    if recipe.paper:
        assert f"`{name}`" in PAPERS.read_text(), f"docs/PAPERS.md has no recipe `{name}`"


def test_every_method_has_a_recipe() -> None:
    kinds = {load_yaml(AdaptRecipe, shipped_recipes()[name]).method.kind for name in ADAPT}
    (union,) = {field.annotation for key, field in AdaptRecipe.model_fields.items() if key == "method"}
    assert kinds == {member.model_fields["kind"].default for member in get_args(union)}


def test_settings_of_the_loop_belong_to_what_it_trains() -> None:
    with pytest.raises(ConfigError, match="train is for methods that the loop trains, and taskres is none of them"):
        load_yaml(AdaptRecipe, shipped_recipes()["taskres"], ["train.epochs=3"])


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name not in ADAPT])
def test_a_shipped_recipe_is_whole(name: str) -> None:
    recipe = load_yaml(Recipe, shipped_recipes()[name])
    assert recipe.name == name
    terms = read_terms(recipe.loss)
    # The objective refuses what cannot be summed; every loss that reads captions has a text side to read.
    Objective(tiny_model(8), terms, teacher=TeacherFacts(12, 30.0))
    assert "student_text" not in needs_of(terms) or recipe.student.text is not None
    if recipe.paper:
        assert f"`{name}`" in PAPERS.read_text(), f"docs/PAPERS.md has no recipe `{name}`"


def test_views_of_the_students_own_are_for_whole_images_of_the_teacher() -> None:
    assert ViewSettings(count=0).policy() is None
    policy = ViewSettings(count=0, student_only=True, flip=0.25).policy()
    assert policy is not None
    assert policy.flip == 0.25
    with pytest.raises(ValueError, match="set count to 0, not 4"):
        ViewSettings.model_validate_json(json.dumps({"student_only": True}))
    with pytest.raises(ConfigError, match="student_only is for whole images"):
        load_yaml(Recipe, shipped_recipes()["default"], ["views.student_only=true"])
