"""Which folders an index may read images from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipette.data.refs import FileImage
from clipette.index.places import NOWHERE, file_of, place_of, with_roots


def test_roots_are_the_folders_of_files_that_are_there(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    files = [str(tmp_path / name) for name in ("a/1.png", "b/2.png")]
    assert with_roots((), files) == (str(tmp_path),)
    assert with_roots((str(tmp_path / "a"),), files) == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_dangling_link_opens_no_folder(tmp_path: Path) -> None:
    link = tmp_path / "x.jpg"
    link.symlink_to("/nonexistent")
    path = file_of(FileImage(str(link)))
    assert path == "/nonexistent"
    assert with_roots((), [path]) == ()


def test_the_whole_disk_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    assert with_roots((), ["/x.png"]) == ()
    image = FileImage("/nonexistent.png")
    assert place_of(image, with_roots((), ["/nonexistent.png"])) == NOWHERE
