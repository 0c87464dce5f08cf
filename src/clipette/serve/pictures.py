"""Pictures from strangers: raster formats by their content, within caps that hold before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from PIL import Image

from clipette.data.images import DecodeSettings, decode_image
from clipette.serve.faults import HttpFault

# Beyond this ratio of sides a "photograph" is an attack on whoever resizes it by its shorter side.
MOST_ELONGATED = 100
# (place, bytes) that a file of a format begins with.
MAGIC: tuple[tuple[str, int, bytes], ...] = (
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/gif", 0, b"GIF87a"),
    ("image/gif", 0, b"GIF89a"),
    ("image/webp", 8, b"WEBP"),
    ("image/avif", 4, b"ftypavif"),
    ("image/avif", 4, b"ftypavis"),
    ("image/bmp", 0, b"BM"),
    ("image/tiff", 0, b"II*\0"),
    ("image/tiff", 0, b"MM\0*"),
    ("image/jp2", 0, b"\x00\x00\x00\x0cjP  "),
    ("image/x-portable-pixmap", 0, b"P6"),
    ("image/x-portable-graymap", 0, b"P5"),
)
SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/jp2": ".jp2",
    "image/x-portable-pixmap": ".ppm",
    "image/x-portable-graymap": ".pgm",
}
ACCEPTED = "JPEG, PNG, GIF, WebP, AVIF, BMP, TIFF, JPEG 2000, PPM"
DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Caps on one picture."""

    max_bytes: int
    max_pixels: int


def media_type(data: bytes) -> str | None:
    """What a file is, by its content and never by its name; None for what is no raster picture (SVG, HTML, ...)."""
    for kind, place, magic in MAGIC:
        if data[place : place + len(magic)] == magic:
            return kind
    return None


def check_picture(data: bytes, limits: PictureLimits, param: str) -> str:
    """The media type. Raises ``HttpFault``: 413 for too many bytes, 415 for what is no raster picture."""
    if len(data) > limits.max_bytes:
        message = f"{param}: {len(data):,} bytes exceed the limit of {limits.max_bytes:,}; shrink the picture"
        raise HttpFault(413, "too_large", message, param=param)
    kind = media_type(data)
    if kind is None:
        message = f"{param}: not a picture of a known raster format ({ACCEPTED}); SVG, HTML and documents are refused"
        raise HttpFault(415, "bad_image", message, param=param)
    return kind


def open_picture(data: bytes, limits: PictureLimits, param: str = "image") -> Image.Image:
    """An upright RGB picture.

    Raises ``HttpFault`` as ``check_picture``; ``BadImageError`` where it is damaged, has more pixels than the limit, or
    is far longer than wide. Bytes, format and pixels are checked before anything is decoded.
    """
    check_picture(data, limits, param)
    picture = decode_image(data, location=param, settings=DecodeSettings(max_pixels=limits.max_pixels))
    short, long = sorted(picture.size)
    if long > MOST_ELONGATED * short:
        message = f"{param}: {picture.width}x{picture.height} is too elongated; cut the picture"
        raise HttpFault(400, "bad_image", message, param=param)
    return picture


def bytes_of_text(text: str, limits: PictureLimits, param: str) -> bytes:
    """The bytes of base64 or of a data: URI.

    Raises ``HttpFault``: 400 for an address (nothing is ever fetched) or broken base64, 413 before decoding.
    """
    if ADDRESS.match(text):
        message = f"{param}: an address; this server fetches nothing: send the picture itself, as base64"
        raise HttpFault(400, "no_fetching", message, param=param)
    found = DATA_URI.match(text)
    if found is None and text[:5].lower() == "data:":
        message = f"{param}: a data: URI without base64; write data:image/png;base64,..."
        raise HttpFault(400, "bad_image", message, param=param)
    body = text[found.end() :] if found else text
    if len(body) * 3 // 4 > limits.max_bytes + 3:
        message = f"{param}: about {len(body) * 3 // 4:,} bytes exceed the limit of {limits.max_bytes:,}"
        raise HttpFault(413, "too_large", message, param=param)
    try:
        return base64.b64decode(body.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise HttpFault(400, "bad_image", f"{param}: not base64 ({_plain(error)})", param=param) from None


def _plain(error: Exception) -> str:
    return "non-ASCII characters" if isinstance(error, UnicodeEncodeError) else str(error)
