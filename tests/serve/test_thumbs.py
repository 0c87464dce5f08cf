"""Thumbnails: safe, whole, bounded; made once."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipette.errors import BadImageError, ConfigError
from clipette.serve.thumbs import DIGEST_BYTES, STALE_AFTER_S, Thumbnails


def photo(width: int = 600, height: int = 400, seed: int = 0, *, format: str = "JPEG", **options: object) -> bytes:
    """A smooth picture: a damaged thumbnail of it is told from a right one by its mean colours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, format=format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Reading:
    """An original that counts how often it is read."""

    def __init__(self, data: bytes, delay: float = 0.0) -> None:
        self.data, self.delay, self.times = data, delay, 0

    def __call__(self) -> bytes:
        self.times += 1
        time.sleep(self.delay)
        return self.data


def test_a_photograph_becomes_small_upright_and_loses_its_metadata(tmp_path: Path) -> None:
    source = photo(900, 600)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the upright picture is 600 x 900
    exif[0x010E] = "taken at home"
    buffer = io.BytesIO()
    opened(source).save(buffer, format="JPEG", quality=95, exif=exif)
    made = Thumbnails(tmp_path, side=300).get("a/b.jpg", "1", lambda: buffer.getvalue())
    assert made.media_type == "image/jpeg"
    assert b"taken at home" not in made.data
    assert b"Exif" not in made.data
    small = opened(made.data)
    assert small.size == (200, 300)
    expected = opened(buffer.getvalue()).transpose(Image.Transpose.ROTATE_270).resize(small.size)
    assert np.abs(np.asarray(small, float) - np.asarray(expected, float)).mean() < 3


def test_a_tiny_picture_keeps_its_size_and_every_pixel(tmp_path: Path) -> None:
    source = photo(64, 48, format="PNG")
    made = Thumbnails(tmp_path).get("a", "1", lambda: source)
    assert made.media_type == "image/png"
    assert np.array_equal(np.asarray(opened(made.data)), np.asarray(opened(source)))


def test_made_once_and_kept_over_restarts(tmp_path: Path) -> None:
    read = Reading(photo())
    first = Thumbnails(tmp_path).get("a", "1", read)
    again = Thumbnails(tmp_path).get("a", "1", read)
    assert read.times == 1
    assert again == first


def test_another_version_key_or_size_is_another_picture(tmp_path: Path) -> None:
    thumbs = Thumbnails(tmp_path)
    first = thumbs.get("a", "1", lambda: photo(seed=1))
    assert thumbs.get("a", "2", lambda: photo(seed=2)).etag != first.etag
    assert thumbs.get("b", "1", lambda: photo(seed=3)).etag != first.etag
    assert max(opened(Thumbnails(tmp_path, side=100).get("a", "1", lambda: photo(seed=1)).data).size) == 100
    assert thumbs.get("a", "1", lambda: b"").etag == first.etag


@pytest.mark.parametrize("key", ["../../escape", "/etc/passwd", "a\x00b", "é" * 300, "", "C:\\x"])
def test_keys_never_become_paths(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "inner" / "thumbs"
    Thumbnails(folder).get(key, "1", photo)
    (only,) = files(tmp_path)
    assert only.parent.parent == folder


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html><img src=x onerror=alert(1)></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        photo()[:2000],
    ],
    ids=["empty", "svg", "html", "eps", "truncated"],
)
def test_what_is_no_whole_picture_is_refused_and_not_kept(tmp_path: Path, source: bytes) -> None:
    with pytest.raises(BadImageError, match="holiday"):
        Thumbnails(tmp_path).get("holiday", "1", lambda: source)
    assert files(tmp_path) == []


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8100, 8000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(BadImageError, match="8100x8000 pixels exceed"):
        Thumbnails(tmp_path).get("bomb", "1", lambda: bomb)
    with pytest.raises(BadImageError, match="exceed the limit of 1,000 bytes"):
        Thumbnails(tmp_path, max_source_bytes=1000).get("large", "1", photo)


def test_a_damaged_file_is_noticed_and_made_again(tmp_path: Path) -> None:
    thumbs = Thumbnails(tmp_path)
    whole = thumbs.get("a", "1", photo)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[-100] ^= 1
    for bad in (b"", content[: DIGEST_BYTES - 1], content[: len(content) // 2], bytes(damaged)):
        path.write_bytes(bad)
        read = Reading(photo())
        assert thumbs.get("a", "1", read) == whole
        assert read.times == 1
        assert path.read_bytes() == content


def test_the_bound_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = len(Thumbnails(tmp_path / "one", side=200).get("0", "1", photo).data) + DIGEST_BYTES
    folder = tmp_path / "many"
    bound = 10 * size
    thumbs = Thumbnails(folder, side=200, max_bytes=bound)
    for number in range(10):
        thumbs.get(str(number), "1", photo)
        newest = max(files(folder), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))  # long ago, in order
    thumbs.get("0", "1", photo)  # used: renewed
    thumbs.get("10", "1", photo)
    assert sum(path.stat().st_size for path in files(folder)) <= bound
    kept = Reading(photo())
    thumbs.get("0", "1", kept)
    thumbs.get("10", "1", kept)
    assert kept.times == 0
    gone = Reading(photo())
    thumbs.get("1", "1", gone)
    assert gone.times == 1


def test_the_bound_counts_what_was_there_before_and_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    size = len(Thumbnails(tmp_path, side=200).get("0", "1", photo).data) + DIGEST_BYTES
    for number in range(1, 8):
        Thumbnails(tmp_path, side=200).get(str(number), "1", photo)
    left = files(tmp_path)[0].parent / "left.tmp"
    fresh = files(tmp_path)[0].parent / "fresh.tmp"
    left.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(left, (time.time() - 2 * STALE_AFTER_S,) * 2)
    Thumbnails(tmp_path, side=200, max_bytes=4 * size).get("8", "1", photo)
    kept = [path for path in files(tmp_path) if path.suffix != ".tmp"]
    assert sum(path.stat().st_size for path in kept) <= 4 * size
    assert not left.exists()
    assert fresh.exists()


def test_many_threads_make_one_picture_once(tmp_path: Path) -> None:
    thumbs, read = Thumbnails(tmp_path), Reading(photo(), delay=0.05)
    etags: list[str] = []
    threads = [threading.Thread(target=lambda: etags.append(thumbs.get("a", "1", read).etag)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(etags) == 8
    assert len(set(etags)) == 1
    assert read.times == 1
    assert thumbs._making == {}


def test_a_failure_lets_the_next_try(tmp_path: Path) -> None:
    thumbs = Thumbnails(tmp_path)
    with pytest.raises(BadImageError):
        thumbs.get("a", "1", lambda: b"no")
    assert thumbs.get("a", "1", photo).media_type == "image/jpeg"
    assert thumbs._making == {}


def test_a_disk_that_takes_nothing_costs_time_not_answers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    thumbs, read = Thumbnails(tmp_path / "file" / "thumbs"), Reading(photo())
    assert thumbs.get("a", "1", read) == thumbs.get("a", "1", read)
    assert read.times == 2


@pytest.mark.parametrize("wrong", [{"side": 0}, {"max_bytes": -1}, {"quality": 96}, {"decoders": 0}])
def test_limits_are_checked(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Thumbnails(tmp_path, **wrong)
