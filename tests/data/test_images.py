"""Images as they really come: each kind is made here, decoded, and compared with what it must look like."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from clipette.data.images import DecodeSettings, decode_image, upright_rgb
from clipette.errors import BadImageError, ConfigError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, **options: object) -> np.ndarray:
    return np.asarray(decode_image(data, location="photos/x", **options))  # type: ignore[arg-type]


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red | green over blue | white: every rotation and flip of it differs."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 220, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 220)
    pixels[height // 2 :, width // 2 :] = (240, 240, 240)
    return Image.fromarray(pixels)


def noise(width: int, height: int, grain: int = 16) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 255, (height // grain + 1, width // grain + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_plain_png_is_exact() -> None:
    np.testing.assert_array_equal(decoded(encoded(quadrants(), "PNG")), np.asarray(quadrants()))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(quadrants().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - np.asarray(quadrants())).mean() < 4


def test_sixteen_bit_png_is_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    got = decoded(encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(got[..., 0], (levels >> 8).astype(np.uint8))
    assert len(np.unique(got)) > 250, "values above 255 were clipped"


def test_sixteen_bit_rgb_png_keeps_its_high_bytes() -> None:
    rows = np.random.default_rng(0).integers(0, 65535, (4, 5, 3)).astype(">u2")

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    body = b"".join(b"\0" + row.tobytes() for row in rows)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decoded(data), (rows >> 8).astype(np.uint8))


def test_palette_with_alpha_lands_on_white() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([200, 0, 0, 0, 200, 0] + [0] * 762)
    image.putdata([0, 1, 0, 1] * 2)
    got = decoded(encoded(image, "PNG", transparency=bytes([0, 255])))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[0, 1].tolist() == [0, 200, 0]


@pytest.mark.parametrize(("mode", "expected"), [("RGBA", [255, 127, 127]), ("LA", [166, 166, 166])])
def test_half_transparent_pixels_mix_with_white(mode: str, expected: list[int]) -> None:
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 128)).convert(mode)
    assert np.abs(decoded(encoded(image, "PNG"))[0, 0].astype(int) - expected).max() <= 1


def test_transparent_colour_of_an_rgb_png() -> None:
    data = encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decoded(data).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # The stored picture is what a camera held that way would write; seen upright it is `quadrants`.
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = quadrants()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_image(encoded(stored, kind, exif=exif), location="x")
    assert got.size == quadrants().size
    assert np.abs(np.asarray(got).astype(int) - np.asarray(quadrants())).mean() < 6
    assert upright_rgb(got).size == got.size, "turning twice must change nothing"


def test_damaged_exif_is_ignored() -> None:
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(data).shape == (48, 64, 3)


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "LAB"])
def test_every_ordinary_mode_becomes_rgb(mode: str) -> None:
    image = quadrants().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (64, 48))
    got = decode_image(encoded(image, "TIFF"), location="x")
    assert (got.mode, got.size) == ("RGB", (64, 48))


def test_webp_and_lossy_kinds_are_read() -> None:
    for kind in ("WEBP", "BMP", "PPM"):
        assert np.abs(decoded(encoded(quadrants(), kind)).astype(int) - np.asarray(quadrants())).mean() < 6


def test_float_samples_are_refused_in_words() -> None:
    data = encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(BadImageError, match=r"photos/x: 32-bit float samples.*convert"):
        decoded(data)


BAD = {
    "empty": (b"", r"photos/x: the image is empty \(0 bytes\)"),
    "text": (b"hello, I am no picture", r"photos/x: not an image of a supported format \(begins with b'hello, I am"),
    "html": (b"<html>404</html>", "not an image"),
    "truncated jpeg": (encoded(noise(200, 200), "JPEG")[:-900], "photos/x: the image is damaged"),
    "truncated png": (encoded(noise(200, 200), "PNG")[:-900], "photos/x: the image is damaged"),
    "truncated webp": (encoded(noise(200, 200), "WEBP")[:-900], "photos/x: "),
    "truncated gif": (encoded(noise(200, 200), "GIF")[:300], "photos/x: "),
    "header only": (encoded(noise(200, 200), "JPEG")[:20], "photos/x: "),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a supported format"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_bytes_are_refused_with_their_place(kind: str) -> None:
    data, message = BAD[kind]
    with pytest.raises(BadImageError, match=message):
        decoded(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about some damage that it reads over
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_corrupt_bytes_never_raise_anything_else(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(noise(64, 64), kind)
    refused: list[str] = []
    for _ in range(40):
        broken = bytearray(data)
        for position in rng.integers(0, len(broken), 8):
            broken[position] = int(rng.integers(0, 256))
        try:
            decoded(bytes(broken))
        except BadImageError as error:
            refused.append(str(error))
    assert all("photos/x" in reason for reason in refused)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    start = time.perf_counter()
    with pytest.raises(BadImageError, match="too many pixels"):
        decoded(bomb)
    assert time.perf_counter() - start < 0.5


def test_the_pixel_limit_is_the_callers() -> None:
    data = encoded(quadrants(), "PNG")
    with pytest.raises(BadImageError, match="64x48 pixels exceed the limit of 3,000 pixels"):
        decoded(data, settings=DecodeSettings(max_pixels=3_000))


@pytest.mark.parametrize("want", [(224, 224), (64, 64), (100, 180)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decode_keeps_every_side_wanted(want: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(1500, 1000, grain=100), "JPEG", exif=exif)
    settings = DecodeSettings(scaled=True)
    got = decode_image(data, location="x", settings=settings, want=want)
    assert got.height >= want[0]
    assert got.width >= want[1]
    assert got.width * got.height < 1500 * 1000 / 3
    full = decode_image(data, location="x").resize(got.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(full)).mean() < 6, "the same picture, smaller"


def test_scaled_decode_never_enlarges_and_is_off_by_default() -> None:
    data = encoded(noise(300, 200), "JPEG")
    settings = DecodeSettings(scaled=True)
    assert decode_image(data, location="x", settings=settings, want=(224, 224)).size == (300, 200)
    assert decode_image(data, location="x", want=(10, 10)).size == (300, 200)
    assert decode_image(data, location="x", settings=settings).size == (300, 200)


def test_scaled_decode_is_faster() -> None:
    data = encoded(noise(2000, 1500), "JPEG", quality=90)

    def seconds(settings: DecodeSettings) -> float:
        start = time.thread_time()
        decode_image(data, location="x", settings=settings, want=(224, 224))
        return time.thread_time() - start

    # In turns, and by this thread's own time: other tests are running.
    pairs = [(seconds(DecodeSettings(scaled=True)), seconds(DecodeSettings())) for _ in range(9)]
    scaled, whole = (min(times) for times in zip(*pairs, strict=True))
    assert scaled < 0.85 * whole


def test_settings_survive_a_round_trip() -> None:
    settings = DecodeSettings(scaled=True, max_pixels=5)
    assert DecodeSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ConfigError, match="decode settings"):
        DecodeSettings.from_dict({"scale": True})
