from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipette.errors import BadImageError
from clipette.serve.faults import HttpFault
from clipette.serve.pictures import PictureLimits, bytes_of_text, media_type, open_picture

LIMITS = PictureLimits(max_bytes=200_000, max_pixels=1_000_000)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


def encoded(kind: str, size: tuple[int, int] = (20, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that states a huge size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("PPM", "image/x-portable-pixmap"),
        ("AVIF", "image/avif"),
        ("JPEG2000", "image/jp2"),
    ],
)
def test_raster_formats_are_known_by_their_content_and_open(kind: str, expected: str) -> None:
    data = encoded(kind)
    assert media_type(data) == expected
    opened = open_picture(data, LIMITS)
    assert opened.size == (20, 10)
    assert abs(int(np.asarray(opened)[5, 10, 0]) - 200) < 12


@pytest.mark.parametrize("data", [SVG, HTML, b"%PDF-1.7", b"", b"PK\x03\x04", b"\0\0\x01\0", b"%!PS-Adobe", b"RIFF"])
def test_what_is_no_raster_picture_is_refused_unopened(data: bytes) -> None:
    assert media_type(data) is None
    with pytest.raises(HttpFault) as refused:
        open_picture(data, LIMITS)
    assert (refused.value.status, refused.value.kind) == (415, "bad_image")


@pytest.mark.parametrize("start", [b"BM", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"P6", b"II*\0"])
def test_html_behind_a_picture_s_first_bytes_is_a_damaged_picture(start: bytes) -> None:
    with pytest.raises(BadImageError):
        open_picture(start + HTML, LIMITS)


@pytest.mark.parametrize("size", [(100_000, 100_000), (30_000, 30_000), (1_001, 1_000), (2**31 - 1, 1)])
def test_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises((BadImageError, HttpFault)) as refused:
        open_picture(bomb(*size), LIMITS)
    assert "pixels" in str(refused.value) or "elongated" in str(refused.value) or "damaged" in str(refused.value)


def test_within_the_limit_a_large_picture_opens_and_an_elongated_one_does_not() -> None:
    assert open_picture(encoded("PNG", (1000, 1000)), LIMITS).size == (1000, 1000)
    with pytest.raises(HttpFault, match="elongated"):
        open_picture(encoded("PNG", (1010, 10)), LIMITS)


def test_too_many_bytes() -> None:
    with pytest.raises(HttpFault) as refused:
        open_picture(b"\xff\xd8\xff" + bytes(200_000), LIMITS)
    assert refused.value.status == 413


def test_truncated_and_damaged_pictures() -> None:
    whole = encoded("JPEG", (300, 300))
    for data in (whole[: len(whole) // 2], whole[:20], bomb(200, 200)):
        with pytest.raises(BadImageError):
            open_picture(data, LIMITS)


# ---------------------------------------------------------------- base64 and addresses


def test_base64_bare_and_as_data_uri() -> None:
    data = encoded("PNG")
    text = base64.b64encode(data).decode()
    assert bytes_of_text(text, LIMITS, "image") == data
    assert bytes_of_text(f"data:image/png;base64,{text}", LIMITS, "image") == data
    assert bytes_of_text(f"DATA:;base64,{text}", LIMITS, "image") == data


@pytest.mark.parametrize(
    "text",
    ["http://169.254.169.254/latest/meta-data", "https://example.org/a.png", "file:///etc/passwd", "FTP://x/y",
     "gopher://127.0.0.1:6379/_x"],
)  # fmt: skip
def test_addresses_are_never_fetched(text: str) -> None:
    with pytest.raises(HttpFault) as refused:
        bytes_of_text(text, LIMITS, "image")
    assert (refused.value.status, refused.value.kind) == (400, "no_fetching")


@pytest.mark.parametrize("text", ["a", "not base64!", "data:image/svg+xml,<svg/>", "ÄÖÜ=", "AAAA\nAAAA", "/etc/passwd"])
def test_broken_base64(text: str) -> None:
    try:
        data = bytes_of_text(text, LIMITS, "image")
    except HttpFault as fault:
        assert fault.status == 400  # noqa: PT017
    else:
        assert media_type(data) is None


def test_too_long_base64_is_refused_undecoded() -> None:
    with pytest.raises(HttpFault) as refused:
        bytes_of_text("A" * 400_000, LIMITS, "image")
    assert refused.value.status == 413
