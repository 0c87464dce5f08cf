"""Scenes of the sample world as pixels: signed distances, so edges are smooth at any size and nothing is supersampled.

Only +, -, *, / and square roots run over arrays (IEEE 754 rounds those alike everywhere; vectorised sine and exp do
not), so that a seed gives the same bytes in every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from clipette.data.corruptions import bell_noise
from clipette.data.world_scene import RGB, Scene, Thing
from clipette.types import Floats

Pixels = npt.NDArray[np.uint8]


def render_scene(scene: Scene, size: int) -> Pixels:
    """The picture, uint8 [size, size, 3] RGB."""
    canvas = _background(scene, size)
    for thing in reversed(scene.things):
        (_draw_outline if scene.style == "outline" else _draw_filled)(canvas, thing, size, scene.strength)
    pixels = np.clip(canvas * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return STYLE_EFFECTS[scene.style](pixels, scene)


# --- shapes: distance to the edge in units of the radius, negative inside; x to the right, y up --------------------


def _circle(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.sqrt(x * x + y * y) - np.float32(0.9)
    return distance


def _square(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.78)
    return distance


def _triangle(x: Floats, y: Floats) -> Floats:
    y = y + np.float32(0.2)
    slanted = np.abs(x) * np.float32(0.8660254) + y * np.float32(0.5)
    distance: Floats = np.maximum(slanted, -y) - np.float32(0.58)
    return distance


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: the plane folded onto one edge (Quilez, 2D distance functions)."""
    cos36, sin36 = np.float32(0.809016994), np.float32(0.587785252)
    x = np.abs(x)
    fold: Floats = np.float32(2) * np.maximum(x * cos36 - y * sin36, 0)
    x, y = x - fold * cos36, y + fold * sin36
    fold = np.float32(2) * np.maximum(-x * cos36 - y * sin36, 0)
    x, y = np.abs(x + fold * cos36), y + fold * sin36
    tip, waist = np.float32(1.06), np.float32(0.46)
    edge_x, edge_y = waist * sin36, waist * cos36 - np.float32(1.0)
    y = y - tip
    along = np.clip((x * edge_x + y * edge_y) / (edge_x * edge_x + edge_y * edge_y), 0, tip)
    dx, dy = x - edge_x * along, y - edge_y * along
    distance: Floats = np.sqrt(dx * dx + dy * dy) * np.sign(y * edge_x - x * edge_y)
    return distance


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    long, short = np.float32(0.94), np.float32(0.33)
    distance: Floats = np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))
    return distance


def _ring(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.abs(np.sqrt(x * x + y * y) - np.float32(0.66)) - np.float32(0.27)
    return distance


SHAPE_DISTANCES: Mapping[str, Callable[[Floats, Floats], Floats]] = MappingProxyType(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "star": _star,
        "cross": _cross,
        "ring": _ring,
    }
)

# --- textures: distance to the pattern's edge in units of its period, negative where the second colour is ----------


def _wave(at: Floats) -> Floats:
    """Triangle wave of period 1 between -1/4 and 1/4: the signed distance to the edges of equal bands."""
    distance: Floats = np.abs(at - np.floor(at) - np.float32(0.5)) - np.float32(0.25)
    return distance


def _striped(u: Floats, v: Floats) -> Floats:
    return _wave(u)


def _dotted(u: Floats, v: Floats) -> Floats:
    """A lattice of dots turned by 45 degrees."""
    s, t = (u + v) * np.float32(0.70710678), (u - v) * np.float32(0.70710678)
    s, t = s - np.floor(s) - np.float32(0.5), t - np.floor(t) - np.float32(0.5)
    distance: Floats = np.sqrt(s * s + t * t) - np.float32(0.3)
    return distance


TEXTURE_DISTANCES: Mapping[str, Callable[[Floats, Floats], Floats] | None] = MappingProxyType(
    {"solid": None, "striped": _striped, "dotted": _dotted}
)

