from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.index.made import DIM, drawn, vector_of

from clipette.errors import StoreError
from clipette.index import Row, create, merging, open_index, shards, snapshot

KEYS = [f"key{i}" for i in range(12)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("delete"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)),
        st.tuples(st.sampled_from(["merge", "optimize", "reopen"]), st.just([])),
    ),
    max_size=16,
)


@settings(max_examples=25)
@given(STEPS, st.sampled_from([2, 3, 100]), st.sampled_from([0, 3, 20_000]))
def test_any_sequence_of_writes_and_merges_leaves_what_a_dictionary_would(steps, run: int, recent: int) -> None:
    model: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.multiple(merging, RUN=run, SMALL=2, SHARD_ROWS=5),
        patch.object(snapshot, "MOST_RECENT", recent),
        patch.object(os, "fsync"),  # what survives a power cut is not asked here, and disks are slow
    ):
        collection = create(Path(folder) / "i", space="s", dim=DIM)
        for version, (what, keys) in enumerate(steps):
            if what == "add":
                vectors = np.stack([vector_of(f"{key}/{version}".encode()) for key in keys])
                collection.add_rows([Row(key, "image", meta={"version": version}) for key in keys], vectors)
                model.update(dict.fromkeys(keys, version))
            elif what == "delete":
                assert collection.delete(keys) == sum(key in model for key in keys)
                model = {key: value for key, value in model.items() if key not in keys}
            elif what == "reopen":
                collection.close()
                collection = open_index(collection.path, write=True)
            elif what == "optimize":
                collection.optimize()
                assert sum(entry.gone for entry in collection.manifest.entries) == 0
            else:
                collection._tidier.merge()
            check(collection, model)
        collection.close()
        with open_index(collection.path) as reader:
            check(reader, model)
            assert reader.verify(recall=False)["sound"]
        files = {path.stem.partition(".")[0] for path in (collection.path / "rows").glob("*")}
        assert files <= {f"{entry.number:06d}" for entry in collection.manifest.entries}


def check(collection, model: dict[str, int]) -> None:
    assert set(collection.keys()) == set(model)
    assert len(collection) == len(model)
    keys = sorted(model)
    assert [row.meta["version"] for row in collection.rows(keys)] == [model[key] for key in keys]
    expected = [vector_of(f"{key}/{model[key]}".encode()) for key in keys]
    if keys:
        np.testing.assert_array_equal(collection.vectors(keys), np.stack(expected))
        assert collection.search_vectors(expected[0][None], 1).keys == [[keys[0]]]


def test_many_small_writes_stay_few_entries_and_rows_are_rewritten_seldom(tmp_path: Path) -> None:
    written = 0
    with create(tmp_path / "i", space="s", dim=DIM) as collection:
        real = merging.write_entry

        def counted(*args, **kwargs):
            nonlocal written
            entry = real(*args, **kwargs)
            written += entry.rows
            return entry

        vectors = drawn(150)
        with patch.object(merging, "write_entry", counted), patch.object(os, "fsync"):
            for i in range(150):
                collection.add_rows([Row(f"k{i}", "image")], vectors[i : i + 1])
        assert len(collection.manifest.entries) <= 30
        assert written < 150 * 12
        assert len(collection) == 150


@pytest.mark.parametrize("size", [65, 100])
def test_larger_writes_stay_few_entries_too(size: int, tmp_path: Path) -> None:
    with create(tmp_path / "i", space="s", dim=4) as collection, patch.object(os, "fsync"):
        vectors = drawn(size, 4)
        for i in range(40):
            collection.add_rows([Row(f"{i}/{j}", "image") for j in range(size)], vectors)
        # Each entry holds two files open: a thousand of them are more than a process may open.
        assert len(collection.manifest.entries) <= 15
        assert len(collection) == 40 * size


def test_many_superseded_rows_are_checked_at_once(tmp_path: Path) -> None:
    with create(tmp_path / "i", space="s", dim=4) as collection, patch.object(os, "fsync"):
        given = [Row(f"k{i}", "image") for i in range(3000)]
        collection.add_rows(given, drawn(3000, 4))
        collection.add_rows(given[:600], drawn(600, 4, 1))
        asked: list[int] = []
        real = shards.Shard.key
        with patch.object(shards.Shard, "key", lambda shard, row: asked.append(row) or real(shard, row)):
            assert len(snapshot.load_snapshot(collection.path)) == 3000
        assert len(asked) < 100


def test_whoever_tidies_is_waited_for_before_the_next_writer_is_let_in(tmp_path: Path) -> None:
    collection = create(tmp_path / "i", space="s", dim=DIM)
    collection.add_rows([Row(f"k{i}", "image") for i in range(100)], drawn(100))
    collection.delete([f"k{i}" for i in range(20)])
    begun, go_on = threading.Event(), threading.Event()
    real, refused = merging.write_entry, []

    def slow(*args, **kwargs):
        begun.set()
        go_on.wait(10)
        with pytest.raises(StoreError, match="is writing"):
            open_index(collection.path, write=True)
        refused.append(True)
        return real(*args, **kwargs)

    with patch.object(merging, "write_entry", slow):
        tidying = threading.Thread(target=collection.optimize)
        tidying.start()
        assert begun.wait(10)
        closing = threading.Thread(target=collection.close)
        closing.start()
        time.sleep(0.05)
        go_on.set()
        closing.join()
        tidying.join()
    assert refused
    with open_index(collection.path, write=True) as again:
        assert len(again) == 80
        assert again.verify(recall=False)["sound"]


def test_an_entry_that_is_mostly_dead_is_rewritten(tmp_path: Path) -> None:
    with create(tmp_path / "i", space="s", dim=DIM) as collection:
        collection.add_rows([Row(f"k{i}", "image") for i in range(200)], drawn(200))
        collection.delete([f"k{i}" for i in range(100)])
        assert collection.manifest.entries[0].rows == 100
        assert collection.info()["superseded"] == 0


def test_writes_go_on_while_entries_are_merged(tmp_path: Path) -> None:
    collection = create(tmp_path / "i", space="s", dim=DIM)
    collection.add_rows([Row(f"old{i}", "image") for i in range(300)], drawn(300))
    stop = threading.Event()
    errors: list[BaseException] = []

    def merged() -> None:
        try:
            while not stop.is_set():
                collection._tidier.merge(everything=True)
                time.sleep(0.01)
        except BaseException as error:
            errors.append(error)

    def searched() -> None:
        try:
            while not stop.is_set():
                found = collection.search_vectors(drawn(1), 5)
                assert len(found.keys[0]) == 5
                time.sleep(0.002)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=merged), threading.Thread(target=searched)]
    for thread in threads:
        thread.start()
    for i in range(30):
        collection.add_rows([Row(f"new{i}", "image")], drawn(1, seed=i))
        collection.delete([f"old{i}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(collection.keys()) == {f"new{i}" for i in range(30)} | {f"old{i}" for i in range(30, 300)}
    collection.close()
    with open_index(tmp_path / "i") as reader:
        assert len(reader) == 300
        assert reader.verify(recall=False)["sound"]


def test_two_keys_of_one_hash_do_not_hide_each_other(tmp_path: Path) -> None:
    from clipette.errors import InternalError

    with create(tmp_path / "i", space="s", dim=DIM) as collection:
        flat = lambda keys: np.zeros(len(keys), np.uint64)  # noqa: E731
        with patch.object(shards, "hash_keys", flat), patch.object(snapshot, "hash_keys", flat):
            collection.add_rows([Row("a", "image"), Row("b", "image")], drawn(2))
            with pytest.raises(InternalError, match="share the hash"):
                open_index(collection.path)
