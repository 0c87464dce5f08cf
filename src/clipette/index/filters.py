"""Filters over metadata: ``domain = 'photo' AND year > 2019``, parsed here and nowhere else.

::

    filter     := both (OR both)*                both := one (AND one)*
    one        := NOT one | ( filter ) | predicate
    predicate  := column (= | != | <> | < | <= | > | >=) value
                | column [NOT] IN ( value, … )   | column [NOT] BETWEEN value AND value
                | column [NOT] LIKE 'text%'      | column IS [NOT] NULL
                | column                         (of true and false)
    value      := 'text' | number | true | false

Names are case-sensitive; one with other characters than letters, digits and _ is written in double quotes. A quote
inside a text is doubled (``'it''s'``). As in SQL a row whose value is unknown matches neither a comparison nor its NOT.

Engines never see the user's text: it becomes a typed tree, and the tree is rendered anew for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipette.config import nearest
from clipette.errors import ConfigError

Scalar: TypeAlias = "str | int | float | bool"
Type: TypeAlias = Literal["bool", "int", "float", "text"]
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
Bools: TypeAlias = npt.NDArray[np.bool_]

# Columns that every index has beside its metadata.
BUILT_IN: dict[str, Type] = {"key": "text", "kind": "text", "text": "text", "of": "text"}
# Of a thousand, by a hash of the key: what recall under filters is measured with. No user's filter can name it.
BUCKET = "__bucket"
LONGEST, MOST_TOKENS, DEEPEST = 20_000, 4_000, 60
INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Compare:
    """``column operator value``."""

    column: str
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """``column IN (values)``."""

    column: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """``column LIKE 'pattern'``: % is any text, _ any one character."""

    column: str
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    """``column IS NULL``."""

    column: str


@dataclass(frozen=True, slots=True)
class Not:
    """``NOT part``."""

    part: Node


@dataclass(frozen=True, slots=True)
class All:
    """``a AND b AND …``."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """``a OR b OR …``."""

    parts: tuple[Node, ...]


Node: TypeAlias = "Compare | In | Like | IsNull | Not | All | Any"


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked filter. Equal trees are equal filters, so that it can be a key of caches."""

    tree: Node

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, each once."""
        return tuple(dict.fromkeys(_columns(self.tree)))

    def mask(self, column: Callable[[str], pa.Array]) -> Bools:
        """Which rows match: ``column(name)`` is its Arrow array (null: unknown)."""
        found = pc.fill_null(_evaluate(self.tree, column), False)
        return np.asarray(found, dtype=bool)


def both(*filters: Filter | None) -> Filter | None:
    """Rows that match every given filter; None where none is given."""
    given = tuple(each.tree for each in filters if each is not None)
    if not given:
        return None
    return Filter(given[0] if len(given) == 1 else All(given))


def equals(column: str, value: Scalar) -> Filter:
    """``column = value``, for a column that is known to be there."""
    return Filter(Compare(column, "=", value))


def parse_filter(text: str, columns: Mapping[str, str]) -> Filter:
    """The filter that ``text`` says, checked against ``columns`` (name → bool, int, float or text).

    Raises ``ConfigError``: a syntax error with its place, an unknown column (naming the nearest), a value of another
    type than its column, or a filter too long to be meant.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"filter of {len(text):,} characters: at most {LONGEST:,}; use fewer values")
    parser = _Parser(text, {**columns, **BUILT_IN})
    tree = parser.expression(0)
    parser.expect_end()
    return Filter(tree)