# --- drawing ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Floats, Floats]:
    """Pixel centres as fractions of the side: x [1, size] and y [size, 1]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


def _rgb(colour: RGB) -> Floats:
    return np.asarray(colour, dtype=np.float32) / np.float32(255)


def _background(scene: Scene, size: int) -> Floats:
    x, y = _grid(size)
    angle = math.radians(scene.slope)
    across, down = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    share: Floats = np.clip(np.float32(0.5) + (x - np.float32(0.5)) * across + (y - np.float32(0.5)) * down, 0, 1)
    near, far = _rgb(scene.near), _rgb(scene.far)
    if scene.style == "outline":
        far = near
    return near + share[..., None] * (far - near)


def _local(thing: Thing, size: int) -> tuple[Floats, Floats]:
    """Coordinates in the thing's own frame, in units of its radius, y up: two [size, size] arrays."""
    x, y = _grid(size)
    angle = math.radians(thing.angle)
    cos, sin = np.float32(math.cos(angle) / thing.radius), np.float32(math.sin(angle) / thing.radius)
    dx, dy = x - np.float32(thing.x), np.float32(thing.y) - y
    return dx * cos + dy * sin, dy * cos - dx * sin


def _paint(canvas: Floats, coverage: Floats, colour: Floats) -> None:
    canvas += coverage[..., None] * (colour - canvas)


def _cover(distance_in_pixels: Floats) -> Floats:
    share: Floats = np.clip(np.float32(0.5) - distance_in_pixels, 0, 1)
    return share


def _pattern(thing: Thing, u: Floats, v: Floats) -> Floats | None:
    """Distance to the texture's edges in periods, or None for a solid thing."""
    distance = TEXTURE_DISTANCES[thing.composition.texture]
    if distance is None:
        return None
    scale = np.float32(thing.radius / thing.period)
    return distance(u * scale, v * scale)


def _draw_filled(canvas: Floats, thing: Thing, size: int, strength: float) -> None:
    u, v = _local(thing, size)
    pixels = np.float32(thing.radius * size)
    edge = SHAPE_DISTANCES[thing.composition.shape](u, v) * pixels
    step = max(1, round(0.025 * size))
    shadow = np.clip(np.float32(0.5) - edge[:-step, :-step] / np.float32(0.05 * size), 0, 1) * np.float32(0.22)
    _paint(canvas[step:, step:], shadow, _rgb((30, 32, 52)))
    inside = _cover(edge)
    _paint(canvas, inside, _rgb(thing.colour))
    pattern = _pattern(thing, u, v)
    if pattern is not None:
        _paint(canvas, inside * _cover(pattern * np.float32(thing.period * size)), _rgb(thing.second))
    rim = inside * np.clip(edge / np.float32(0.02 * size) + 1, 0, 1) * np.float32(0.7)
    _paint(canvas, rim, _rgb(thing.colour) * np.float32(0.45))


def _draw_outline(canvas: Floats, thing: Thing, size: int, strength: float) -> None:
    """The contour and the edges of the texture as strokes; nothing is filled."""
    u, v = _local(thing, size)
    edge = SHAPE_DISTANCES[thing.composition.shape](u, v) * np.float32(thing.radius * size)
    half = np.float32(size * (0.022 - 0.006 * strength))
    stroke = _cover(np.abs(edge) - half)
    pattern = _pattern(thing, u, v)
    if pattern is not None:
        lines = np.abs(pattern) * np.float32(thing.period * size) - np.float32(0.0085 * size)
        stroke = np.maximum(stroke, _cover(edge) * _cover(lines))
    _paint(canvas, stroke, _rgb(thing.colour) * np.float32(0.9))


# --- styles -------------------------------------------------------------------------------------------------------


def _unchanged(pixels: Pixels, scene: Scene) -> Pixels:
    return pixels


def _noise(pixels: Pixels, scene: Scene) -> Pixels:
    sigma = np.float32(255 * (0.05 + 0.13 * scene.strength))
    return np.clip(pixels + sigma * bell_noise(pixels.shape, scene.noise_seed), 0, 255).astype(np.uint8)


def _inverted(pixels: Pixels, scene: Scene) -> Pixels:
    """Lightness L becomes 1 - L in HSL, hue and saturation stay.

    A photographic negative would turn red into cyan, and the class's name would be wrong.
    """
    wide = pixels.astype(np.int16)
    turned: Pixels = (wide + (255 - wide.max(axis=2, keepdims=True) - wide.min(axis=2, keepdims=True))).astype(np.uint8)
    return turned


def _blurred(pixels: Pixels, scene: Scene) -> Pixels:
    radius = pixels.shape[0] * (0.01 + 0.02 * scene.strength)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


STYLE_EFFECTS: Mapping[str, Callable[[Pixels, Scene], Pixels]] = MappingProxyType(
    {"plain": _unchanged, "outline": _unchanged, "noise": _noise, "inverted": _inverted, "blurred": _blurred}
)
