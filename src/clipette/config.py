"""Strict typed YAML: an unknown key is an error that names the nearest known one, the file and the line."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from clipette.errors import ConfigError
from clipette.plain_yaml import DEEPEST, Dumper, KeyPath, dotted, parse_yaml

RECIPES = Path(__file__).parent / "recipes"

M = TypeVar("M", bound=pydantic.BaseModel)


class StrictModel(pydantic.BaseModel):
    """Base of every recipe section: unknown keys are refused, values cannot be changed, NaN and infinity are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


# ---------------------------------------------------------------- reading and writing


def load_yaml(model: type[M], source: Path | str, overrides: Sequence[str] = ()) -> M:
    """Read and check one YAML document, with ``--set``-style overrides.

    ``source``: a path, or a string ending in ``.yaml``/``.yml``, is a file; any other string is YAML text.
    ``overrides``: ``"a.b=value"``, the value parsed as YAML, applied in order; ``a.0.b`` reaches into a list.

    Raises ``ConfigError``: missing file, syntax error (with its line), unknown key (naming the nearest known one),
    wrong type or missing key: one line per error, all of them at once.
    """
    text, where = _read(source)
    data, lines = parse_yaml(text, where)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(
            f"{where}: expected keys and values at the top, found {_kind(data)}; write `key: value` lines"
        )
    overridden = [apply_override(data, override) for override in overrides]
    return validate(model, data, where=where, lines=lines, overridden=overridden)


def validate(
    model: type[M],
    data: Mapping[str, object],
    *,
    where: str,
    lines: Mapping[KeyPath, int] | None = None,
    overridden: Sequence[KeyPath] = (),
) -> M:
    """``model`` of plain data; ``ConfigError`` with one line per error. ``where`` and ``lines`` only serve messages."""
    try:
        # JSON mode is strict about types ("64" is no number) but lets lists be tuples and strings be paths.
        return model.model_validate_json(json.dumps(data, allow_nan=True), strict=True)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; use only text, numbers, true/false, lists and keys") from None
    except pydantic.ValidationError as error:
        messages = [
            f"{_origin(path, where, lines or {}, overridden)}: {_explain(model, problems, path)}"
            for path, problems in _by_path(data, error.errors(include_url=False))
        ]
        raise ConfigError("\n".join(dict.fromkeys(messages))) from None


def apply_override(data: dict[str, Any], override: str) -> KeyPath:
    """Apply one ``a.b=value`` to nested data, making absent levels; the key path that was set.

    Raises ``ConfigError`` where there is no ``=`` or the path runs through a value that has no keys.
    """
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected key=value, for example --set train.steps=100")
    if len(parts) > DEEPEST:
        raise ConfigError(f"--set {name[:40]}…: {len(parts)} keys inside one another; {DEEPEST} is the most")
    value, _ = parse_yaml(text, f"--set {name}")
    path: list[str | int] = []
    here: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, dict):
            path.append(part)
            if last:
                here[part] = value
            elif here.get(part) is None:
                here[part] = {}
            here = here[part]
        elif isinstance(here, list) and part.lstrip("-").isdigit() and -len(here) <= int(part) < len(here):
            position = int(part) % len(here)
            path.append(position)
            if last:
                here[position] = value
            here = here[position]
        elif isinstance(here, list):
            raise ConfigError(
                f"--set {name}: {dotted(tuple(path))} is a list of {len(here)}; {part!r} is no place in it"
            )
        else:
            raise ConfigError(f"--set {name}: {dotted(tuple(path))} is {_kind(here)}, which has no keys")
    return tuple(path)


def dump_yaml(model: pydantic.BaseModel) -> str:
    """YAML that ``load_yaml`` reads back to an equal model; keys in the order of the fields."""
    data = model.model_dump(mode="json")
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def shipped_recipes() -> dict[str, Path]:
    """Name (as given on the command line) to file of the recipes in the package."""
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}


def describe_recipes() -> dict[str, str]:
    """Name of each shipped recipe to its ``about``: what it is, in a line."""
    read = {
        name: parse_yaml(path.read_text(encoding="utf-8"), str(path))[0] for name, path in shipped_recipes().items()
    }
    return {name: str((data or {}).get("about", "")).strip() for name, data in read.items()}


def find_recipe(name: str | Path) -> Path:
    """A recipe's file: a path that exists, or the name of a shipped recipe.

    Raises ``ConfigError`` naming the nearest shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    near = nearest(str(name), shipped)
    hint = f"did you mean {near!r}?" if near else "`clipette recipes` lists those that are shipped"
    raise ConfigError(f"{name}: no such recipe file, and no shipped recipe of that name; {hint}")


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str | None:
    """The known word that a misspelt one probably meant, or None."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def _read(source: Path | str) -> tuple[str, str]:
    if isinstance(source, str) and not ("\n" not in source and source.endswith((".yaml", ".yml"))):
        return source, "YAML"
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        hint = f"did you mean {path.parent / near}?" if near else "check the path"
        raise ConfigError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


# ---------------------------------------------------------------- messages


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "keys and values"
    return "nothing" if value is None else f"the value {json.dumps(value)}"


