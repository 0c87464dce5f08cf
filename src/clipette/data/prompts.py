"""From class names to prompts: templates, LLM sentences per class (CuPL), and questions with their answers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipette.data.questions import question_prompts
from clipette.data.templates import OPENAI_80, TEMPLATES
from clipette.errors import ConfigError, DataError

__all__ = [
    "OPENAI_80",
    "TEMPLATES",
    "class_prompts",
    "fill",
    "find_templates",
    "question_prompts",
    "read_descriptions",
    "spoken",
]

SLOT = "{}"
# A contrastive template names another class; this many are taken, so that prompts stay linear in the classes.
CONTRASTS = 8
# So many classes are named in a message.
NAMED = 5


def spoken(name: str) -> str:
    """A class name as one says it: ``art_painting`` becomes ``art painting``."""
    return " ".join(name.replace("_", " ").split())


def fill(template: str, name: str, other: str | None = None) -> str:
    """The template with the class name in its ``{}``, and another class in its second, where it has one.

    Raises ``ConfigError`` for a template with no slot, more than two, or two without ``other``.
    """
    pieces = template.split(SLOT)
    if len(pieces) == 2:
        return pieces[0] + spoken(name) + pieces[1]
    if len(pieces) == 3 and other is not None:
        return pieces[0] + spoken(name) + pieces[1] + spoken(other) + pieces[2]
    if len(pieces) == 3:
        raise ConfigError(f"template '{template}' names a second class: at least two classes are needed")
    raise ConfigError(f"template '{template}' must have one {{}} (or two: a class, not another), not {len(pieces) - 1}")


def find_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by name (``openai80``), as one template (``a drawing of a {}``), or as a list of templates.

    Raises ``ConfigError`` for an unknown name.
    """
    if not isinstance(templates, str):
        return tuple(templates)
    if templates in TEMPLATES:
        return TEMPLATES[templates]
    if SLOT in templates:
        return (templates,)
    near = difflib.get_close_matches(templates, TEMPLATES, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"unknown templates '{templates}': {hint}known: {', '.join(TEMPLATES)}; or write one with {{}} in it"
    )


def class_prompts(
    class_names: Sequence[str],
    templates: str | Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> list[list[str]]:
    """For each class its prompts: every template filled, then the class's own sentences.

    A template with a second slot is filled with each of the next ``CONTRASTS`` classes in turn. Descriptions are found
    by name, whatever the case and underscores; with ``templates=()`` they stand alone, as in CuPL.

    Raises:
        ConfigError: an unknown or malformed template.
        DataError: a class without description.
    """
    found = find_templates(templates)
    if not found and descriptions is None:
        raise ConfigError("no templates and no descriptions: a class needs at least one prompt")
    prompts = [
        [text for template in found for text in _filled(template, position, class_names)]
        for position in range(len(class_names))
    ]
    if descriptions is not None:
        for own, sentences in zip(prompts, _matched(class_names, descriptions), strict=True):
            own.extend(sentences)
    return prompts


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """LLM sentences per class, in CuPL's format: a JSON object of class name -> list of sentences.

    Blank sentences and repetitions are left out. Raises ``DataError`` naming the class at fault.

    Paper: Pratt et al., "What does a platypus look like?", ICCV 2023.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise DataError(f"{path}: the descriptions cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected a JSON object of class name -> list of sentences (CuPL's format)")
    descriptions: dict[str, list[str]] = {}
    for name, value in content.items():
        sentences = [value] if isinstance(value, str) else value
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise DataError(f"{path}: class '{name}': expected a list of sentences")
        kept = list(dict.fromkeys(sentence.strip() for sentence in sentences if sentence.strip()))
        if not kept:
            raise DataError(f"{path}: class '{name}' has no sentence; write one or remove the class")
        descriptions[name] = kept
    return descriptions


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose keys are there once. Raises ``ValueError`` for another: JSON itself keeps the last."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"'{twice}' is there twice: join its sentences into one list")
    return dict(pairs)


def _filled(template: str, position: int, class_names: Sequence[str]) -> list[str]:
    name = class_names[position]
    if template.count(SLOT) != 2:
        return [fill(template, name)]
    following = [class_names[(position + step) % len(class_names)] for step in range(1, len(class_names))]
    return [fill(template, name, other) for other in following[:CONTRASTS]] or [fill(template, name)]


def _matched(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
    by_name = {spoken(name).lower(): sentences for name, sentences in descriptions.items()}
    missing = [name for name in class_names if spoken(name).lower() not in by_name]
    if missing:
        near = difflib.get_close_matches(spoken(missing[0]).lower(), by_name, n=1)
        hint = f" (nearest: '{near[0]}')" if near else ""
        named = ", ".join([f"'{missing[0]}'{hint}", *(f"'{name}'" for name in missing[1:NAMED])])
        more = ", ..." if len(missing) > NAMED else ""
        raise DataError(
            f"{len(missing)} of {len(class_names)} classes have no description: {named}{more}; add them or rename them "
            "in the file"
        )
    return [by_name[spoken(name).lower()] for name in class_names]
