"""The wordings of a study of prompts: templates, sets of them and LLM descriptions, and their class vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clipette.data.prompts import TEMPLATES, class_prompts, find_templates
from clipette.errors import ConfigError
from clipette.evaluate.prompt_ensembles import mixed
from clipette.evaluate.wording import known_texts
from clipette.progress import track
from clipette.types import Encoder, Floats

Kind = Literal["template", "mean", "descriptions", "chosen"]
BASELINE = "a photo of a {}."
BEST, GREEDY, WEIGHTED, EVERYTHING = "best on dev", "greedy on dev", "weighted on dev", "mean of all"
RESERVED = (BEST, GREEDY, WEIGHTED, EVERYTHING)


@dataclass(frozen=True)
class Asked:
    """A wording before it is measured: its prompts of each class; of a set its members' rows instead."""

    name: str
    kind: Kind
    prompts: list[list[str]]
    members: tuple[str, ...] = ()


def wordings(
    templates: Sequence[str], descriptions: Mapping[str, Mapping[str, Sequence[str]]], names: Sequence[str]
) -> list[Asked]:
    """Each template once, then descriptions, then sets of several templates; without ``templates`` every set we ship.

    Raises:
        ConfigError: an unknown or malformed template, or descriptions named like another wording.
        DataError: a class without description.
    """
    chosen = list(templates) or [*TEMPLATES]
    singles: dict[str, Asked] = {}
    sets: dict[str, Asked] = {}
    for each in chosen:
        found = find_templates(each)
        for template in found:
            singles[template] = Asked(template, "template", class_prompts(names, (template,)))
        if len(found) > 1:
            sets[each] = Asked(each, "mean", [], tuple(dict.fromkeys(found)))
    told = [Asked(name, "descriptions", class_prompts(names, (), own)) for name, own in descriptions.items()]
    every = [*singles.values(), *told, *sets.values()]
    called = [*RESERVED, *(each.name for each in every)]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two wordings would be called '{twice}': rename the file of descriptions")
    return every


def known_only(asked: Sequence[Asked], texts: Encoder) -> tuple[list[Asked], tuple[str, ...]]:
    """Without the wordings that a stored encoder has no texts for, and without sets that lack a member."""
    known = known_texts(texts)
    if known is None:
        return list(asked), ()
    kept = [each for each in asked if all(prompt in known for own in each.prompts for prompt in own)]
    names = {each.name for each in kept}
    kept = [each for each in kept if all(member in names for member in each.members)]
    names = {each.name for each in kept}
    if not kept:
        raise ConfigError(
            f"{texts.name} knows stored texts only, and none of these {len(asked)} wordings is among them: pour it "
            "with the templates to compare, or name the one it has"
        )
    return kept, tuple(each.name for each in asked if each.name not in names)


def class_vectors_of(
    texts: Encoder, asked: Sequence[Asked], batch_size: int, *, progress: bool = False
) -> dict[str, Floats]:
    """Unit class vectors [C, D] of each wording; every distinct text is encoded once."""
    flat = list(dict.fromkeys(prompt for each in asked for own in each.prompts for prompt in own))
    row = {prompt: place for place, prompt in enumerate(flat)}
    pieces = [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    bar = track(pieces, total=len(flat), description="class texts", unit="texts", enabled=progress, size=len)
    encoded = np.concatenate([texts.encode_texts(piece, batch_size=batch_size) for piece in bar])
    out: dict[str, Floats] = {}
    for each in asked:
        if each.members:
            out[each.name] = mixed(np.stack([out[member] for member in each.members]), [1.0] * len(each.members))
        else:
            own = [
                encoded[[row[prompt] for prompt in prompts]].mean(axis=0, dtype=np.float64) for prompts in each.prompts
            ]
            out[each.name] = mixed(np.stack(own)[None].astype(np.float32), [1.0])
    return out


def find_baseline(asked: Sequence[Asked], given: str | None) -> str:
    """The wording that others are measured against. Raises ``ConfigError`` where it is not among ``asked``."""
    names = [each.name for each in asked]
    if given is None:
        return BASELINE if BASELINE in names else names[0]
    # A set of one template, such as "single", is known by its template.
    wanted = given if given in names else (find_templates(given) or (given,))[0]
    if wanted not in names:
        raise ConfigError(f"the baseline '{given}' is not among the wordings: name it with --templates too")
    return wanted