def _by_path(data: object, problems: Sequence[Any]) -> Iterator[tuple[KeyPath, list[Any]]]:
    """Problems by where they are: those that stand for one mistake together.

    Every member of a union complains of the same value. One that takes its type knows more than those that do not.
    """
    found: dict[KeyPath, list[Any]] = {}
    for problem in problems:
        path = _data_path(data, problem["loc"], missing=problem["type"] == "missing")
        found.setdefault(path, []).append(problem)
    for path, group in found.items():
        told = [problem for problem in group if not problem["type"].endswith("_type")]
        if told:
            yield from ((path, [problem]) for problem in told)
        elif not any(other != path and other[: len(path)] == path for other in found):
            yield path, group


def _data_path(data: object, loc: Sequence[str | int], *, missing: bool) -> KeyPath:
    """Pydantic's location without the tags of unions, which are in no file."""
    path: list[str | int] = []
    here: Any = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        # As JSON's, every key is a text; in YAML it may be a number.
        key = next((key for key in here if str(key) == str(part)), None) if isinstance(here, dict) else part
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, dict) and key is not None):
            path.append(part)
            here = here[key]
        elif last and missing:
            path.append(part)
    return tuple(path)


def _origin(path: KeyPath, where: str, lines: Mapping[KeyPath, int], overridden: Sequence[KeyPath]) -> str:
    for start in reversed(overridden):
        if path[: len(start)] == start or start[: len(path)] == path != ():
            return f"--set {dotted(start)}"
    known = path
    while known and known not in lines:
        known = known[:-1]
    if known or not overridden:
        return f"{where}:{lines[known]}" if known else where
    # Of the whole: the file alone was right, perhaps.
    return f"{where} with --set {', '.join(map(dotted, overridden))}"


def _explain(model: type[pydantic.BaseModel], problems: Sequence[Any], path: KeyPath) -> str:
    """The problems of one value in a line: several are members of a union, none of which takes its type."""
    name, problem = dotted(path), problems[0]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}; {_hint(model, problem['loc'], path)}"
    if problem["type"] == "missing":
        return f"key {name!r} is missing; add it"
    if problem["type"] in ("value_error", "assertion_error"):
        message = problem["msg"].partition(", ")[2]
    else:
        told = [_words(each["msg"]) for each in problems]
        others = [each.removeprefix("expected ") for each in told[1:]]
        message = f"{' or '.join([told[0], *others])}, found {_kind(problem['input'])}"
    return f"{name}: {message}" if name else message


def _words(message: str) -> str:
    """Pydantic's sentence in the words of ``_kind``."""
    message = message[0].lower() + message[1:]
    for theirs, ours in (
        ("input should be", "expected"),
        ("a valid integer", "a whole number"),
        ("a valid number", "a number"),
        ("a valid array", "a list"),
        ("an object", "keys and values"),
    ):
        message = message.replace(theirs, ours)
    return message


def _hint(model: type[pydantic.BaseModel], loc: Sequence[str | int], path: KeyPath) -> str:
    key = str(loc[-1])
    models = _models_at(model, loc[:-1])
    known = list(dict.fromkeys(name for found in models for name in _keys(found)))
    near = nearest(key, known)
    if near:
        return f"did you mean {near!r}?"
    # Of a union another member may have this key at this very place.
    places = (dotted(place) for place in _places(model) if place[-1] == key and place != path)
    elsewhere = list(dict.fromkeys(places))
    if elsewhere:
        return f"it belongs at {' or '.join(repr(place) for place in elsewhere[:3])}"
    return f"known keys here: {', '.join(known) or 'none'}"


def _keys(model: type[pydantic.BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _members(annotation: Any) -> Iterator[Any]:
    """The plain types inside an annotation: through Annotated, Optional and unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _members(inner)
    else:
        yield annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _items(kind: Any) -> list[Any]:
    """What a container holds: the values of a mapping, the items of a sequence."""
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    origin = get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        arguments = arguments[1:]
    elif origin is Literal:
        arguments = []
    return [member for argument in arguments for member in _members(argument)]


def _tagged(model: type[pydantic.BaseModel], tag: str | int) -> bool:
    """Whether a union's tag in pydantic's location means this model: by its name or a literal field."""
    return tag == model.__name__ or any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models_at(model: type[pydantic.BaseModel], loc: Sequence[str | int]) -> list[type[pydantic.BaseModel]]:
    candidates: list[Any] = [model]
    for part in loc:
        entered = [
            member
            for kind in candidates
            if _is_model(kind)
            for name, field in kind.model_fields.items()
            if part in (name, field.alias)
            for member in _members(field.annotation)
        ]
        chosen = [kind for kind in candidates if _is_model(kind) and _tagged(kind, part)]
        inside = [item for kind in candidates if not _is_model(kind) for item in _items(kind)]
        candidates = entered or chosen or inside or candidates
    return [kind for kind in candidates if _is_model(kind)]


def _places(model: type[pydantic.BaseModel], path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path of plain sections, lists and mappings left out; sections that contain themselves end."""
    if len(path) > 6:
        return
    for name, field in model.model_fields.items():
        inner = (*path, field.alias or name)
        yield inner
        for member in _members(field.annotation):
            if _is_model(member):
                yield from _places(member, inner)
