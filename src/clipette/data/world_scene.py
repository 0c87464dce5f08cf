"""What is in a picture of the sample world: the vocabulary, the classes, and scenes drawn by lot.

A scene is numbers and words only; ``world_render`` turns it into pixels and ``world_captions`` into sentences.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeVar

RGB: TypeAlias = tuple[int, int, int]
T = TypeVar("T")

WORLD_VERSION = 1
"""Part of every seed and manifest: raise it whenever a change alters pixels, captions or classes."""

COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (218, 42, 48),
        "yellow": (244, 212, 44),
        "green": (56, 164, 72),
        "blue": (44, 88, 214),
        "purple": (134, 60, 186),
        "pink": (246, 118, 182),
    }
)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("solid", "striped", "dotted")
BACKGROUNDS: Mapping[str, RGB] = MappingProxyType(
    {
        "white": (251, 251, 249),
        "cream": (251, 239, 212),
        "grey": (204, 206, 211),
        "pale blue": (205, 225, 248),
        "pale green": (210, 240, 213),
        "pale pink": (251, 219, 228),
    }
)
DARK_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "white": "black",
        "cream": "brown",
        "grey": "dark grey",
        "pale blue": "navy",
        "pale green": "dark green",
        "pale pink": "maroon",
    }
)
"""What a background is called once its lightness is inverted."""

PLACES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "centre": (0, 0),
        "left": (-1, 0),
        "right": (1, 0),
        "top": (0, -1),
        "bottom": (0, 1),
        "top left": (-1, -1),
        "top right": (1, -1),
        "bottom left": (-1, 1),
        "bottom right": (1, 1),
    }
)
RADII: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"small": (0.22, 0.25), "medium": (0.28, 0.32), "large": (0.35, 0.39)}
)
RELATIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
STYLES = ("plain", "outline", "noise", "inverted", "blurred")


class Lot:
    """Draws by lot from ``random()`` alone, the one method Python keeps equal between versions."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability


