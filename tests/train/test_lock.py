"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from clipette.errors import ConfigError
from clipette.train.anew import begin_anew
from clipette.train.lock import only_one

HOLD = """
import sys
from pathlib import Path
from clipette.train.lock import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        (out / "recipe.yaml").write_text("x")
        for attempt in (lambda: only_one(out).__enter__(), lambda: begin_anew(out)):
            with pytest.raises(ConfigError, match="another process is at work here: wait for it"):
                attempt()
        assert (out / "recipe.yaml").exists(), "what it writes is not removed beneath it"
        first.kill()
        first.wait()
    with only_one(out):
        pass
    begin_anew(out)
    assert not list(out.iterdir())


def test_where_nothing_can_be_locked_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_one(tmp_path), only_one(tmp_path):
        pass
