from __future__ import annotations

from pathlib import Path

import pytest

from clipette import version


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(version, "__file__", str(tmp_path / "src" / "clipette" / "version.py"))
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    return tmp_path / ".git"


def test_the_commit_of_a_checkout(checkout: Path) -> None:
    (checkout / "HEAD").write_text("ref: refs/heads/main\n")
    assert version.commit() is None
    (checkout / "packed-refs").write_text("# pack-refs\nbeef refs/heads/other\ncafe refs/heads/main\n")
    assert version.commit() == "cafe"
    (checkout / "refs" / "heads" / "main").write_text("f00d\n")
    assert version.commit() == "f00d"
    (checkout / "HEAD").write_text("d00d\n")
    assert version.commit() == "d00d"


def test_no_checkout_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "__file__", str(tmp_path / "a" / "b" / "version.py"))
    assert version.commit() is None