# ---------------------------------------------------------------- reading

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")
    |(?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,))""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Operator] = {
    "=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
}  # fmt: skip
_KEYWORDS = {"and", "or", "not", "in", "between", "like", "is", "null", "true", "false"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int

    @property
    def word(self) -> str:
        """The keyword, sign, or ""."""
        if self.kind == "name":
            return self.text.lower() if self.text.lower() in _KEYWORDS else ""
        return self.text if self.kind == "sign" else ""


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            rest = text[place:end].lstrip()
            what = "a text that does not end" if rest[:1] in ("'", '"') else f"{rest[:12]!r}"
            raise ConfigError(f"filter {text!r}: cannot read {what} at character {end - len(rest) + 1}")
        kind = match.lastgroup
        yield _Token(kind, match.group(kind), match.start(kind))
        place = match.end()


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._text = text
        self._columns = columns
        self._tokens = list(_tokens(text))
        self._at = 0
        if len(self._tokens) > MOST_TOKENS:
            raise ConfigError(f"filter of {len(self._tokens):,} words: at most {MOST_TOKENS:,}; use fewer values")
        if not self._tokens:
            raise ConfigError("an empty filter: write for example domain = 'photo' AND year > 2019, or leave it out")

    def _peek(self) -> _Token:
        if self._at < len(self._tokens):
            return self._tokens[self._at]
        return _Token("end", "the end", len(self._text))

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _take(self, word: str) -> bool:
        if self._peek().word == word:
            self._at += 1
            return True
        return False

    def _need(self, word: str) -> None:
        if not self._take(word):
            raise self._wrong(self._peek(), f"expected {word.upper()}")

    def _wrong(self, token: _Token, why: str) -> ConfigError:
        return ConfigError(f"filter {self._text!r}: {why} at character {token.place + 1}, found {token.text}")

    def expect_end(self) -> None:
        """Nothing may follow the expression."""
        if self._peek().kind != "end":
            raise self._wrong(self._peek(), "expected AND, OR or the end")

    def expression(self, depth: int) -> Node:
        """``both (OR both)*``."""
        parts = [self._both(depth)]
        while self._take("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _both(self, depth: int) -> Node:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise ConfigError(f"a filter nested more than {DEEPEST} deep: write it flatter")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inside = self.expression(depth + 1)
            self._need(")")
            return inside
        return self._predicate()

    def _predicate(self) -> Node:
        column, kind = self._column()
        token = self._peek()
        if token.word in _OPERATORS:
            self._next()
            operator = _OPERATORS[token.word]
            if kind == "bool" and operator not in ("=", "!="):
                raise self._wrong(token, f"{column!r} is true or false: compare it with = or !=")
            return Compare(column, operator, self._value(column, kind))
        if self._take("is"):
            negated = self._take("not")
            self._need("null")
            return Not(IsNull(column)) if negated else IsNull(column)
        negated = self._take("not")
        found = self._set(column, kind)
        if found is not None:
            return Not(found) if negated else found
        if kind == "bool" and not negated:
            return Compare(column, "=", True)
        raise self._wrong(self._peek(), f"expected a comparison after {column!r} (=, !=, <, IN, BETWEEN, LIKE, IS)")

    def _set(self, column: str, kind: str) -> Node | None:
        if self._take("in"):
            self._need("(")
            values = [self._value(column, kind)]
            while self._take(","):
                values.append(self._value(column, kind))
            self._need(")")
            return In(column, tuple(dict.fromkeys(values)))
        if self._take("between"):
            low = self._value(column, kind)
            self._need("and")
            return All((Compare(column, ">=", low), Compare(column, "<=", self._value(column, kind))))
        if self._take("like"):
            if kind != "text":
                raise self._wrong(self._peek(), f"LIKE is for text, and {column!r} is {kind}")
            pattern = str(self._value(column, kind))
            if "\\" in pattern:
                raise ConfigError(f"filter {self._text!r}: a backslash in LIKE has no meaning here; use = or % and _")
            return Like(column, pattern)
        return None

    def _column(self) -> tuple[str, str]:
        token = self._next()
        if token.kind == "quoted":
            name = token.text[1:-1].replace('""', '"')
        elif token.kind == "name" and not token.word:
            name = token.text
        else:
            raise self._wrong(token, "expected the name of a column")
        if name not in self._columns:
            near = nearest(name, self._columns)
            hint = f"did you mean {near!r}?" if near else f"columns here: {', '.join(sorted(self._columns))}"
            raise ConfigError(f"filter {self._text!r}: unknown column {name!r}; {hint}")
        return name, self._columns[name]

    def _value(self, column: str, kind: str) -> Scalar:
        token = self._next()
        value: Scalar
        if token.kind in ("text", "quoted"):
            quote = token.text[0]
            value = token.text[1:-1].replace(quote * 2, quote)
        elif token.kind == "number":
            value = float(token.text) if set(".eE") & set(token.text) else int(token.text)
            if isinstance(value, int) and not INT64[0] <= value <= INT64[1]:
                raise self._wrong(token, "expected a number that fits in 64 bits")
            if isinstance(value, float) and not np.isfinite(value):
                raise self._wrong(token, "expected a finite number")
        elif token.word in ("true", "false"):
            value = token.word == "true"
        else:
            raise self._wrong(token, "expected a value ('text', a number, true or false)")
        fits = {
            "text": isinstance(value, str),
            "bool": isinstance(value, bool),
            "int": isinstance(value, int | float) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
        }
        if not fits[kind]:
            what = {"text": "text: put it in 'quotes'", "bool": "true or false"}.get(kind, "a number, without quotes")
            raise self._wrong(token, f"{column!r} is {what}")
        return value


# ---------------------------------------------------------------- evaluating


def _columns(node: Node) -> Iterator[str]:
    if isinstance(node, All | Any):
        for part in node.parts:
            yield from _columns(part)
    elif isinstance(node, Not):
        yield from _columns(node.part)
    else:
        yield node.column


_COMPARE: dict[str, Callable[..., pa.Array]] = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def _evaluate(node: Node, column: Callable[[str], pa.Array]) -> pa.Array:
    """SQL's three values: true, false, and null for unknown."""
    if isinstance(node, All | Any):
        join = pc.and_kleene if isinstance(node, All) else pc.or_kleene
        found = _evaluate(node.parts[0], column)
        for part in node.parts[1:]:
            found = join(found, _evaluate(part, column))
        return found
    if isinstance(node, Not):
        return pc.invert(_evaluate(node.part, column))
    values = column(node.column)
    if isinstance(node, IsNull):
        return pc.is_null(values)
    if isinstance(node, Like):
        return pc.match_like(values, node.pattern)
    if isinstance(node, In):
        found = pc.is_in(values, value_set=_typed(node.values, values.type))
        # is_in calls null "not in"; in SQL it is unknown, and so is its NOT.
        return pc.if_else(pc.is_null(values), pa.scalar(None, pa.bool_()), found)
    # In the column's own type: Arrow compares no float with whole numbers beyond 2^53.
    if pa.types.is_integer(values.type) and isinstance(node.value, float):
        return _evaluate(whole(node), column)
    value = float(node.value) if pa.types.is_floating(values.type) else node.value
    return _COMPARE[node.operator](values, pa.scalar(value))


def whole(node: Compare) -> Node:
    """A comparison with a whole number that says the same as the one with ``node.value``."""
    value = float(node.value) if isinstance(node.value, float) else None
    if value is None:
        return node
    nothing = In(node.column, ())
    above, below = value >= 2.0**63, value < -(2.0**63)
    if above or below:
        smaller = node.operator in ("<", "<=")
        larger = node.operator in (">", ">=")
        return Not(nothing) if node.operator == "!=" or (smaller and above) or (larger and below) else nothing
    if value.is_integer():
        return replace(node, value=int(value))
    if node.operator in ("=", "!="):
        return nothing if node.operator == "=" else Not(nothing)
    if node.operator in (">", ">="):
        return Compare(node.column, ">", floor(value))
    return Compare(node.column, "<", ceil(value))


def _typed(values: Sequence[Scalar], kind: pa.DataType) -> pa.Array:
    """The values as the column's type; one that it cannot hold (2.5 among whole numbers) is in no row."""
    if pa.types.is_integer(kind):
        values = [int(value) for value in values if value == int(value) and INT64[0] <= int(value) <= INT64[1]]
    elif pa.types.is_floating(kind):
        values = [float(value) for value in values]
    return pa.array(values, kind)
