"""One preprocessing for training and runtime: Pillow + NumPy, equal to torchvision's and open_clip's for Pillow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from clipette.data.images import upright_rgb
from clipette.errors import ConfigError
from clipette.types import Floats, View

Bytes: TypeAlias = npt.NDArray[np.uint8]
Triple: TypeAlias = tuple[float, float, float]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]
Mode: TypeAlias = Literal["crop", "squash", "pad"]

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# A 1 x 60,000 strip resized by its shorter side would need gigabytes, nearly all of it to be cut off again.
FAR_LARGER = 20
# Of a model's input: beyond, a damaged file speaks.
LONGEST = 8192
# No mean or spread of pixels between 0 and 1, or between 0 and 255, is larger.
MOST = 1e4


@dataclass(frozen=True)
class Preprocess:
    """How one encoder wants its images: a callable from a Pillow image to float32 [3, H, W].

    ``size``: (H, W). ``mode``: ``crop`` = resize the shorter side, then cut the centre (CLIP); ``squash`` = resize
    both sides (SigLIP); ``pad`` = resize the longer side, then pad with black. ``shorter``: in mode ``crop``, the
    length of the shorter side before the cut, where it differs from ``size`` (e.g. 256 for a 224 cut); in mode
    ``squash``, of both sides before the cut (ALIGN: 346 for 289). Raises ``ConfigError`` for impossible values.
    """

    size: tuple[int, int]
    mean: Triple
    std: Triple
    interpolation: Interpolation = "bicubic"
    mode: Mode = "crop"
    shorter: int | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1 or max(self.size) > LONGEST:
            raise ConfigError(f"preprocess: size {self.size} must be (height, width), both from 1 to {LONGEST}")
        usual = all(abs(value) < MOST for value in self.mean) and all(1 / MOST < value < MOST for value in self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not usual:
            raise ConfigError(
                f"preprocess: mean {self.mean} and std {self.std} must be three numbers each, std > 0 and all below "
                f"{MOST:g}"
            )
        if self.interpolation not in RESAMPLING:
            raise ConfigError(f"preprocess: interpolation '{self.interpolation}' must be one of {sorted(RESAMPLING)}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"preprocess: mode '{self.mode}' must be one of {list(get_args(Mode))}")
        if self.shorter is not None and (self.mode == "pad" or self.shorter < max(self.size)):
            raise ConfigError(f"preprocess: shorter {self.shorter} must be at least the size {self.size}; not for pad")

    def __call__(self, image: Image.Image) -> Floats:
        """Full preprocessing of any Pillow image: float32 [3, H, W]."""
        return self.normalize(self.pixels(image, View()))

    def view(self, image: Image.Image, view: View) -> Floats:
        """Preprocessing of one view of the upright original: float32 [3, H, W]; ``View()`` is ``__call__``."""
        return self.normalize(self.pixels(image, view))

    def pixels(self, image: Image.Image, view: View = View()) -> Bytes:
        """The view before normalisation: uint8 [H, W, 3].

        The box is resized straight from the original (squashed to H x W, as RandomResizedCrop does), then flipped,
        then brightness, contrast and saturation are applied: the same region at every resolution.
        """
        if image.mode != "RGB":
            image = upright_rgb(image)
        if view == View():
            return np.array(self._framed(image), dtype=np.uint8)
        width, height = image.size
        left, top, right, bottom = view.box
        box = (left * width, top * height, min(right * width, width), min(bottom * height, height))
        cut = image.resize(self.size[::-1], RESAMPLING[self.interpolation], box=box)
        if view.flip:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if view.brightness != 1:
            cut = ImageEnhance.Brightness(cut).enhance(view.brightness)
        if view.contrast != 1:
            cut = ImageEnhance.Contrast(cut).enhance(view.contrast)
        if view.saturation != 1:
            cut = ImageEnhance.Color(cut).enhance(view.saturation)
        return np.array(cut, dtype=np.uint8)

    def normalize(self, pixels: Bytes, out: Floats | None = None) -> Floats:
        """(x / 255 - mean) / std: uint8 [H, W, 3] or [N, H, W, 3] to float32 [3, H, W] or [N, 3, H, W] (``out``)."""
        # 256 possible bytes a channel: a table is exact (the same float32 operations) and faster than arithmetic.
        table = _table(self.mean, self.std)
        if out is None:
            out = np.empty((*pixels.shape[:-3], 3, *pixels.shape[-3:-1]), dtype=np.float32)
        for channel in range(3):
            np.take(table[channel], pixels[..., channel], out=out[..., channel, :, :], mode="clip")
        return out

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, for manifests, bundles and recipes."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Preprocess:
        """The inverse of ``to_dict``. Raises ``ConfigError`` for a missing, unknown or bad field."""
        try:
            pair = tuple(_number(x, int) for x in cast("list[object]", values["size"]))
            mean = tuple(float(_number(x, float)) for x in cast("list[object]", values["mean"]))
            std = tuple(float(_number(x, float)) for x in cast("list[object]", values["std"]))
            rest = {name: value for name, value in values.items() if name not in ("size", "mean", "std")}
            if rest.get("shorter") is not None:
                _number(rest["shorter"], int)
            return cls(pair, mean, std, **rest)  # type: ignore[arg-type]  # __post_init__ checks the values
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"preprocess {str(dict(values))[:300]}: {type(error).__name__}: {error}") from error

    def _framed(self, image: Image.Image) -> Image.Image:
        """Resize and crop, squash or pad to ``size``."""
        height, width = self.size
        resampling = RESAMPLING[self.interpolation]
        resized_width, resized_height = self._resized_size(image.size)
        # round() is half-to-even, as in torchvision's center_crop.
        top, left = round((resized_height - height) / 2), round((resized_width - width) / 2)
        if self.mode == "crop" and resized_width * resized_height > FAR_LARGER * width * height:
            # The same filter at the same places (up to Pillow's rounding), without what will be cut off.
            across, down = image.width / resized_width, image.height / resized_height
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            return image.resize((width, height), resampling, box=box)
        resized = image.resize((resized_width, resized_height), resampling)
        if self.mode != "pad":
            return resized.crop((left, top, left + width, top + height))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(resized, ((width - resized_width) // 2, (height - resized_height) // 2))
        return canvas

    def _resized_size(self, source: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after resizing: torchvision's ``Resize(int)`` truncates, open_clip's keep-ratio rounds."""
        width, height = source
        target_height, target_width = self.size
        if self.mode == "squash":
            return self.shorter or target_width, self.shorter or target_height
        if self.mode == "crop" and (target_height == target_width or self.shorter is not None):
            short = self.shorter or target_height
            if width <= height:
                return short, int(short * height / width)
            return int(short * width / height), short
        ratios = (height / target_height, width / target_width)
        ratio = max(ratios) if self.mode == "pad" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _number(value: object, kind: type[int] | type[float]) -> Any:
    """``value`` where JSON gives such a number, and no truth, text or fraction for it. Raises ``TypeError``."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise TypeError(f"{str(value)[:40]!r} is no {'whole ' if kind is int else ''}number")
    return value


@functools.lru_cache(maxsize=64)
def _table(mean: Triple, std: Triple) -> Floats:
    """[3, 256]: the normalised value of each byte in each channel, by torchvision's own float32 steps."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    centre, spread = np.asarray(mean, dtype=np.float32)[:, None], np.asarray(std, dtype=np.float32)[:, None]
    table: Floats = (levels[None, :] - centre) / spread
    table.setflags(write=False)
    return table
