from __future__ import annotations

import json
import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipette.errors import ConfigError
from clipette.index.filters import DEEPEST, Compare, Filter, In, IsNull, Like, Not, both, equals, parse_filter
from clipette.index.filters import All as Conjunction
from clipette.index.filters import Any as Disjunction
from clipette.index.render import field_name, milvus_can, null_name, to_milvus, to_sql, typed_tree

COLUMNS = {"year": "int", "size": "float", "domain": "text", "kept": "bool", "odd name": "text", "and": "int"}
ROWS: list[dict[str, Any]] = [
    {"year": 2019, "size": 1.5, "domain": "photo", "kept": True, "odd name": "x", "and": 1},
    {"year": 2020, "size": 2.0, "domain": "art", "kept": False, "odd name": None, "and": 2},
    {"year": None, "size": None, "domain": None, "kept": None, "odd name": "it's", "and": None},
    {"year": 2021, "size": -3.25, "domain": "a%b_c", "kept": True, "odd name": "", "and": 3},
    {"year": 2022, "size": 2.0, "domain": "Photo", "kept": None, "odd name": 'say "x"', "and": 2},
]
TYPES = {"int": pa.int64(), "float": pa.float64(), "text": pa.large_string(), "bool": pa.bool_()}


def matching(where: Filter) -> list[int]:
    arrays = {name: pa.array([row[name] for row in ROWS], TYPES[kind]) for name, kind in COLUMNS.items()}
    return np.flatnonzero(where.mask(arrays.__getitem__)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("domain = 'photo' AND year > 2000", [0]),
        ("domain == 'photo' or year >= 2021", [0, 3, 4]),
        ("NOT domain = 'photo'", [1, 3, 4]),  # unknown is not matched by NOT either
        ("domain != 'photo'", [1, 3, 4]),
        ("domain <> 'photo' and not (year = 2020 or year = 2021)", [4]),
        ("year IN (2019, 2022, 2019)", [0, 4]),
        ("year not in (2019)", [1, 3, 4]),
        ("year in (2019.0, 2020.5)", [0]),
        ("year BETWEEN 2020 AND 2021 OR kept", [0, 1, 3]),
        ("year NOT BETWEEN 2020 AND 2021", [0, 4]),
        ("year > 2019.5 and size < -1e0", [3]),
        ("kept = false", [1]),
        ("kept", [0, 3]),
        ("not kept", [1]),
        ("domain IS NULL", [2]),
        ("kept is not null", [0, 1, 3]),
        ("domain LIKE 'ph%'", [0]),
        ("domain LIKE '%to'", [0, 4]),
        ("domain NOT LIKE '%o%'", [1, 3]),
        ("domain LIKE 'a_t'", [1]),
        ("\"odd name\" = 'it''s'", [2]),
        ('"odd name" = \'say "x"\'', [4]),
        ("\"odd name\" = ''", [3]),
        ('domain = "photo"', [0]),  # people write texts in double quotes
        ('"and" = 2', [1, 4]),
        ("size = -3.25", [3]),
        ("domain < 'b' and domain >= 'a'", [1, 3]),
        ("((((year = 2019))))", [0]),
        ("year > 2019 AND year > 2020 OR year = 2019", [0, 3, 4]),  # AND binds closer
    ],
)
def test_what_matches(text: str, expected: list[int]) -> None:
    assert matching(parse_filter(text, COLUMNS)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yaer > 2019", "unknown column 'yaer'; did you mean 'year'?"),
        ("quite_other = 1", "columns here: "),
        ("year > ", "expected a value .* at character 8, found the end"),
        ("year", "expected a comparison after 'year'"),
        ("year > 'x'", "'year' is a number, without quotes"),
        ("year > true", "'year' is a number"),
        ("domain = photo", "expected a value .* found photo"),
        ("domain = 3", "'domain' is text: put it in 'quotes'"),
        ("kept > true", "is true or false: compare it with = or !="),
        ("kept = 1", "'kept' is true or false"),
        ("year LIKE '2%'", "LIKE is for text, and 'year' is int"),
        ("domain LIKE 'a\\b'", "a backslash in LIKE"),
        ("domain = 'x", "a text that does not end at character 10"),
        ("year = 1; DROP TABLE x", "cannot read '; DROP TABLE' at character 9"),
        ("year = 1 year = 2", "expected AND, OR or the end at character 10"),
        ("(year = 1", "expected \\) at character 10"),
        ("year = 99999999999999999999", "fits in 64 bits"),
        ("size = 1e999", "a finite number"),
        ("year is 3", "expected NULL"),
        ("and = 2", "expected the name of a column at character 1, found and"),
        ("", "an empty filter"),
        ("   ", "an empty filter"),
        ("__bucket < 100", "unknown column '__bucket'"),
        ("(" * (DEEPEST + 3) + "year = 1" + ")" * (DEEPEST + 3), "nested more than"),
        ("not " * (DEEPEST + 3) + "kept", "nested more than"),
        ("year in (" + "1," * 3000 + "1)", "at most 4,000"),
        ("x" * 30_000, "at most 20,000"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_filter(text, COLUMNS)


def test_built_in_columns_and_joined_filters() -> None:
    where = parse_filter("kind = 'image' and key like 'a%'", {})
    assert where.columns == ("kind", "key")
    joined = both(where, None, equals("year", 3))
    assert joined is not None
    assert joined.columns == ("kind", "key", "year")
    assert both(None, None) is None
    assert both(where) == where
    assert hash(joined) == hash(both(where, equals("year", 3)))


# ---------------------------------------------------------------- engines agree with the mask

_TEXTS = st.sampled_from(["photo", "art", "it's", "", 'q"uo', "a%b_c", "Photo", "x' OR '1'='1", "\\", "é\n"])


def _leaves() -> st.SearchStrategy[Any]:
    operators = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
    years = st.one_of(st.integers(2018, 2023), st.sampled_from([2019.0, 2019.5, 2020.5, -1.25, 1e300, -1e300]))
    return st.one_of(
        st.builds(Compare, st.just("year"), operators, years),
        st.builds(Compare, st.just("size"), operators, st.sampled_from([1.5, 2, -3.25, 0.0])),
        st.builds(Compare, st.sampled_from(["domain", "odd name"]), operators, _TEXTS),
        st.builds(Compare, st.just("kept"), st.sampled_from(["=", "!="]), st.booleans()),
        st.builds(In, st.just("year"), st.lists(years, min_size=1, max_size=3).map(tuple)),
        st.builds(In, st.just("domain"), st.lists(_TEXTS, min_size=1, max_size=3).map(tuple)),
        st.builds(IsNull, st.sampled_from(sorted(COLUMNS))),
    )


def _trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def grown(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(parts, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Not, parts), st.builds(Conjunction, several), st.builds(Disjunction, several))

    return st.recursive(leaves, grown, max_leaves=6)


LIKES = st.builds(Like, st.just("domain"), st.sampled_from(["ph%", "%o", "a_t", "%", "a%b_c", "it's%"]))


def _database() -> sqlite3.Connection:
    base = sqlite3.connect(":memory:")
    base.execute("PRAGMA case_sensitive_like = ON")
    names = ", ".join(f"`{field_name(name)}`" for name in COLUMNS)
    base.execute(f"CREATE TABLE t (place, {names})")
    for place, row in enumerate(ROWS):
        values = [place, *(row[name] for name in COLUMNS)]
        base.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(values))})", values)
    return base


