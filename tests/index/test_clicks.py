"""The click log: whole lines whatever happens, private, and read as judgements."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest
from tests.index.meaning import SCENES, Meaning, build

from clipette.errors import DataError
from clipette.index.clicked import evaluate_clicks
from clipette.index.clicks import Click, ClickLog, judged, read_clicks
from clipette.index.query import Query
from clipette.index.search import Searcher


def click(text: str, key: str, rank: int = 1, action: str = "open") -> Click:
    return Click(Query.parse(text).describe(), key, rank, action)


def test_written_and_read_back(tmp_path: Path) -> None:
    log = ClickLog(tmp_path / "clicks.jsonl")
    first = Click(Query.parse("beach -people").describe(), "a\n'é", 3, "like", ("b", "a\n'é"), 7)
    log.append(first)
    log.append(click("dog", "b"))
    found = read_clicks(log.path)
    assert found.clicks[0] == first
    assert [each.key for each in found.clicks] == ["a\n'é", "b"]
    assert found.skipped == ()
    assert first.query == {"text": "beach", "negatives": ["people"]}
    assert first.time.endswith("+00:00")
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600, "queries are private"
    assert len(log.path.read_bytes().splitlines()) == 2


def test_a_line_cut_by_a_crash_costs_that_line_alone(tmp_path: Path) -> None:
    log = ClickLog(tmp_path / "clicks.jsonl")
    log.append(click("dog", "a"))
    log.append(click("dog", "b"))
    log.path.write_bytes(log.path.read_bytes()[:-20])
    ClickLog(log.path).append(click("dog", "c"))
    found = read_clicks(log.path)
    assert [each.key for each in found.clicks] == ["a", "c"]
    assert found.skipped == (2,)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[1]",
        "7",
        "nonsense",
        '{"v":99}',
        "\x00\x00",
        json.dumps({"v": 1, "query": {}, "key": "a", "rank": 0, "action": "open", "shown": [], "generation": None,
                    "time": ""}),
        json.dumps({"v": 1, "query": 3, "key": "a", "rank": 1, "action": "open", "shown": [], "generation": None,
                    "time": ""}),
    ],
)  # fmt: skip
def test_strange_lines_are_counted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "clicks.jsonl"
    path.write_text(f"{line}\n")
    ClickLog(path).append(click("dog", "a"))
    found = read_clicks(path)
    assert [each.key for each in found.clicks] == ["a"]
    assert found.skipped == (1,)


def test_many_threads_and_two_logs_of_one_file(tmp_path: Path) -> None:
    logs = [ClickLog(tmp_path / "clicks.jsonl"), ClickLog(tmp_path / "clicks.jsonl")]
    threads = [
        threading.Thread(target=lambda n=n: [logs[n % 2].append(click("dog", f"{n}-{i}")) for i in range(10)])
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_clicks(tmp_path / "clicks.jsonl")
    assert {each.key for each in found.clicks} == {f"{n}-{i}" for n in range(6) for i in range(10)}
    assert found.skipped == ()


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no action 'stare'"):
        click("dog", "a", action="stare")
    with pytest.raises(DataError, match="ranks count from 1"):
        click("dog", "a", rank=0)
    with pytest.raises(DataError, match="cannot be written"):
        ClickLog(tmp_path / "no" / "clicks.jsonl").append(click("dog", "a"))
    with pytest.raises(DataError, match="no click log"):
        read_clicks(tmp_path / "none.jsonl")


def test_judgements() -> None:
    clicks = [
        click("dog", "a", 4),
        click("dog", "b", 2, "like"),
        click("cat", "c", 1),
        click("dog", "b", 2, "dislike"),
        click("dog", "d", 9, "more_like_this"),
        click("car", "e", 1, "dislike"),
        Click(Query(image=b"x").describe(), "f", 1),
    ]
    found = judged(clicks)
    assert [(each.query["text"], each.chosen, each.best_rank, each.clicks) for each in found] == [
        ("dog", ("a", "d"), 4, 4),
        ("cat", ("c",), 1, 1),
    ]


def test_an_evaluation_by_hand(tmp_path: Path) -> None:
    with build(tmp_path / "i", SCENES, texts={"t": "a dog"}) as collection:
        searcher = Searcher(collection, Meaning())
        dogs = [hit.key for hit in searcher.search("dog", k=30).hits]
        snow = [hit.key for hit in searcher.search("snow -people", k=30).hits]
        clicks = [
            click("dog", dogs[2], 10),
            click("dog", dogs[6], 1),
            click("snow -people", snow[0], 2),
            click("cat", "deleted since", 1),
            click("boat", "boat-beach-0", 1, "dislike"),
            Click(Query(key="deleted since").describe(), dogs[0], 1),
        ]
        report = evaluate_clicks(searcher, clicks)
        assert (report.queries, report.clicks, report.gone, report.unanswerable) == (2, 3, 1, 2)
        assert {k: each.value for k, each in report.hit.items()} == {1: 0.5, 5: 1.0, 10: 1.0}
        assert report.mrr.value == pytest.approx((1 / 3 + 1) / 2)
        assert report.mrr_then.value == pytest.approx((1 + 1 / 2) / 2)
        assert json.loads(json.dumps(report.to_json()))["hit@1"][0] == 0.5
        deep = evaluate_clicks(searcher, clicks[:1], ks=(1,), depth=1)
        assert (deep.mrr.value, deep.hit[1].value) == (0.0, 0.0), "not among those looked at"
        assert evaluate_clicks(searcher, [click("dog", "t", 1)], kind="text").hit[1].value == 1.0
        with pytest.raises(DataError, match="no click that says anything"):
            evaluate_clicks(searcher, clicks[3:5])