def world_seed(*parts: object) -> int:
    """63-bit seed of what is named, equal on every machine and in every process."""
    text = "|".join(str(part) for part in ("clipette-world", WORLD_VERSION, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Composition:
    """A class of the world: texture × colour × shape."""

    texture: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        """For example ``striped red star``."""
        return f"{self.texture} {self.colour} {self.shape}"


def _compositions(offsets: tuple[int, ...]) -> tuple[Composition, ...]:
    """Two of the three textures for each (shape s, colour c) with (c - s) mod 6 in ``offsets``.

    A Latin square: every shape, every colour and every texture occurs equally often.
    """
    colours = tuple(COLOURS)
    return tuple(
        Composition(texture, colours[(s + offset) % len(colours)], shape)
        for s, shape in enumerate(SHAPES)
        for turn, offset in enumerate(offsets)
        for t, texture in enumerate(TEXTURES)
        if t != (s + turn) % len(TEXTURES)
    )


SEEN = _compositions((0, 2, 3, 5))
"""48 classes of the student's training set: 24 of the 36 (colour, shape) pairs, two textures each."""
NOVEL = _compositions((1, 4))
"""24 held-out classes: their (colour, shape) pairs occur in no training picture, in any texture."""
EVERY = tuple(Composition(t, c, s) for s in SHAPES for c in COLOURS for t in TEXTURES)
"""All 108 compositions, which the broad pretraining set covers."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. ``x``, ``y``, ``radius`` and ``period`` (of the texture) are fractions of the picture's side."""

    composition: Composition
    size: str
    place: str
    x: float
    y: float
    radius: float
    angle: float
    period: float
    colour: RGB
    second: RGB


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: the first thing gives the class; ``relation`` is where it is from the second's point of view."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    near: RGB
    far: RGB
    slope: float
    style: str
    strength: float
    noise_seed: int

    @property
    def background_name(self) -> str:
        """What a viewer would call the background in this style."""
        return DARK_NAMES[self.background] if self.style == "inverted" else self.background


@dataclass(frozen=True, slots=True)
class SplitLaw:
    """How the scenes of a split are drawn. ``stream`` names the lots: equal streams give the same scenes."""

    stream: str
    classes: tuple[Composition, ...]
    others: tuple[Composition, ...]
    styles: tuple[tuple[str, float], ...] = (("plain", 1.0),)
    strength: tuple[float, float] = (0.7, 1.0)
    tilt: float = 12.0
    jitter: float = 12.0
    default_n: int = 480

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return tuple(each.name for each in self.classes)


def _shifted(style: str) -> SplitLaw:
    return SplitLaw("test", SEEN, SEEN, ((style, 1.0),))


SPLITS: Mapping[str, SplitLaw] = MappingProxyType(
    {
        "pretrain": SplitLaw(
            "pretrain",
            EVERY,
            EVERY,
            (("plain", 0.4), ("outline", 0.15), ("noise", 0.15), ("inverted", 0.15), ("blurred", 0.15)),
            strength=(0.2, 1.0),
            tilt=15.0,
            jitter=16.0,
            default_n=12_000,
        ),
        "train": SplitLaw("train", SEEN, SEEN, default_n=4_000),
        "dev": SplitLaw("dev", SEEN, SEEN),
        "test": SplitLaw("test", SEEN, SEEN, default_n=960),
        "novel": SplitLaw("novel", NOVEL, SEEN + NOVEL, default_n=960),
        "shift-outline": _shifted("outline"),
        "shift-noise": _shifted("noise"),
        "shift-inverted": _shifted("inverted"),
        "shift-blurred": _shifted("blurred"),
    }
)
"""Splits by name. ``shift-*`` redraw the very scenes of ``test`` in another style, so that the two are paired."""


def draw_scene(split: str, seed: int, index: int) -> Scene:
    """The scene of sample ``index``; classes take turns, everything else is drawn by lot."""
    law = SPLITS[split]
    number = world_seed(law.stream, seed, index)
    lot = Lot(number)
    main = law.classes[index % len(law.classes)]
    background = lot.pick(tuple(BACKGROUNDS))
    near = _jittered(BACKGROUNDS[background], 4.0, lot)
    far = _mixed(near, (255, 255, 255) if lot.chance(0.5) else (150, 156, 168), lot.uniform(0.0, 0.28))
    slope = lot.uniform(0.0, 360.0)
    relation = lot.pick(tuple(RELATIONS)) if lot.chance(0.2) else None
    things = _pair(main, relation, law, lot) if relation else (_single(main, law, lot),)
    style, strength = _style(law, lot)
    return Scene(things, relation, background, near, far, slope, style, strength, number)


def _style(law: SplitLaw, lot: Lot) -> tuple[str, float]:
    at, strength = lot.random(), lot.uniform(*law.strength)
    for style, share in law.styles:
        at -= share
        if at < 0:
            return style, strength
    return law.styles[-1][0], strength


def _single(composition: Composition, law: SplitLaw, lot: Lot) -> Thing:
    size = lot.pick(tuple(RADII))
    place = "centre" if lot.chance(0.25) else lot.pick(tuple(PLACES))
    radius = lot.uniform(*RADII[size])
    across, down = PLACES[place]
    reach = 0.47 - radius
    x = 0.5 + _offset(across, reach, lot)
    y = 0.5 + _offset(down, reach, lot)
    return _thing(composition, size, place, x, y, radius, law, lot)


def _offset(direction: int, reach: float, lot: Lot) -> float:
    """Close to the edge where a direction is named, close to the middle where not."""
    if direction == 0:
        return lot.uniform(-0.03, 0.03)
    return direction * max(0.06, reach * lot.uniform(0.72, 1.0))


def _pair(main: Composition, relation: str, law: SplitLaw, lot: Lot) -> tuple[Thing, Thing]:
    """The class's thing, clearly larger, and a small one of another composition on its other side."""
    across, down = RELATIONS[relation]
    other = lot.pick(law.others)
    while other == main:
        other = lot.pick(law.others)
    radius, small = lot.uniform(0.25, 0.27), lot.uniform(0.14, 0.16)
    shift, other_shift = lot.uniform(0.17, 0.2), lot.uniform(0.29, 0.31)
    aside, other_aside = lot.uniform(-0.12, 0.12), lot.uniform(-0.18, 0.18)
    x, y = 0.5 + across * shift + down * aside, 0.5 + down * shift + across * aside
    other_x = 0.5 - across * other_shift + down * other_aside
    other_y = 0.5 - down * other_shift + across * other_aside
    place = _place_name(across, down)
    opposite = _place_name(-across, -down)
    return (
        _thing(main, "medium", place, x, y, radius, law, lot),
        _thing(other, "small", opposite, other_x, other_y, small, law, lot),
    )


def _place_name(across: int, down: int) -> str:
    return next(name for name, direction in PLACES.items() if direction == (across, down))


def _thing(
    composition: Composition, size: str, place: str, x: float, y: float, radius: float, law: SplitLaw, lot: Lot
) -> Thing:
    colour = _jittered(COLOURS[composition.colour], law.jitter, lot)
    light = lot.chance(0.65)
    second = _mixed(colour, (255, 255, 255), 0.78) if light else _mixed(colour, (16, 14, 30), 0.62)
    period = max(0.115, 0.46 * radius) * lot.uniform(0.92, 1.12)
    angle = lot.uniform(-law.tilt, law.tilt)
    return Thing(composition, size, place, x, y, radius, angle, period, colour, second)


def _jittered(colour: RGB, spread: float, lot: Lot) -> RGB:
    red, green, blue = (min(255, max(0, round(part + lot.uniform(-spread, spread)))) for part in colour)
    return red, green, blue


def _mixed(colour: RGB, towards: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, towards, strict=True))
    return red, green, blue
