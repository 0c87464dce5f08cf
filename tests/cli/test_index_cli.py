from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clipette
from clipette.cli.app import main
from clipette.cli.index import COMMANDS


class FakeIndexing(ModuleType):
    """Stands for ``clipette.indexing``: records calls."""

    def __init__(self) -> None:
        super().__init__("clipette.indexing")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = {"sound": True}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def verb(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self.answer

        return verb


@pytest.fixture
def indexing(monkeypatch: pytest.MonkeyPatch) -> FakeIndexing:
    fake = FakeIndexing()
    monkeypatch.setitem(sys.modules, "clipette.indexing", fake)
    monkeypatch.setattr(clipette, "indexing", fake, raising=False)
    return fake


LINES = [
    (
        "build a/ wds:b.tar --model m -o my.index --texts captions --store milvus://h:1 --recall 0.9 "
        "--exact-rows 7 --max-failures 0.3 --batch-size 8 --device cpu",
        ("build", (["a/", "wds:b.tar"], "m", Path("my.index"))),
        {
            "texts": "captions",
            "store": "milvus://h:1",
            "recall": 0.9,
            "exact_rows": 7,
            "max_failures": 0.3,
            "batch_size": 8,
            "device": "cpu",
        },
    ),
    (
        "add my.index a/ --model m --texts none --prefix x/ --replace --batch-size 8 --device cpu",
        ("add", (Path("my.index"), ["a/"], "m")),
        {"texts": "none", "prefix": "x/", "replace": True, "batch_size": 8, "device": "cpu"},
    ),
    ("delete my.index k1 k2 --where 'n = 1'", ("delete", (Path("my.index"), ["k1", "k2"])), {"where": "n = 1"}),
    (
        "search my.index 'a dog' --model m --image p.jpg --like-key k --without cat --weight text=2 --weight image=0.5 "
        "-k 3 --where 'n > 1' --kind any --mmr 0.5 --group --threshold 0.25 --liked a,b --disliked c --exact "
        "--device cpu",
        ("search", (Path("my.index"), "a dog")),
        {
            "model": "m",
            "image": Path("p.jpg"),
            "key": "k",
            "negatives": ["cat"],
            "weights": {"text": 2.0, "image": 0.5},
            "k": 3,
            "where": "n > 1",
            "kind": "any",
            "mmr": 0.5,
            "group": True,
            "threshold": 0.25,
            "liked": ["a", "b"],
            "disliked": ["c"],
            "exact": True,
            "device": "cpu",
        },
    ),
    (
        "verify my.index --no-recall --queries wds:t.tar --model s --own t --device cpu",
        ("verify", (Path("my.index"),)),
        {"recall": False, "queries": "wds:t.tar", "model": "s", "own": "t", "device": "cpu"},
    ),
    (
        "rebuild my.index --recall 0.99 --model m --device cpu",
        ("rebuild", (Path("my.index"),)),
        {"recall": 0.99, "model": "m", "device": "cpu"},
    ),
    (
        "clicks my.index c.jsonl --model m --device cpu",
        ("clicks", (Path("my.index"), Path("c.jsonl"))),
        {"model": "m", "device": "cpu"},
    ),
    ("info my.index", ("info", (Path("my.index"),)), {}),
]


@pytest.mark.parametrize(("line", "called", "options"), LINES, ids=[line.split()[0] for line, _, _ in LINES])
def test_every_option_arrives(
    indexing: FakeIndexing, capsys: pytest.CaptureFixture[str], line: str, called: tuple, options: dict[str, Any]
) -> None:
    assert main(["index", *shlex.split(line)]) == 0
    assert indexing.calls == [(*called, options)]
    assert json.loads(capsys.readouterr().out) == {"sound": True}


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_right(indexing: FakeIndexing, command: str) -> None:
    for line in COMMANDS[command][1].splitlines():
        words = shlex.split(line, comments=True)
        assert words[:3] == ["clipette", "index", command]
        assert main(words[1:]) == 0
    assert {name for name, _, _ in indexing.calls} == {command}


def test_an_unsound_index_is_exit_code_one(indexing: FakeIndexing) -> None:
    indexing.answer = {"sound": False}
    assert main(["index", "verify", "my.index"]) == 1


@pytest.mark.parametrize("threshold", ["auto", "none"])
def test_thresholds_in_words(indexing: FakeIndexing, threshold: str) -> None:
    assert main(["index", "search", "i", "x", "--threshold", threshold]) == 0
    assert indexing.calls[0][2]["threshold"] == (None if threshold == "none" else "auto")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search i x --threshold high", "--threshold high: expected auto, none, or a cosine"),
        ("search i x --weight text", "--weight text: expected PART=NUMBER"),
        ("search i x --weight text=much", "--weight text=much: expected PART=NUMBER"),
    ],
)
def test_bad_options_are_said(
    indexing: FakeIndexing, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(["index", *line.split()]) == 2
    assert message in capsys.readouterr().err
    assert indexing.calls == []


def test_a_person_gets_a_table(
    indexing: FakeIndexing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    hit = {"rank": 1, "key": "[red]dogs/1", "score": 0.31, "text": None, "location": "photos/1.jpg", "confidence": 0.97,
           "fits": False, "duplicates": ["dogs/2"]}  # fmt: skip
    indexing.answer = {"hits": [hit], "calibrated": True, "below_threshold": True, "took_ms": 3.0}
    assert main(["index", "search", "i", "a dog", "--model", "m"]) == 0
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split())
    assert "1 0.310 97% [red]dogs/1 (+1 alike) photos/1.jpg" in said
    assert "nothing fits well" in said
    assert "1 results in 3 ms" in said
