"""The verbs that train: what runs without a recipe, what a store's views do, what is said before pouring."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.train import tiny

from clipette.config import load_yaml
from clipette.errors import ClipetteError, ConfigError
from clipette.models.saved import save_model
from clipette.store import open_store
from clipette.train.recipe import Recipe
from clipette.verbs import distill, pour

RECIPE = """\
name: small
student:
  space: teacher
  image: {kind: timm, name: test_resnet, size: 32, head: {kind: linear}}
  text: {kind: teacher}
loss: LOSS
views: {count: 2, scale: [0.6, 1.0], flip: 0}
train: {steps: 2, batch_size: 4}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def write_data(folder: Path, *, captions: bool = True, classes: bool = True, bad: tuple[int, ...] = ()) -> str:
    folder.mkdir(parents=True)
    columns = ["key", "image", *(["caption"] if captions else []), *(["class", "label"] if classes else [])]
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        for sample in tiny.dataset(24, bad=bad).samples:
            (folder / f"{sample.key}.png").write_bytes(sample.image.read())
            row = {"key": sample.key, "image": f"{sample.key}.png", "caption": sample.captions[0]}
            table.writerow({**row, "class": sample.class_name, "label": sample.label})
    return f"csv:{folder}/data.csv"


def write_recipe(folder: Path, loss: str = "{image_cosine: 1}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(RECIPE.replace("LOSS", loss))
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    save_model(tiny.student(7, dim=24), tmp_path / "teacher", name="teacher", card={})
    return str(tmp_path / "teacher")


def recipe_of(run: Path) -> Recipe:
    return load_yaml(Recipe, run / "recipe.yaml")


def test_without_a_recipe_the_rules_choose(tmp_path: Path, teacher: str) -> None:
    few: dict[str, Any] = {"overrides": ["train.steps=2", "views.count=1"], "device": "cpu", "teacher": teacher}
    labelled = write_data(tmp_path / "labelled", captions=False)
    own = tmp_path / "student.yaml"
    own.write_text("space: teacher\nimage: {kind: timm, name: test_resnet, size: 32}\ntext: {kind: teacher}\n")
    run = distill(data=labelled, student=str(own), out=tmp_path / "a", **few)
    assert set(recipe_of(run).loss) == {"class_text_ce", "image_to_teacher"}
    assert json.loads((run / "plan.json").read_text())["worth"]["labels"] > 0
    bare = write_data(tmp_path / "bare", captions=False, classes=False)
    run = distill(data=bare, student=str(own), out=tmp_path / "b", **few)
    assert set(recipe_of(run).loss) == {"image_cosine"}
    assert distill(data=bare, student=str(own), out=tmp_path / "b", **few) == run
    with pytest.raises(ConfigError, match=r"needs a recipe; without one needs --teacher and --data"):
        distill(data=bare, out=tmp_path / "c")


def test_a_start_with_towers_of_its_own_brings_its_scale_to_a_plan(tmp_path: Path, teacher: str) -> None:
    start = tmp_path / "a: start"
    save_model(tiny.student(3), start, name="start", card={})
    data = write_data(tmp_path / "data")
    run = distill(
        data=data, teacher=teacher, student=str(start), out=tmp_path / "run", overrides=["train.steps=1"], device="cpu"
    )
    assert recipe_of(run).init == str(start)
    assert recipe_of(run).student.space == "own"


def test_a_store_keeps_its_law_and_the_run_says_so(
    tmp_path: Path, teacher: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, recipe = write_data(tmp_path / "data"), write_recipe(tmp_path)
    given: dict[str, Any] = {"teacher": teacher, "data": data, "device": "cpu"}
    asked = pour(teacher, data, tmp_path / "asked", recipe=recipe, device="cpu")
    assert open_store(asked).identity["views"]["policy"]["flip"] == 0
    distill(recipe, store=asked, out=tmp_path / "same", **given)
    assert "the stored views are used" not in caplog.text
    other = pour(teacher, [data], tmp_path / "other", views=3, device="cpu")
    run = distill(recipe, store=other, out=tmp_path / "run", **given)
    assert "views.count 3, views.scale (0.5, 1.0), views.flip 0.5" in caplog.text
    views = recipe_of(run).views
    assert (views.count, views.scale, views.flip) == (3, (0.5, 1.0), 0.5)
    whole = pour(teacher, [data], tmp_path / "whole", device="cpu")
    assert recipe_of(distill(recipe, store=whole, out=tmp_path / "no", **given)).views.count == 0
    with pytest.raises(ConfigError, match="leave out --views"):
        pour(teacher, data, tmp_path / "both", recipe=recipe, views=2)


@pytest.mark.parametrize(
    ("loss", "given", "says"),
    [
        ("{in_batch_kl: 1}", {"captions": False}, "read captions, and these images have none"),
        ("{class_text_kl: 1}", {"classes": False}, "needs class names"),
    ],
)
def test_what_the_data_lacks_is_said_before_a_teacher_is_poured(
    loss: str, given: dict[str, bool], says: str, tmp_path: Path, teacher: str
) -> None:
    data, recipe = write_data(tmp_path / "data", **given), write_recipe(tmp_path, loss)
    with pytest.raises(ClipetteError, match=says):
        distill(recipe, teacher=teacher, data=data, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_be_built_is_said_before_a_teacher_is_poured(tmp_path: Path, teacher: str) -> None:
    data, recipe = write_data(tmp_path / "data"), write_recipe(tmp_path)
    with pytest.raises(ClipetteError, match=r"absent\.safetensors"):
        distill(
            recipe,
            teacher=teacher,
            data=data,
            out=tmp_path / "run",
            overrides=["student.image.weights=absent.safetensors"],
        )
    assert not (tmp_path / "run").exists()


def test_images_that_cannot_be_poured_are_told(tmp_path: Path, teacher: str, caplog: pytest.LogCaptureFixture) -> None:
    data, recipe = write_data(tmp_path / "data", bad=(5,)), write_recipe(tmp_path)
    distill(recipe, teacher=teacher, data=data, out=tmp_path / "run", device="cpu")
    assert "1 of 24 images could not be poured and are left out (" in caplog.text
    assert "s005.png" in caplog.text
