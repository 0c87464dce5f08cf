"""Sentences about scenes of the sample world: several grammars, synonyms, and a random part of what could be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from clipette.data.world_scene import Lot, Scene, Thing

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "cross": ("cross", "plus sign"),
        "ring": ("ring", "hoop"),
        "purple": ("purple", "violet"),
        "dotted": ("dotted", "spotted"),
        "solid": ("solid", "plain"),
        "small": ("small", "little", "tiny"),
        "medium": ("medium-sized",),
        "large": ("large", "big", "huge"),
        "centre": ("in the centre", "in the middle"),
        "left": ("on the left", "at the left edge"),
        "right": ("on the right", "at the right edge"),
        "top": ("at the top", "in the upper part"),
        "bottom": ("at the bottom", "in the lower part"),
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    }
)
WITH_TEXTURE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
)
OPPOSITE: Mapping[str, str] = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)
OPENINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "plain": ("a picture of", "an image of"),
        "outline": ("an outline drawing of", "a sketch of"),
        "noise": ("a noisy picture of", "a grainy image of"),
        "inverted": ("an inverted picture of", "a night picture of"),
        "blurred": ("a blurred picture of", "an out-of-focus image of"),
    }
)


def write_captions(scene: Scene, count: int, seed: int) -> tuple[str, ...]:
    """``count`` different sentences; the first names the class in full, the others say a random part."""
    lot = Lot(seed)
    captions: list[str] = []
    while len(captions) < count:
        sentence = _sentence(scene, lot, full=not captions)
        if sentence not in captions:
            captions.append(sentence)
    return tuple(captions)


def _sentence(scene: Scene, lot: Lot, *, full: bool) -> str:
    main = _phrase(scene.things[0], lot, full=full)
    if scene.relation is not None and lot.chance(0.8):
        body = _about_two(scene.relation, main, _phrase(scene.things[1], lot, full=False), lot)
    else:
        body = _about_one(main, scene.things[0], lot)
    if lot.chance(0.35):
        body = lot.pick(BACKGROUND_FORMS)(body, scene.background_name)
    if lot.chance(0.35):
        body = f"{lot.pick(OPENINGS[scene.style])} {body}"
    return body


def _word(word: str, lot: Lot) -> str:
    """The usual word, and now and then a synonym."""
    options = SYNONYMS.get(word, (word,))
    return options[0] if lot.chance(0.6) else lot.pick(options)


def _phrase(thing: Thing, lot: Lot, *, full: bool) -> str:
    """For example ``a small striped red star`` or ``a red star with stripes``."""
    what = thing.composition
    before, after = [], ""
    if lot.chance(0.35):
        before.append(_word(thing.size, lot))
    if full or lot.chance(0.85):
        if what.texture in WITH_TEXTURE and lot.chance(0.3):
            after = " " + lot.pick(WITH_TEXTURE[what.texture])
        else:
            before.append(_word(what.texture, lot))
    if full or lot.chance(0.95):
        colour = _word(what.colour, lot)
        # Both orders occur in captions: "a striped red star" mostly, "a red striped star" at times.
        before.insert(len(before) - 1 if before and not after and lot.chance(0.2) else len(before), colour)
    words = " ".join([*before, _word(what.shape, lot)])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}{after}"


def _about_one(main: str, thing: Thing, lot: Lot) -> str:
    if not lot.chance(0.4):
        return main
    return f"{main} {_where(thing.place, lot)}"


def _where(place: str, lot: Lot) -> str:
    return f"in the {place} corner" if " " in place else _word(place, lot)


def _about_two(relation: str, main: str, other: str, lot: Lot) -> str:
    form = lot.random()
    if form < 0.5:
        return f"{main} {_word(relation, lot)} {other}"
    if form < 0.75:
        return f"{other} {_word(OPPOSITE[relation], lot)} {main}"
    return f"{main} {lot.pick(('and', 'next to', 'with'))} {other}"


def _on(body: str, background: str) -> str:
    return f"{body} on a {background} background"


def _against(body: str, background: str) -> str:
    return f"{body} against {background}"


BACKGROUND_FORMS: tuple[Callable[[str, str], str], ...] = (_on, _on, _against)
