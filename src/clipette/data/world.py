"""The rendered sample world: captioned pictures drawn by our own code, so that demo and tests download nothing.

A class is texture × colour × shape (``striped red star``). Splits: ``pretrain`` (all compositions and all styles),
``train``/``dev``/``test`` (48 seen classes, plain style), ``novel`` (24 held-out classes), and
``shift-outline|noise|inverted|blurred`` (the scenes of ``test`` in other styles).
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from PIL import Image

from clipette.data.world_captions import write_captions
from clipette.data.world_render import Pixels, render_scene
from clipette.data.world_scene import NOVEL, SEEN, SPLITS, Scene, draw_scene, world_seed
from clipette.errors import ConfigError
from clipette.types import Sample

WORLD_SPLITS = tuple(SPLITS)
WORLD_CLASSES = tuple(each.name for each in SEEN)
WORLD_NOVEL_CLASSES = tuple(each.name for each in NOVEL)


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What determines every byte of a split. ``n=None`` takes the split's own number; a prefix does not depend on n.

    Raises ``ConfigError`` for an unknown split or a value out of range.
    """

    split: str = "train"
    n: int | None = None
    size: int = 64
    seed: int = 0
    captions: int = 5

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            near = difflib.get_close_matches(self.split, SPLITS, 1, 0.0)[0]
            raise ConfigError(f"world: no split {self.split!r}; did you mean {near!r}? Splits: {', '.join(SPLITS)}")
        _check("n", self.n if self.n is not None else 1, 1, 100_000_000)
        _check("size", self.size, 8, 4096)
        _check("seed", self.seed, 0, 2**63 - 1)
        _check("captions", self.captions, 1, 20)

    @property
    def count(self) -> int:
        """``n``, or the split's own number of samples."""
        return SPLITS[self.split].default_n if self.n is None else self.n

    @property
    def class_names(self) -> tuple[str, ...]:
        """The split's class names, in the order of the labels."""
        return SPLITS[self.split].class_names

    @property
    def reference(self) -> str:
        """``world:train?n=4000&size=64&seed=0&captions=5``."""
        return f"world:{self.split}?n={self.count}&size={self.size}&seed={self.seed}&captions={self.captions}"

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values: what a manifest records."""
        return {**asdict(self), "n": self.count}


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"world: {name}={value} is out of range; give {name} from {low} to {high}")


@dataclass(frozen=True, slots=True)
class WorldImage:
    """One picture that is drawn when it is read: PNG bytes from (split, seed, index, size) alone."""

    split: str
    seed: int
    index: int
    size: int

    @property
    def location(self) -> str:
        """For messages: ``world:test?seed=0&size=64#12``."""
        return f"world:{self.split}?seed={self.seed}&size={self.size}#{self.index}"

    def scene(self) -> Scene:
        """What the picture shows."""
        return draw_scene(self.split, self.seed, self.index)

    def pixels(self) -> Pixels:
        """uint8 [size, size, 3], without the detour over PNG."""
        return render_scene(self.scene(), self.size)

    def read(self) -> bytes:
        """PNG bytes, equal in every process (for one version of Pillow's zlib)."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels()).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def world_image(spec: WorldSpec, index: int) -> WorldImage:
    """Picture ``index`` of the split."""
    return WorldImage(spec.split, spec.seed, index, spec.size)


def world_sample(spec: WorldSpec, index: int) -> Sample:
    """Sample ``index`` of the split; its picture is drawn only when read."""
    image = world_image(spec, index)
    scene = image.scene()
    label = index % len(SPLITS[spec.split].classes)
    return Sample(
        key=f"world-{spec.split}-{spec.seed}-{index:06d}",
        image=image,
        captions=write_captions(scene, spec.captions, world_seed("captions", spec.split, spec.seed, index)),
        class_name=scene.things[0].composition.name,
        label=label,
        domain=scene.style,
        split=spec.split,
    )


def world_samples(spec: WorldSpec) -> list[Sample]:
    """All samples of a split, in order; classes take turns, so that any prefix is balanced."""
    return [world_sample(spec, index) for index in range(spec.count)]


OPTIONS = ("n", "size", "seed", "captions")


def load_world(rest: str, options: Mapping[str, str]) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples and class names of a reference such as ``world:train?n=4000&size=64&seed=0`` (``rest`` is ``train``).

    Raises ``ConfigError`` for an unknown split, an unknown option or a value that is no whole number.
    """
    numbers: dict[str, int] = {}
    for name, text in options.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1, 0.0)[0]
            raise ConfigError(f"world:{rest}: no option {name!r}; did you mean {near!r}? Options: {', '.join(OPTIONS)}")
        try:
            numbers[name] = int(text)
        except ValueError:
            raise ConfigError(
                f"world:{rest}: {name}={text!r} is no whole number; write for example {name}=64"
            ) from None
    spec = WorldSpec(rest or "train", **numbers)
    return world_samples(spec), spec.class_names
