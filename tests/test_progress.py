from __future__ import annotations

import time

import pytest

from clipette import progress
from clipette.progress import track


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_PROGRESS", "1")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(progress, "PATIENCE", 0.05)


@pytest.mark.usefixtures("watched")
def test_slow_work_shows_description_rate_and_total(capfd: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in track([10, 10, 5], total=25, description="Pouring", size=lambda item: item):
        time.sleep(0.06)
        seen.append(item)
    out, err = capfd.readouterr()
    assert seen == [10, 10, 5]
    assert out == ""
    assert "Pouring" in err
    assert "25/25" in err
    assert "images/s" in err


@pytest.mark.usefixtures("watched")
def test_quick_work_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), description="Quick")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("watched")
def test_nested_bars_share_one_display_and_it_ends(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(2), description="Outer", unit="epochs"):
        time.sleep(0.06)
        for _ in track(range(2), description="Inner"):
            time.sleep(0.06)
    err = capfd.readouterr().err
    assert "Outer" in err
    assert "Inner" in err
    assert progress._DISPLAY._progress is None


@pytest.mark.usefixtures("watched")
def test_the_display_ends_when_the_loop_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    bars = track(range(100), description="Left early")
    for item in bars:
        time.sleep(0.06)
        if item == 2:
            break
    bars.close()  # type: ignore[attr-defined]
    assert progress._DISPLAY._progress is None


@pytest.mark.parametrize(
    ("setting", "rank", "expected"),
    [("1", "0", True), ("1", "1", False), ("0", "0", False), ("", "0", False)],
)
def test_when_bars_are_wanted(monkeypatch: pytest.MonkeyPatch, setting: str, rank: str, expected: bool) -> None:
    monkeypatch.setenv("CLIPETTE_PROGRESS", setting)
    monkeypatch.setenv("RANK", rank)
    assert progress.wanted() is expected


def test_disabled_is_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_PROGRESS", "1")
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert list(track(iter("ab"), description="Off", enabled=False)) == ["a", "b"]
    assert capfd.readouterr().err == ""


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CLIPETTE_PROGRESS", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(progress, "LINES", 0.05)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    for _ in track([10, 10, 5], total=25, description="Pouring", size=lambda item: item):
        time.sleep(0.06)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" images,")[0] for line in lines] == ["Pouring: 10/25", "Pouring: 20/25", "Pouring: 25/25"]
    assert lines[1].endswith("s left")
    monkeypatch.setenv("CLIPETTE_PROGRESS", "0")
    for _ in track(range(2), description="Silent"):
        time.sleep(0.06)
    assert capfd.readouterr().err == ""
