"""YAML as people mean it: words stay words, every key has its line, and no text can make it endless."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import yaml

from clipette.errors import ConfigError

KeyPath: TypeAlias = "tuple[str | int, ...]"

# Lists and keys inside one another. Recipes have some five; Python's own recursion ends near 300 of YAML's.
DEEPEST = 50


class _Refused(yaml.MarkedYAMLError):
    """Right YAML that no recipe needs, and that a few bytes can make endless."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with two traps of version 1.1 removed: ``1e-3`` is a number, ``no`` and ``on`` are words.

    Anchors and aliases are refused: nine lines of them stand for a billion values, or for themselves.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            problem = f"{mark}{event.anchor[:40]}: anchors and aliases are not read; write the value out"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        if self.depth > DEEPEST:
            problem = f"more than {DEEPEST} lists or keys inside one another; take some of them out"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back: the same scalars need quotes, and nothing is an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_DROPPED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}


def _set_resolvers(kind: type[_Loader] | type[Dumper]) -> None:
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _DROPPED]
        for first, rules in kind.yaml_implicit_resolvers.items()
    }
    kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{_FLOAT.pattern}$"), list("-+0123456789."))
    kind.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(f"^{_BOOL.pattern}$"), list("tTfF"))


_set_resolvers(_Loader)
_set_resolvers(Dumper)


def parse_yaml(text: str, where: str = "YAML") -> tuple[Any, dict[KeyPath, int]]:
    """The value of a YAML text, and the line (from 1) of each key path.

    Raises ``ConfigError`` on a syntax error, a key given twice, an anchor or an alias, with the line.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _collect_lines(node, (), lines, where)
            return (None if node is None else loader.construct_document(node)), lines
        finally:
            loader.dispose()
    except _Refused as error:
        raise ConfigError(f"{where}{_line(error)}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}{_line(error)}: not valid YAML: {error.problem or error}; mend that line") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        sign = f"U+{error.character:04X}"
        raise ConfigError(f"{where}:{line}: not valid YAML: the character {sign} is no text; remove it") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    except (ValueError, LookupError, AttributeError, OverflowError) as error:  # !!int x, !!bool x, "\UFFFFFFFF"
        raise ConfigError(f"{where}: not valid YAML: a value is not what it says it is ({error}); mend it") from None


def _line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f":{mark.line + 1}" if mark else ""


def _collect_lines(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines and key.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(
                    f"{where}:{line}: key {dotted(inner)!r} is given twice (first on line {lines[inner]}); keep one"
                )
            lines[inner] = line
            _collect_lines(value, inner, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*path, position)] = value.start_mark.line + 1
            _collect_lines(value, (*path, position), lines, where)


def dotted(path: KeyPath) -> str:
    """``("a", 0, "b")`` as people write it: ``a.0.b``."""
    return ".".join(str(part) for part in path)
