"""Augmented views as parameters: drawn from a hash, stored, and cut by each encoder at its own resolution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

from clipette.data.order import stable_uniforms
from clipette.errors import ConfigError
from clipette.types import View

ATTEMPTS = 10


@dataclass(frozen=True)
class ViewPolicy:
    """The law that views are drawn from.

    ``scale``: range of the crop's share of the image's area. ``ratio``: range of its width/height, uniform in the
    logarithm. ``flip``: probability of a horizontal flip. ``brightness``, ``contrast``, ``saturation``: factors are
    uniform in [max(0, 1 - x), 1 + x], as in torchvision's ColorJitter. Raises ``ConfigError`` for values out of range.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _pair("scale", self.scale))
        object.__setattr__(self, "ratio", _pair("ratio", self.ratio))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"view policy: scale {self.scale} must be two numbers with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"view policy: ratio {self.ratio} must be two numbers with 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"view policy: flip {self.flip} is a probability and must be in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"view policy: {name} {getattr(self, name)} must be a number >= 0")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, for recipes and a store's manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ViewPolicy:
        """The inverse of ``to_dict``. Raises ``ConfigError`` for an unknown field or a bad value."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"view policy: unknown {sorted(unknown)}; known: {[f.name for f in fields(cls)]}")
        try:
            return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks the values
        except TypeError as error:
            raise ConfigError(f"view policy {dict(values)}: {error}") from error


def draw_view(policy: ViewPolicy, image_size: tuple[int, int], seed: int, key: str, index: int) -> View:
    """The ``index``-th view of the image ``key``: RandomResizedCrop's law, a flip, and colour factors.

    Ten attempts at area ~ U(scale)·W·H and ratio ~ exp U(ln ratio), rounded to whole pixels of the image; then the
    largest centred crop of an allowed ratio. Depends on the arguments alone.

    Args:
        policy: the law.
        image_size: (width, height) of the **upright** original.
        seed: of the pour or the run.
        key: the sample's key.
        index: 0, 1, ...: which view of this image.

    Returns:
        View: its box lies inside [0, 1]² and is never empty.
    """
    draws = stable_uniforms("view", seed, key, index)
    left, top, width, height = _draw_crop(policy, image_size, draws)
    full_width, full_height = image_size
    return View(
        box=(left / full_width, top / full_height, (left + width) / full_width, (top + height) / full_height),
        flip=next(draws) < policy.flip,
        brightness=_factor(policy.brightness, next(draws)),
        contrast=_factor(policy.contrast, next(draws)),
        saturation=_factor(policy.saturation, next(draws)),
    )


def _draw_crop(policy: ViewPolicy, size: tuple[int, int], draws: Iterator[float]) -> tuple[int, int, int, int]:
    full_width, full_height = size
    log_low, log_high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(ATTEMPTS):
        area = full_width * full_height * _between(*policy.scale, next(draws))
        ratio = math.exp(_between(log_low, log_high, next(draws)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            top = int(next(draws) * (full_height - height + 1))
            left = int(next(draws) * (full_width - width + 1))
            return left, top, width, height
    width, height = full_width, full_height
    if full_width / full_height < policy.ratio[0]:
        height = max(1, min(full_height, round(full_width / policy.ratio[0])))
    elif full_width / full_height > policy.ratio[1]:
        width = max(1, min(full_width, round(full_height * policy.ratio[1])))
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def _factor(spread: float, uniform: float) -> float:
    return 1.0 if spread == 0 else _between(max(0.0, 1 - spread), 1 + spread, uniform)


def _pair(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"view policy: {name} {value!r} must be two numbers [low, high]")
    try:
        return float(value[0]), float(value[1])
    except (TypeError, ValueError):
        raise ConfigError(f"view policy: {name} {value!r} must be two numbers [low, high]") from None
