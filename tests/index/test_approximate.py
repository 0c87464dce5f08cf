"""A collection with a vector store beside its rows: what the store does not know, or gets wrong, is never seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import pytest
from tests.index.made import drawn, rows

from clipette.errors import ConfigError, StoreError
from clipette.index import Collection, Filter, Found, Row, create, lance, open_index, recall, tidying
from clipette.index import collection as collection_room
from clipette.index.derived import check_store
from clipette.index.filters import parse_filter
from clipette.index.recall import SELECTIVITIES, Asked, Measurement, measure_recall, raise_until, recall_of

pytestmark = pytest.mark.slow
DIM, COUNT = 32, 1500


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "QUERIES", 25)


# Milvus takes six seconds a test here; every time it is asked what test_conformance.py asks, here in make test-bench.
@pytest.fixture(params=["lance", pytest.param("milvus", marks=pytest.mark.bench)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Collection]:
    store = "lance" if request.param == "lance" else request.getfixturevalue("milvus_address")
    with create(tmp_path / "my.index", space="s", dim=DIM, store=store, exact_rows=100) as collection:
        collection.add_rows(rows(COUNT), drawn(COUNT, DIM))
        yield collection


def same(collection: Collection, queries, k=10, where=None, kind=None) -> None:
    """The approximate answer is the exact one (the graph is searched so widely that it misses nothing)."""
    collection.set_effort(1500)
    found = collection.search_vectors(queries, k, where, False, kind)
    truth = collection.search_vectors(queries, k, where, True, kind)
    assert found.keys == truth.keys
    for ours, theirs in zip(found.scores, truth.scores, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-20)


def test_the_store_is_made_by_itself_and_used(made: Collection) -> None:
    assert made.manifest.derived is not None
    assert made.manifest.derived.synced == 1
    assert not made.searches_exactly()
    assert made.searches_exactly(SELECTIVITIES["1%"])
    queries = drawn(6, DIM, 1)
    with patch.object(collection_room, "exact_search", side_effect=AssertionError("searched exactly")):
        made.search_vectors(queries, 10)
        made.search_vectors(queries, 10, "year > 2005", kind="image")
    same(made, queries)
    same(made, queries, where="year > 2005 and domain = 'it''s'")
    same(made, queries, where="score > 10", kind="text")
    same(made, queries, k=1000)


def test_writes_are_seen_before_the_store_knows_them(made: Collection) -> None:
    queries = drawn(5, DIM, 2)
    best = made.search_vectors(queries, 3, exact=True)
    made.delete([best.keys[0][0], best.keys[1][0]])
    made.add_rows([Row("new", "image", meta={"year": 1})], queries[2:3])
    made.add_rows([Row(best.keys[3][0], "image", meta={"year": 7})], drawn(1, DIM, 77))
    assert made.manifest.derived is not None
    assert made.manifest.derived.synced == 1
    assert made.info()["not_in_store"] == 4
    same(made, queries)
    assert made.search_vectors(queries[2:3], 1, exact=False).keys == [["new"]]
    assert made.search_vectors(queries[2:3], 1, "year = 1", False).keys == [["new"]]
    # A filter is judged by what a row is now, not by what the store still holds of it.
    assert best.keys[3][0] in made.search_vectors(queries, 5, "year = 7", False).keys[0]
    made.optimize()
    assert made.manifest.derived.synced == made.generation == 4
    same(made, queries)
    assert made.verify(recall=False)["sound"]


def test_the_store_is_brought_up_to_date_when_it_is_far_behind(made: Collection) -> None:
    with patch.multiple(tidying, TAIL_ROWS=50, TAIL_SHARE=0.0):
        for start in range(0, 120, 10):
            made.add_rows([Row(f"later{i}", "image") for i in range(start, start + 10)], drawn(10, DIM, start))
    assert made.manifest.derived is not None
    assert made.manifest.derived.synced > 5
    same(made, drawn(5, DIM, 3))
    assert made.verify(recall=False)["sound"]


def test_columns_that_came_later_are_filtered_exactly_until_a_rebuild(made: Collection) -> None:
    made.add_rows([Row("new", "image", meta={"late": "x"})], drawn(1, DIM, 5))
    where = parse_filter("late is null", made.columns)
    assert made.searches_exactly(where)
    same(made, drawn(3, DIM, 6), where="late is null")
    made.rebuild()
    assert not made.searches_exactly(where)
    same(made, drawn(3, DIM, 6), where="late is null")


def test_readers_see_one_state_and_follow(made: Collection) -> None:
    queries = drawn(4, DIM, 7)
    with open_index(made.path) as reader:
        before = reader.search_vectors(queries, 10, exact=False)
        gone = [keys[0] for keys in before.keys]
        made.delete(gone)
        made.optimize()
        assert [set(gone) & set(keys) for keys in reader.search_vectors(queries, 10, exact=True).keys] != [set()] * 4
        assert reader.refresh()
        after = reader.search_vectors(queries, 10, exact=False)
        assert not set(gone) & {key for keys in after.keys for key in keys}
        assert reader.generation == made.generation


def test_a_store_that_is_lost_costs_time_and_no_results(made: Collection, caplog: pytest.LogCaptureFixture) -> None:
    if made.manifest.store != "lance":
        pytest.skip("a server's data are its own")
    queries = drawn(4, DIM, 8)
    truth = made.search_vectors(queries, 10, exact=True)
    made.close()
    assert made.manifest.derived is not None
    shutil.rmtree(made.path / str(made.manifest.derived.place["folder"]))
    with open_index(made.path, write=True) as again:
        assert again.search_vectors(queries, 10).keys == truth.keys
        assert "searched exactly" in caplog.text
        report = again.verify()
        assert not report["sound"]
        assert "clipette index rebuild" in report["damaged"][0]
        again.rebuild()
        assert again.verify()["sound"]
        same(again, queries)


@pytest.mark.parametrize("what", ["data", "_indices", "_versions"])
def test_a_damaged_store_is_said_and_mends_itself(what: str, tmp_path: Path) -> None:
    with create(tmp_path / "i", space="s", dim=DIM, exact_rows=100) as collection:
        collection.add_rows(rows(COUNT), drawn(COUNT, DIM))
        assert collection.verify(recall=False)["sound"]
        assert collection.manifest.derived is not None
        folder = collection.path / str(collection.manifest.derived.place["folder"])
    for path in folder.rglob(f"{what}/**/*"):
        if path.is_file():
            path.write_bytes(b"")  # as after a power cut: LanceDB syncs nothing
    with open_index(tmp_path / "i", write=True) as again:
        report = again.verify()
        assert not report["sound"]
        assert "clipette index rebuild" in report["damaged"][0]
        queries = drawn(4, DIM, 8)
        assert again.search_vectors(queries, 10).keys == again.search_vectors(queries, 10, exact=True).keys
        if what != "_indices":  # a broken graph alone is seen by those who search it
            again.add_rows([Row("new", "image")], drawn(1, DIM, 5))
            again.optimize()
            assert again.verify(recall=False)["sound"]
            same(again, queries)


def test_every_graph_is_searched_also_when_rows_were_deleted_since(tmp_path: Path) -> None:
    made = lance.partitions(610_000)
    assert made == 2
    assert lance.probes(590_000, lance.EFFORT) >= made


def test_a_manifest_of_others_names_no_folder_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with create(tmp_path / "i", space="s", dim=DIM, exact_rows=100) as collection:
        collection.add_rows(rows(COUNT), drawn(COUNT, DIM))
    manifest = json.loads((tmp_path / "i" / "index.json").read_text())
    manifest["derived"]["place"]["folder"] = "../mine"
    (tmp_path / "i" / "index.json").write_text(json.dumps(manifest))
    with open_index(tmp_path / "i", write=True) as again:
        assert again.search_vectors(drawn(1, DIM), 3) is not None
        assert not again.verify(recall=False)["sound"]
        again.rebuild()
        assert again.verify(recall=False)["sound"]
    assert (tmp_path / "mine").is_dir()


def test_a_server_index_that_is_made_anew_answers_meanwhile(tmp_path: Path) -> None:
    made: list[str] = []

    class Server:
        columns: ClassVar[dict[str, str]] = {}

        def upsert(self, rows) -> None:
            assert made[-1:] != made[-2:-1], "the collection that is searched was replaced by a half one"

        def optimize(self) -> None: ...
        def drop(self) -> None: ...
        def close(self) -> None: ...
        def count(self) -> int:
            return 50

    def created(reference: str, name: str, **more: object) -> Server:
        made.append(name)
        return Server()

    with (
        patch("clipette.index.milvus.create_milvus", created),
        patch("clipette.index.milvus.open_milvus", lambda *args, **more: Server()),
        create(tmp_path / "i", space="s", dim=DIM, store="milvus://h:1", exact_rows=100) as collection,
    ):
        collection.add_rows(rows(50), drawn(50, DIM))
        collection._tidier.remake()
        collection._tidier.remake()
        assert collection.manifest.derived is not None
        assert collection.manifest.derived.place["name"] == made[-1] == made[0]
        assert made[1] == f"{made[0]}b"


def test_a_server_that_is_away_is_said_and_writes_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(tmp_path / "i", space="s", dim=DIM, store="milvus://127.0.0.1:9", exact_rows=10) as collection:
        with patch("pymilvus.MilvusClient", side_effect=_away()):
            collection.add_rows(rows(50), drawn(50, DIM))
            assert "could not be tidied now" in caplog.text
            with pytest.raises(StoreError, match="refused or did not answer"):
                collection.optimize()
            assert len(collection.search_vectors(drawn(1, DIM), 5).keys[0]) == 5
        assert len(collection) == 50


def _away() -> Exception:
    from pymilvus.exceptions import MilvusException

    return MilvusException(message="no server")


@pytest.mark.parametrize(
    "bad", ["postgres", "milvus://", "milvus://host", "milvus://a@b:1", "milvus://h:1/x", "milvusx://h:1"]
)
def test_stores_are_named_rightly(bad: str) -> None:
    with pytest.raises(ConfigError, match="--store"):
        check_store(bad)
    check_store("milvus://host:19530")


# ---------------------------------------------------------------- recall


def test_recall_by_hand() -> None:
    exact = Found([["a", "b", "c"], ["q", "x", "y"]], [np.float32([0.9, 0.8, 0.7]), np.float32([1, 0.5, 0.5])])
    found = Found([["a", "c", "d"], ["q", "y", "z"]], [np.float32([0.9, 0.7, 0.6]), np.float32([1, 0.5, 0.1])])
    # First: of a, b only a. Second: q is the query itself; x and y are equally near, so y is right.
    assert recall_of(found, exact, [None, "q"], 2) == pytest.approx((0.5 + 0.5) / 2)
    assert recall_of(found, exact, [None, "q"], 1) == 1.0
    assert recall_of(exact, exact, [None, None], 3) == 1.0


def test_effort_is_raised_until_the_asked_recall(made: Collection) -> None:
    made.set_effort(1)
    low = raise_until(made, 0.5)
    assert low["met"]
    high = raise_until(made, 0.999)
    assert high["met"]
    assert high["recall"]["all"] >= 0.999
    assert high["queries"] == 75  # images, texts, and strays in place of texts that people typed
    assert high["effort"] >= low["effort"]
    assert made.facts["recall"] == high
    assert made.manifest.derived is not None
    assert made.manifest.derived.effort == high["effort"]
    assert high["search"] == {"all": "approximate", "10%": "approximate", "1%": "exact"}
    assert measure_recall(made)["recall"] == high["recall"]


class Blind:
    """A collection whose graph never finds the best row."""

    def __init__(self, collection: Collection) -> None:
        self.inner = collection

    def searches_exactly(self, where: Filter | None, kind: str | None) -> bool:
        return False

    def search_vectors(self, queries, k, where=None, exact=None, kind=None) -> Found:
        found = self.inner.search_vectors(queries, k, where, True, kind)
        return found if exact else Found([keys[1:] for keys in found.keys], [scores[1:] for scores in found.scores])


def test_a_graph_that_misses_rows_is_measured_so(made: Collection) -> None:
    queries = drawn(10, DIM, 4)
    measurement = Measurement(Blind(made), [Asked(queries, None, [None] * 10)])  # type: ignore[arg-type]
    assert measurement.recall("all") == pytest.approx(0.9)
    assert measurement.recall("1%") == pytest.approx(0.9, abs=0.02)