@given(_trees(st.one_of(_leaves(), LIKES)))
def test_sql_says_what_the_mask_says(tree: Any) -> None:
    base = _database()
    try:
        found = base.execute(f"SELECT place FROM t WHERE {to_sql(Filter(tree), COLUMNS)} ORDER BY place").fetchall()
    finally:
        base.close()
    assert [place for (place,) in found] == matching(Filter(tree))


@given(_trees(_leaves()))
def test_milvus_says_what_the_mask_says(tree: Any) -> None:
    expression = to_milvus(Filter(tree), COLUMNS)
    empty = {"int": 0, "float": 0.0, "text": "", "bool": False}
    found = []
    for place, row in enumerate(ROWS):
        names: dict[str, Any] = {"true": True, "false": False, "key": "some"}
        for name, kind in COLUMNS.items():
            names[field_name(name)] = empty[kind] if row[name] is None else row[name]
            names[null_name(name)] = row[name] is None
        # The language is close enough to Python's for its own operators to judge it.
        if eval(expression, {"__builtins__": {}}, names):
            found.append(place)
    assert found == matching(Filter(tree))


def test_values_are_written_as_each_engine_reads_them() -> None:
    nasty = "x' OR '1'='1\" \\ \n"
    where = equals("odd name", nasty)
    assert to_sql(where, COLUMNS) == "`" + field_name("odd name") + "` = 'x'' OR ''1''=''1\" \\ \n'"
    assert json.dumps(nasty) in to_milvus(where, COLUMNS)
    assert field_name("odd name").isidentifier()
    assert field_name("odd name") != field_name("odd_name")
    assert field_name("key") == "key"


def test_milvus_knows_only_beginnings_of_like() -> None:
    assert milvus_can(Filter(Not(Like("domain", "ph%"))))
    for pattern in ("%ph", "p_%", "p%h%", "ph"):
        assert not milvus_can(Filter(Conjunction((Like("domain", pattern), IsNull("domain")))))


@pytest.mark.parametrize("operator", ["=", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("value", [2020.0, 2020.5, -0.5, 1e300, -1e300, float(2**63), -float(2**63)])
@pytest.mark.parametrize("negated", [False, True])
def test_numbers_of_another_type_keep_their_meaning(operator: Any, value: float, negated: bool) -> None:
    leaf = Compare("year", operator, value)
    tree = Not(leaf) if negated else leaf
    typed = typed_tree(tree, COLUMNS)
    assert matching(Filter(typed)) == matching(Filter(tree))
    assert ".5" not in repr(typed)
    assert "e+300" not in repr(typed)
    assert matching(Filter(typed_tree(In("year", (value, 2021)), COLUMNS))) == matching(
        Filter(In("year", (value, 2021)))
    )
