"""The verb that studies prompts, end to end, and its command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.train.tiny import CLASSES, picture, student

from clipette.cli.app import main
from clipette.errors import ConfigError
from clipette.models.saved import save_model
from clipette.prompting import prompts

NAMES = ["results.json", "results.csv", "confusions.csv", "report.html", "summary.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prompting")
    for label, name in enumerate(CLASSES):
        for index in range(4):
            path = root / "pets" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(label, index))
    save_model(student(7), root / "model", name="teacher", card={})
    (root / "cupl.json").write_text(json.dumps({name: [f"something {name}"] for name in CLASSES}))
    return root


def test_everything_is_written_and_the_last_line_says_what(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prompts", str(folder / "model"), "--data", f"folder:{folder / 'pets'}", "--out", str(tmp_path / "out")]
    line += ["--templates", "wordings", "--templates", "a {} thing", "--baseline", "the {}", "--seed", "3"]
    assert main([*line, "--descriptions", str(folder / "cupl.json"), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == said
    assert said["baseline"]["wording"] == "the {}"
    assert {"cupl", "best on dev", "greedy on dev", "weighted on dev"} == set(said["wordings"])
    with (tmp_path / "out" / "results.csv").open() as file:
        names = [row["wording"] for row in csv.DictReader(file)]
    assert names[:6] == ["a {}", "the {}", "photo of a {}", "a {} thing", "cupl", "wordings"]
    assert "weighted on dev" in printed.err


def test_other_images_to_choose_on(folder: Path, tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        path = tmp_path / "dev" / name / "9.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(label, 9))
    summary = prompts(
        str(folder / "model"),
        f"folder:{folder / 'pets'}",
        dev=f"folder:{tmp_path / 'dev'}",
        templates=["single", "plain"],
        out=tmp_path / "out",
    )
    assert summary["images"] == {"dev": len(CLASSES), "test": 4 * len(CLASSES)}


def test_wrong_input_is_explained(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["prompts", str(folder / "model"), "--data", f"folder:{folder / 'pets'}", "--out", str(tmp_path)]
    assert main([*line, "--templates", "opanai80"]) == 2
    assert "did you mean 'openai80'?" in capsys.readouterr().err
    (tmp_path / "cupl.json").write_text("{}")
    with pytest.raises(ConfigError, match="one name"):
        prompts("m", "d", out=tmp_path, descriptions=[folder / "cupl.json", tmp_path / "cupl.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["cupl.json"], "nothing is written of a study that failed"


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipette import verbs

    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(verbs, "prompts", lambda *args, **options: calls.append((args, options)) or {})
    line = "prompts m --data d --out o --dev e --templates a --templates b --descriptions c.json --baseline a --texts t"
    assert main([*line.split(), "--seed", "4", "--batch-size", "8", "--max-failures", "0.3", "--device", "cpu"]) == 0
    options = {"out": Path("o"), "dev": "e", "templates": ["a", "b"], "descriptions": [Path("c.json")]}
    options |= {"baseline": "a", "texts": "t", "seed": 4, "batch_size": 8, "max_failures": 0.3, "device": "cpu"}
    assert calls == [(("m", "d"), options)]
