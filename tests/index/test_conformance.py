"""One suite for every backing of ``VectorStore``: LanceDB in the process and a real Milvus server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.index.made import drawn

from clipette.errors import StoreError
from clipette.index import VectorRows, VectorStore, parse_filter
from clipette.index.filters import BUCKET, Compare, Filter
from clipette.index.store import Value
from clipette.metrics.similarity import cosines
from clipette.store.rows import hash_keys
from clipette.types import Floats

pytestmark = pytest.mark.slow

DIM = 24
COLUMNS = {"year": "int", "size": "float", "domain": "text", "kept": "bool", "odd name": "text"}
DOMAINS = ("photo", "it's", 'say "x"', "a%b", "", None)
NUMBERS = itertools.count()


def column_values(count: int) -> dict[str, list[Value]]:
    return {
        "year": [None if i % 7 == 0 else 2000 + i % 20 for i in range(count)],
        "size": [None if i % 5 == 0 else i / 4 for i in range(count)],
        "domain": [DOMAINS[i % len(DOMAINS)] for i in range(count)],
        "kept": [None if i % 11 == 0 else i % 2 == 0 for i in range(count)],
        "odd name": [f"n{i % 3}" for i in range(count)],
    }


def made_rows(count: int, seed: int = 0) -> VectorRows:
    keys = [f"key {i:05d}'\"\\%" for i in range(count)]
    kinds = ["text" if i % 4 == 3 else "image" for i in range(count)]
    return VectorRows(keys, drawn(count, DIM, seed), kinds, column_values(count))


@pytest.fixture(params=["lance", "milvus"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], VectorStore]]:
    """Makes new stores of one backing."""
    stores: list[VectorStore] = []

    def lance() -> VectorStore:
        from clipette.index.lance import create_lance

        stores.append(create_lance(tmp_path / f"lance{next(NUMBERS)}", dim=DIM, columns=COLUMNS))
        return stores[-1]

    def milvus() -> VectorStore:
        from clipette.index.milvus import create_milvus

        stores.append(create_milvus(address, f"test_{next(NUMBERS)}", dim=DIM, columns=COLUMNS))
        return stores[-1]

    if request.param == "milvus":
        address = request.getfixturevalue("milvus_address")
    yield lance if request.param == "lance" else milvus
    for store in stores:
        store.close()


def expected(rows: VectorRows, queries: Floats, k: int, chosen: list[int]) -> list[list[str]]:
    scores = cosines(queries, rows.vectors)
    return [[rows.keys[i] for i in sorted(chosen, key=lambda i: (-line[i], rows.keys[i]))[:k]] for line in scores]


def overlap(found: list[list[str]], wanted: list[list[str]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found, wanted, strict=True)]))


def test_what_goes_in_comes_out(make: Callable[[], VectorStore]) -> None:
    store, rows, queries = make(), made_rows(300), drawn(5, DIM, 1)
    assert store.count() == 0
    assert store.search(queries, 3).keys == [[]] * 5
    store.upsert(rows)
    assert store.count() == 300
    np.testing.assert_allclose(store.get([rows.keys[7], rows.keys[3]]), rows.vectors[[7, 3]], atol=1e-6)
    assert store.get([]).shape == (0, DIM)
    found = store.search(queries, 10, exact=True)
    assert found.keys == expected(rows, queries, 10, list(range(300)))
    np.testing.assert_allclose(found.scores[0], np.sort(queries[0] @ rows.vectors.T)[::-1][:10], atol=1e-5)
    with pytest.raises(StoreError, match="no row has the key 'nope'"):
        store.get(["nope"])
    with pytest.raises(StoreError, match="need vectors of shape"):
        store.upsert(VectorRows(["a"], drawn(1, DIM + 1), ["image"]))


def test_an_upsert_replaces_and_a_delete_removes(make: Callable[[], VectorStore]) -> None:
    store, rows, other = make(), made_rows(120), drawn(120, DIM, 9)
    store.upsert(rows)
    store.upsert(VectorRows(rows.keys[:20], other[:20], ["image"] * 20, {"year": [1] * 20}))
    assert store.count() == 120
    np.testing.assert_allclose(store.get(rows.keys[:1]), other[:1], atol=1e-6)
    assert store.search(other[:1], 1).keys == [[rows.keys[0]]]
    # Columns are replaced with the row: what is not given is unknown.
    changed = store.search(other[:1], 500, where=parse_filter("year = 1 and domain is null", COLUMNS), exact=True)
    assert sorted(changed.keys[0]) == list(rows.keys[:20])
    store.delete([*rows.keys[10:30], "not there", "' or 1=1 --"])
    assert store.count() == 100
    left = set(store.search(other[:1], 500, exact=True).keys[0])
    assert left == set(rows.keys[:10]) | set(rows.keys[30:])
    store.optimize()
    assert store.count() == 100
    assert set(store.search(other[:1], 500, exact=True).keys[0]) == left


FILTERS = [
    "year > 2010",
    "year > 2010.5 and year != 2012",
    "not (year > 2010)",
    "year in (2003, 2004, 2005.5)",
    "year not in (2003, 2004)",
    "year is null or size is null",
    "size >= 2 and size < 30.25",
    "domain = 'it''s'",
    "domain = 'say \"x\"' or domain = ''",
    "domain != 'photo'",
    "domain > 'b'",
    "domain like 'pho%'",
    "not domain like 'pho%'",
    "kept",
    "not kept",
    "kept is not null and \"odd name\" = 'n1'",
    "kind = 'text' and (year = 2001 or size > 10)",
    "key in ('key 00003''\"\\%', 'nope')",
    "not (domain = 'photo' or (kept and not year < 2015))",
]


def test_filters_match_the_same_rows_everywhere(make: Callable[[], VectorStore]) -> None:
    import pyarrow as pa

    store, rows, query = make(), made_rows(400), drawn(1, DIM, 2)
    store.upsert(rows)
    types = {"int": pa.int64(), "float": pa.float64(), "text": pa.large_string(), "bool": pa.bool_()}
    arrays = {name: pa.array(rows.columns[name], types[kind]) for name, kind in COLUMNS.items()}
    arrays |= {"key": pa.array(rows.keys), "kind": pa.array(rows.kinds)}
    for text in FILTERS:
        where = parse_filter(text, COLUMNS)
        assert store.can_filter(where)
        chosen = np.flatnonzero(where.mask(arrays.__getitem__)).tolist()
        assert 0 < len(chosen) < 400 or "nope" in text, text
        for exact in (True, False):
            found = store.search(query, 400, where=where, exact=exact, effort=500)
            assert sorted(found.keys[0]) == sorted(rows.keys[i] for i in chosen), (text, exact)


def test_what_cannot_be_filtered_is_said(make: Callable[[], VectorStore]) -> None:
    store = make()
    assert not store.can_filter(parse_filter("later = 1", {"later": "int"}))
    assert not store.can_filter(parse_filter("text = 'caption'", {}))
    assert store.can_filter(Filter(Compare(BUCKET, "<", 100)))


def test_the_graph_finds_nearly_all_filters_included(make: Callable[[], VectorStore]) -> None:
    count = 3000
    store, rows = make(), made_rows(count)
    store.upsert(rows)
    store.optimize()
    queries = drawn(20, DIM, 3)
    every = store.search(queries, 10, effort=200)
    assert overlap(every.keys, expected(rows, queries, 10, list(range(count)))) > 0.95
    for scores in every.scores:
        assert (np.diff(scores) <= 0).all()
    buckets = hash_keys(rows.keys) % 1000
    for limit in (100, 10):
        chosen = np.flatnonzero(buckets < limit).tolist()
        found = store.search(queries, 10, where=Filter(Compare(BUCKET, "<", limit)), effort=400)
        assert overlap(found.keys, expected(rows, queries, 10, chosen)) > 0.95
        assert set(itertools.chain(*found.keys)) <= {rows.keys[i] for i in chosen}
    # More effort finds no less.
    least = store.search(queries, 10, effort=10)
    truth = expected(rows, queries, 10, list(range(count)))
    assert overlap(every.keys, truth) >= overlap(least.keys, truth)
