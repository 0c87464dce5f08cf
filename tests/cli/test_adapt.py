"""``clipette adapt``: every option arrives, and what does not go together is said."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tests.cli.test_cli import FakeVerbs, verbs

from clipette.cli.app import main

__all__ = ["verbs"]


def test_one_run_passes_everything_on(verbs: FakeVerbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.answer = Path("runs/x")
    line = "adapt coop --base b --data d --dev e --store s --set a.b=1 --set c=2 --out runs/x --no-resume --device cpu"
    assert main(shlex.split(line)) == 0
    name, args, options = verbs.calls[0]
    assert (name, args) == ("adapt", ("coop",))
    assert options == {
        "base": "b",
        "data": "d",
        "dev": "e",
        "out": Path("runs/x"),
        "store": Path("s"),
        "overrides": ["a.b=1", "c=2"],
        "resume": False,
        "device": "cpu",
    }
    assert capsys.readouterr().out == "runs/x\n"


def test_a_protocol_passes_everything_on(verbs: FakeVerbs) -> None:
    verbs.answer = {"table": []}
    line = (
        "adapt zero-shot coop --base b --data d --protocol cross-dataset --test x --test y --shots 1,2 --seeds 4 "
        "--set c=2 --out o"
    )
    assert main(shlex.split(line)) == 0
    name, args, options = verbs.calls[0]
    assert (name, args) == ("adapt_study", (["zero-shot", "coop"], "cross-dataset"))
    assert options == {
        "base": "b",
        "data": "d",
        "tests": ["x", "y"],
        "shots": [1, 2],
        "seeds": [4],
        "out": Path("o"),
        "overrides": ["c=2"],
        "resume": True,
        "device": None,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adapt coop kgcoop --base b --data d --out o", "belong to a comparison: name its --protocol"),
        ("adapt coop --base b --data d --shots 4 --out o", "belong to a comparison"),
        ("adapt coop --base b --data d --seeds 2 --out o", "--set seed=1"),
        ("adapt coop --base b --data d --protocol few-shot --dev e --out o", "draws its own --dev"),
        ("adapt coop --data d --protocol few-shot --out o", "needs --base and --data"),
        ("adapt coop --base b --data d --protocol few-shot --seeds 1,x --out o", "expected whole numbers"),
    ],
)
def test_what_does_not_go_together(
    verbs: FakeVerbs, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(shlex.split(line)) == 2
    assert message in capsys.readouterr().err
    assert not verbs.calls
