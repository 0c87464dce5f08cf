"""The measuring verbs end to end, on a tiny model and a few pictures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from tests.train.tiny import CLASSES, picture, student

from clipette import measuring
from clipette.errors import BadImageError, ConfigError, DataError
from clipette.evaluate.cost import Timing
from clipette.measuring import classify, compare, evaluate
from clipette.models.saved import save_model


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of speed are not what is tested here."""
    monkeypatch.setattr(measuring, "TIMING", Timing(warmup=0, repeats=1, batch_size=2, max_seconds=0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measuring")
    for label, name in enumerate(CLASSES):
        for index in range(3):
            path = root / "pets" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(label, index))
    (root / "pets" / "red" / "bad.png").write_bytes(b"no image")
    for seed, name in ((7, "teacher"), (3, "student")):
        save_model(student(seed), root / name / "model", name=name, card={"seed": seed})
    return root


def test_evaluate_with_a_teacher(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"folder:{folder / 'pets'}"]
    teacher = str(folder / "teacher")
    summary = evaluate(str(folder / "student"), data, teacher=teacher, templates="single", out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.csv", "report.html", "summary.json"}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    (name,) = summary["models"]["student"]["figures"]
    kinds = summary["models"]["student"]["figures"][name]
    assert set(kinds) == {"zero_shot", "agreement"}
    assert {"base", "novel", "top1"} <= set(kinds["zero_shot"])
    assert summary["models"]["student"]["ratios"]["gmacs"] == 1.0
    models = json.loads((tmp_path / "results.json").read_text())["models"]
    assert [model["card"]["seed"] for model in models] == [7, 3]
    page = (tmp_path / "report.html").read_text()
    assert "bad.png" in page, "the unreadable picture is named"
    with (tmp_path / "results.csv").open() as file:
        assert {row["kind"] for row in csv.DictReader(file)} >= {"zero_shot", "agreement", "retention", "cost", "ratio"}
    printed = capsys.readouterr()
    assert "top-1 accuracy" in printed.err
    assert printed.out == ""


def test_compare_and_descriptions(folder: Path, tmp_path: Path) -> None:
    data = [f"folder:{folder / 'pets'}"]
    summary = compare([str(folder / "teacher"), str(folder / "student")], data, templates="none", out=tmp_path / "two")
    assert summary["reference"] == "teacher"
    assert "retention" in summary["models"]["student"]
    sentences = tmp_path / "cupl.json"
    sentences.write_text(json.dumps({name: [f"something {name}"] for name in CLASSES}))
    alone = evaluate(str(folder / "student"), data, descriptions=sentences, out=tmp_path / "one")
    assert list(alone["models"]) == ["student"]


def test_how_many_images_may_be_lost_is_asked(folder: Path, tmp_path: Path) -> None:
    pets = shutil.copytree(folder / "pets", tmp_path / "pets")
    for broken in sorted(pets.rglob("*.png"))[::3]:
        broken.write_bytes(b"no image")
    given = {"data": [f"folder:{pets}"], "out": tmp_path / "out"}
    for verb, models in (
        (evaluate, str(folder / "student")),
        (compare, [str(folder / "teacher"), str(folder / "student")]),
    ):
        with pytest.raises(DataError, match=r"more than the allowed share of 0\.1"):
            verb(models, **given)  # type: ignore[operator]
        verb(models, max_failures=0.5, **given)  # type: ignore[operator]


def test_classify(folder: Path, tmp_path: Path) -> None:
    image = folder / "pets" / "red" / "0.png"
    found = classify(str(folder / "student"), image, labels=["red", "green"], templates="none", out=tmp_path / "b.png")
    assert {score["label"] for score in found["scores"]} == {"red", "green"}
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    asked = classify(str(folder / "student"), image, question="what colour is it?", answers=["red", "green"])
    assert asked["question"] == "what colour is it?"


def test_what_cannot_be_measured_is_refused(folder: Path, tmp_path: Path) -> None:
    model, image = str(folder / "student"), folder / "pets" / "red" / "0.png"
    for wrong in (
        {},
        {"labels": ["a", "b"], "question": "what?"},
        {"question": "what is it?"},
        {"answers": ["a", "b"]},
    ):
        with pytest.raises(ConfigError, match="either --labels"):
            classify(model, image, **wrong)
    with pytest.raises(BadImageError, match=r"missing\.png"):
        classify(model, tmp_path / "missing.png", labels=["a", "b"])
    with pytest.raises(ConfigError, match="no data"):
        evaluate(model, [], out=tmp_path)
    with pytest.raises(ConfigError, match="each data set once"):
        evaluate(model, ["folder:x", "folder:x"], out=tmp_path)
    with pytest.raises(ConfigError, match="no model"):
        compare([], [f"folder:{folder / 'pets'}"], out=tmp_path)


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("a",), "a"),
        (("teacher", "student"), "student against teacher"),
        (("teacher", "student", "twin"), "student and twin against teacher"),
        (("t", "a", "b", "c", "d"), "4 models against t"),
    ],
)
def test_a_title_names_what_one_came_for(names: tuple[str, ...], title: str) -> None:
    from types import SimpleNamespace

    assert measuring._title(SimpleNamespace(names=names)) == title  # type: ignore[arg-type]
