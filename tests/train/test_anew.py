from __future__ import annotations

from pathlib import Path

import pytest

from clipette.errors import ConfigError
from clipette.train.anew import begin_anew


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds 'sub' and no run"):
        begin_anew(tmp_path)
    assert (tmp_path / "sub" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is a file"):
        begin_anew(tmp_path / "sub" / "thesis.txt")


@pytest.mark.parametrize("mark", ["recipe.yaml", "store/manifest.json", "runs/a/summary.json"])
def test_of_a_run_only_what_runs_write_is_removed(mark: str, tmp_path: Path) -> None:
    for name in (mark, "model/model.safetensors", "store-other/manifest.json", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    begin_anew(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: x")
    (run / "store").symlink_to(tmp_path / "elsewhere")
    begin_anew(run)
    assert not list(run.iterdir())
    assert (tmp_path / "elsewhere" / "kept.txt").is_file()


def test_nothing_is_nothing(tmp_path: Path) -> None:
    begin_anew(tmp_path / "none")
    begin_anew(tmp_path)
    assert tmp_path.is_dir()
