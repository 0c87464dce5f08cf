"""WebDataset tars: keys, side files, offsets, the decompressed copy, damage."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipette.data.loading import iter_images, load_image
from clipette.data.sources import load_data
from clipette.errors import DataError
from clipette.types import Failure


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def as_json(values: Mapping[str, object]) -> bytes:
    return json.dumps(values).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tars"


def test_side_files_of_every_kind(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [
        ("ours.png", png(1)),
        ("ours.json", as_json({"captions": ["one", "two"], "split": "test", "class": "Cat", "clip_name": "house cat",
                               "label": 0, "domain": "photo", "src": "x/1.jpg"})),
        ("img2dataset.jpg", png(2)),
        ("img2dataset.txt", b"a dog\n"),
        ("img2dataset.json", as_json({"caption": "a dog", "url": "u", "width": 6, "exif": "{" + "x" * 999})),
        ("sub/classic.png", png(3)),
        ("sub/classic.cls", b"1"),
        ("lines.png", png(4)),
        ("lines.txt", "first\nsecond\n\nthird é".encode()),
        ("README.md", b"skipped"),
        ("alone.json", b"{}"),
    ])  # fmt: skip
    data = load_data(tar)
    by_key = {s.key: s for s in data.samples}
    assert list(by_key) == ["ours", "img2dataset", "sub/classic", "lines"]
    ours = by_key["ours"]
    assert (ours.captions, ours.split, ours.domain) == (("one", "two"), "test", "photo")
    assert (ours.class_name, ours.meta["class"], ours.meta["src"]) == ("house cat", "Cat", "x/1.jpg")
    assert by_key["img2dataset"].captions == ("a dog",)
    assert dict(by_key["img2dataset"].meta) == {"url": "u", "width": 6}, "long fields are not kept"
    assert by_key["sub/classic"].label == data.class_names.index("1")
    assert by_key["lines"].captions == ("first", "second", "third é")
    assert [(f.key, f.reason.split(" ")[0]) for f in data.failures] == [("lines", "an"), ("alone", "no")]
    levels = [np.asarray(image)[0, 0, 0] for _, image in iter_images(data.samples)]
    assert levels == [1, 2, 3, 4], "offsets point at the right members"
    assert ours.image is not None
    assert ours.image.location == f"{tar}:ours.png"


def test_the_order_of_members_and_long_names_do_not_matter(tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "n" * 150
    tar = write_tar(tmp_path / "a.tar", [
        (f"{long}.json", as_json({"caption": "late"})), ("b.png", png(9)), ("b.json", as_json({"caption": "b"})),
        (f"./{long}.png", png(7)),
    ])  # fmt: skip
    # "./" in front is the archiver's habit and no part of a name.
    data = load_data(tar)
    assert [(s.key, s.captions) for s in data.samples] == [(long, ("late",)), ("b", ("b",))]


def test_duplicates_within_and_across_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", [("a.png", png(1)), ("a.jpg", png(2)), ("b.png", png(3))])
    write_tar(tmp_path / "s-1.tar", [("b.png", png(4)), ("c.png", png(5))])
    data = load_data(f"{tmp_path}/s-{{0..1}}.tar")
    assert [s.key for s in data.samples] == ["a", "b", "c"]
    within, across = data.failures
    assert (within.location, "s-0.tar:a.png" in within.reason) == (f"{tmp_path}/s-0.tar:a.jpg", True)
    assert (across.location, "s-0.tar:b.png" in across.reason) == (f"{tmp_path}/s-1.tar:b.png", True)
    assert "?prefix=1" in across.reason
    prefixed = load_data(f"wds:{tmp_path}?prefix=1")
    assert [s.key for s in prefixed.samples] == ["s-0/a", "s-0/b", "s-1/b", "s-1/c"]
    assert [np.asarray(i)[0, 0, 0] for _, i in iter_images(prefixed.samples)] == [1, 3, 4, 5]


def test_a_broken_side_file_is_a_record(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [
        ("a.png", png(1)), ("a.json", b"{broken"), ("b.png", png(2)), ("b.txt", b"\xff\xfe\x00"),
        ("c.png", png(3)), ("c.json", b"[1]"), ("d.png", png(4)),
    ])  # fmt: skip
    data = load_data(tar)
    assert [s.key for s in data.samples] == ["d"]
    assert [f.location for f in data.failures] == [f"{tar}:a.json", f"{tar}:b.txt", f"{tar}:c.json"]


def test_compressed_tars_are_unpacked_once(tmp_path: Path, cache: Path) -> None:
    plain = write_tar(tmp_path / "plain.tar", [("a.png", png(1)), ("b.png", png(2))])
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    data = load_data(packed)
    assert [np.asarray(i)[0, 0, 0] for _, i in iter_images(data.samples)] == [1, 2]
    assert data.samples[0].image is not None
    assert data.samples[0].image.location == f"{packed}:a.png", "messages name the user's file, not the copy"
    (copy,) = cache.iterdir()
    written = copy.stat().st_mtime_ns
    assert load_data(packed).fingerprint() == data.fingerprint()
    assert copy.stat().st_mtime_ns == written
    other = write_tar(tmp_path / "plain2.tar", [("c.png", png(3))])
    packed.write_bytes(gzip.compress(other.read_bytes()))
    os.utime(packed, (1, 1))
    assert [s.key for s in load_data(packed).samples] == ["c"], "a changed archive is another copy"


def test_a_damaged_gz_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    plain = write_tar(tmp_path / "plain.tar", [("a.png", os.urandom(50_000))])
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-5000])
    with pytest.raises(DataError, match=r"x\.tar\.gz: the compressed archive is damaged.*fetch it again"):
        load_data(packed)
    assert list(cache.iterdir()) == []
    packed.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="damaged"):
        load_data(packed)


def test_an_unwritable_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "file"))
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "p.tar", [("a.png", png(1))]).read_bytes()))
    with pytest.raises(DataError, match="set CLIPETTE_CACHE"):
        load_data(packed)


def test_a_cut_off_tar_keeps_what_it_has_and_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"{n}.png", os.urandom(3000)) for n in range(5)])
    tar.write_bytes(tar.read_bytes()[: 4 * 3584 + 1000])
    data = load_data(tar)
    assert len(data) in (4, 5)
    assert any("cut off" in f.reason for f in data.failures)
    last = load_image(data.samples[-1])
    if len(data) == 5:
        assert isinstance(last, Failure)
        assert "the archive ends after" in last.reason


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"nonsense" * 200)
    with pytest.raises(DataError, match=r"a\.tar: not a readable tar archive"):
        load_data(tmp_path / "a.tar")
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="no sample"):
        load_data(tmp_path / "empty.tar")


def test_a_tar_that_vanishes_is_a_record(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.png", png(1))])
    (sample,) = load_data(tar).samples
    tar.unlink()
    failure = load_image(sample)
    assert isinstance(failure, Failure)
    assert "a.tar:a.png: cannot be read" in failure.reason


def test_members_are_never_written_to_disk(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "evil.tar", [("../../escape.png", png(1)), ("/etc/x.png", png(2))])
    before = sorted(tmp_path.rglob("*"))
    data = load_data(tar)
    assert len(data) == 2
    assert all(not isinstance(image, Failure) for _, image in iter_images(data.samples))
    assert sorted(tmp_path.rglob("*")) == before


def test_real_tars(shared: Path) -> None:
    folder = shared / "data"
    flickr = load_data(f"wds:{folder}/flickr8k-dev-000.tar")
    assert len(flickr) == 1000
    assert all(len(s.captions) >= 4 and s.split == "dev" for s in flickr.samples)
    caltech = load_data(f"{folder}/caltech101.tar?split=test")
    assert (len(caltech), len(caltech.class_names)) == (400, 100)
    pacs = load_data(f"{folder}/pacs.tar?domain=sketch&split=test")
    assert (len(pacs), len(pacs.class_names)) == (105, 7)
    eurosat = load_data(f"{folder}/eurosat.tar.gz")
    assert "annual crop land" in eurosat.class_names
    assert all(not d.failures for d in (flickr, caltech, pacs, eurosat))
    for data in (flickr, caltech, pacs, eurosat):
        assert not [i for _, i in iter_images(data.samples[:20]) if isinstance(i, Failure)]
