"""A filter's tree as the expressions of the engines: every name mapped, every value written by us."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clipette.index.filters import BUCKET, All, Any, Compare, Filter, In, IsNull, Like, Node, Not, Scalar, whole
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


# ---------------------------------------------------------------- numbers of the column's own type


def typed_tree(node: Node, types: Mapping[str, str]) -> Node:
    """The same filter with every number of its column's type: engines refuse to compare whole numbers with others."""
    if isinstance(node, All):
        return All(tuple(typed_tree(part, types) for part in node.parts))
    if isinstance(node, Any):
        return Any(tuple(typed_tree(part, types) for part in node.parts))
    if isinstance(node, Not):
        return Not(typed_tree(node.part, types))
    kind = types.get(node.column)
    if kind not in ("int", "float") or not isinstance(node, Compare | In):
        return node
    if isinstance(node, Compare):
        return replace(node, value=float(node.value)) if kind == "float" else whole(node)
    if kind == "float":
        return replace(node, values=tuple(float(value) for value in node.values))
    found = (whole(Compare(node.column, "=", value)) for value in node.values)
    return replace(node, values=tuple(each.value for each in found if isinstance(each, Compare)))


# ---------------------------------------------------------------- SQL (LanceDB)


def to_sql(where: Filter, types: Mapping[str, str]) -> str:
    """The filter in DataFusion's SQL, whose null is that of the grammar. ``types``: column → bool, int, float, text."""
    return _sql(typed_tree(where.tree, types))


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
        # In nothing is no row, but unknown where the value is.
        return f"{name} IN ({', '.join(map(sql_value, node.values))})" if node.values else f"{name} <> {name}"
    return f"{name} {'<>' if node.operator == '!=' else node.operator} {sql_value(node.value)}"


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
    return _milvus(typed_tree(where.tree, types), False)


def _milvus(node: Node, negated: bool) -> str:
    if isinstance(node, Not):
        return _milvus(node.part, not negated)
    if isinstance(node, All | Any):
        joined = " and " if isinstance(node, All) != negated else " or "
        return "(" + joined.join(_milvus(part, negated) for part in node.parts) + ")"
    flagged = node.column not in FIELDS
    if isinstance(node, IsNull):
        if not flagged:
            return ALWAYS if negated else NEVER
        return f"({null_name(node.column)} == {'false' if negated else 'true'})"
    leaf = _leaf(node, negated)
    return f"({null_name(node.column)} == false and {leaf})" if flagged else leaf


def _leaf(node: Compare | In | Like, negated: bool) -> str:
    name = field_name(node.column)
    if isinstance(node, Like):
        leaf = f"{name} like {_milvus_value(node.pattern)}"
        return f"(not ({leaf}))" if negated else f"({leaf})"
    if isinstance(node, In):
        if not node.values:
            return ALWAYS if negated else NEVER
        values = ", ".join(map(_milvus_value, node.values))
        return f"({name} {'not in' if negated else 'in'} [{values}])"
    operator = _OPPOSITE[node.operator] if negated else node.operator
    return f"({name} {'==' if operator == '=' else operator} {_milvus_value(node.value)})"


def _milvus_value(value: Scalar) -> str:
    return json.dumps(value, ensure_ascii=False)
