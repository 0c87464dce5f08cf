"""Encoded bytes in, an upright RGB image out; or one ``BadImageError`` that says which file and why."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipette.errors import BadImageError, ConfigError

# Only formats that Pillow decodes in memory: EPS would start Ghostscript, FLI or WMF bring nothing but attack surface.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "ICO", "TGA",
)  # fmt: skip
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodeSettings:
    """How images are decoded; part of a store's key, because ``scaled`` changes pixels.

    ``scaled``: let the JPEG decoder shrink by 2, 4 or 8 while both sides stay at or above the wanted size (about three
    times faster on photographs). Allowed in training; off in evaluation and serving.
    ``max_pixels``: images with more are refused before they are decoded. Pillow's own limit (the default) also holds.
    """

    scaled: bool = False
    max_pixels: int = 178_956_970

    def to_dict(self) -> dict[str, object]:
        """Plain values, for a store's manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> DecodeSettings:
        """The inverse of ``to_dict``. Raises ``ConfigError``."""
        scaled, max_pixels = values.get("scaled", False), values.get("max_pixels", cls.max_pixels)
        if not isinstance(scaled, bool) or not isinstance(max_pixels, int) or set(values) - {"scaled", "max_pixels"}:
            raise ConfigError(f"decode settings {dict(values)}: expected scaled (true/false) and max_pixels (integer)")
        return cls(scaled, max_pixels)


def decode_image(
    data: bytes,
    *,
    location: str,
    settings: DecodeSettings = DecodeSettings(),
    want: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode one image to upright RGB.

    EXIF orientation is applied; CMYK and 16-bit samples become 8-bit RGB; transparency is composited on white; of an
    animation the first frame is taken.

    Args:
        data: the encoded bytes.
        location: where they come from, for messages.
        settings: see ``DecodeSettings``.
        want: (height, width) that the caller will resize to; used only when ``settings.scaled``. A caller that cuts a
            part of the image wants that much more.

    Raises:
        BadImageError: empty, truncated, not an image, unsupported, or larger than ``settings.max_pixels``.
    """
    if not data:
        raise BadImageError(f"{location}: the image is empty (0 bytes); fetch it again or drop the row")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > settings.max_pixels:
                raise BadImageError(
                    f"{location}: {width}x{height} pixels exceed the limit of {settings.max_pixels:,} pixels; "
                    "shrink the image or raise max_pixels"
                )
            if settings.scaled and want is not None:
                # Both sides, because EXIF may turn the image after decoding.
                image.draft(None, (max(want), max(want)))
            return upright_rgb(image)
    except BadImageError as error:
        raise error if location in str(error) else BadImageError(f"{location}: {error}") from error.__cause__
    except UnidentifiedImageError:
        raise BadImageError(
            f"{location}: not an image of a supported format (begins with {data[:12]!r}); replace it or drop the row"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(
            f"{location}: too many pixels (the limit is "
            f"{min(settings.max_pixels, Image.MAX_IMAGE_PIXELS or settings.max_pixels):,}); shrink the image"
        ) from error
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error ... on damaged
        # data: a list would miss one, and one bad image must never end a run.
        reason = str(error) or type(error).__name__
        raise BadImageError(f"{location}: the image is damaged ({reason}); fetch it again or drop the row") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB, transparency on white; applying it twice changes nothing.

    Raises:
        BadImageError: 32-bit float samples, whose range nothing states; no pixels.
    """
    image.load()
    if not image.width * image.height:
        raise BadImageError(f"{image.width}x{image.height} pixels: there is nothing to see")
    turn = UPRIGHT.get(_orientation(image))
    image = _rgb(image)
    if turn is None:
        return image
    image = image.transpose(turn)
    image.info = {}  # Pillow copies the EXIF block, whose orientation no longer holds
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise BadImageError("32-bit float samples have no stated range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):
        # 16-bit grey (PNG, TIFF: "I;16*"; PGM: "I"): Pillow's own conversion clips to 255 instead of scaling.
        high_byte = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # La and RGBa (premultiplied) convert only to their straight twins.
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        canvas = Image.new("RGBA", straight.size, "white")
        return Image.alpha_composite(canvas, straight).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels: read the image as it stands
        return 1


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
