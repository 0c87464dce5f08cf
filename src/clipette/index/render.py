"""A filter's tree as the expressions of the engines: every name mapped, every value written by us."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor

from clipette.index.filters import BUCKET, All, Any, Compare, Filter, In, IsNull, Like, Node, Not, Scalar
from clipette.io import digest

FIELDS = {"key": "key", "kind": "kind", BUCKET: "bucket"}


def field_name(column: str) -> str:
    """The engine's name of a column: letters, digits and _ whatever the column is called, and never one of ours."""
    if column in FIELDS:
        return FIELDS[column]
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,80}", column):
        return f"m_{column}"
    return f"x_{digest(column.encode())[:16]}"


def null_name(column: str) -> str:
    """Of the engines without null: the field that says whether the value is unknown."""
    return f"n_{field_name(column)}"


# ---------------------------------------------------------------- SQL (LanceDB)


def to_sql(where: Filter) -> str:
    """The filter in DataFusion's SQL, whose null is that of the grammar."""
    return _sql(where.tree)


def _sql(node: Node) -> str:
    if isinstance(node, All | Any):
        return f" {'AND' if isinstance(node, All) else 'OR'} ".join(f"({_sql(part)})" for part in node.parts)
    if isinstance(node, Not):
        return f"NOT ({_sql(node.part)})"
    name = f"`{field_name(node.column)}`"
    if isinstance(node, IsNull):
        return f"{name} IS NULL"
    if isinstance(node, Like):
        return f"{name} LIKE {sql_value(node.pattern)}"
    if isinstance(node, In):
        return f"{name} IN ({', '.join(sql_value(value) for value in node.values)})"
    return f"{name} {node.operator} {sql_value(node.value)}"


def sql_value(value: Scalar) -> str:
    """A literal of SQL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


# ---------------------------------------------------------------- Milvus

_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
NEVER, ALWAYS = '(key == "")', '(key != "")'  # no key is empty


def milvus_can(where: Filter) -> bool:
    """Whether Milvus 2.3 knows every operator: of LIKE only what begins with a text."""
    return all(_milvus_like(node) for node in _nodes(where.tree))


def _milvus_like(node: Node) -> bool:
    if not isinstance(node, Like):
        return True
    return node.pattern.endswith("%") and not set(node.pattern[:-1]) & {"%", "_"}


def _nodes(node: Node) -> Sequence[Node]:
    if isinstance(node, All | Any):
        return [each for part in node.parts for each in _nodes(part)]
    return _nodes(node.part) if isinstance(node, Not) else [node]


def to_milvus(where: Filter, types: Mapping[str, str]) -> str:
    """The filter in Milvus' language, which has no null: NOT moves to the leaves, each guarded by its column's flag.

    ``types``: column → bool, int, float or text.
    """
    return _milvus(where.tree, False, types)


def _milvus(node: Node, negated: bool, types: Mapping[str, str]) -> str:
    if isinstance(node, Not):
        return _milvus(node.part, not negated, types)
    if isinstance(node, All | Any):
        joined = " and " if isinstance(node, All) != negated else " or "
        return "(" + joined.join(_milvus(part, negated, types) for part in node.parts) + ")"
    flagged = node.column not in FIELDS
    if isinstance(node, IsNull):
        if not flagged:
            return ALWAYS if negated else NEVER
        return f"({null_name(node.column)} == {'false' if negated else 'true'})"
    leaf = _leaf(node, negated, _whole if types.get(node.column) == "int" else _plain)
    return f"({null_name(node.column)} == false and {leaf})" if flagged else leaf


def _leaf(node: Compare | In | Like, negated: bool, compared: Callable[[str, str, Scalar], str]) -> str:
    name = field_name(node.column)
    if isinstance(node, Like):
        leaf = f"{name} like {json.dumps(node.pattern, ensure_ascii=False)}"
        return f"(not ({leaf}))" if negated else f"({leaf})"
    if isinstance(node, In):
        values = [value for value in node.values if compared is _plain or float(value) == int(value)]
        if not values:
            return ALWAYS if negated else NEVER
        shown = ", ".join(_milvus_value(value if compared is _plain else int(value)) for value in values)
        return f"({name} {'not in' if negated else 'in'} [{shown}])"
    return compared(name, _OPPOSITE[node.operator] if negated else node.operator, node.value)


def _plain(name: str, operator: str, value: Scalar) -> str:
    return f"({name} {'==' if operator == '=' else operator} {_milvus_value(value)})"


def _whole(name: str, operator: str, value: Scalar) -> str:
    """A whole-number column compared with any number, by a whole number that says the same."""
    if not isinstance(value, float):
        return _plain(name, operator, value)
    if value == int(value):
        return _plain(name, operator, int(value))
    if operator in ("=", "!="):
        return NEVER if operator == "=" else ALWAYS
    return f"({name} > {floor(value)})" if operator in (">", ">=") else f"({name} < {ceil(value)})"


def _milvus_value(value: Scalar) -> str:
    return json.dumps(value, ensure_ascii=False)
