from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tests.index.made import DIM, HashEncoder, Held, drawn, photos, png, rows, unit, vector_of

from clipette.data.refs import FileImage
from clipette.data.tars import list_tars
from clipette.errors import BadImageError, ConfigError, DataError, StoreError
from clipette.index import Collection, Row, create, open_index
from clipette.types import Sample


@pytest.fixture
def made(tmp_path: Path):
    with create(tmp_path / "my.index", space="hash-space", dim=DIM) as collection:
        yield collection


def state_of(collection: Collection) -> dict[str, tuple[Row, bytes]]:
    keys = collection.keys()
    return {row.key: (row, v.tobytes()) for row, v in zip(collection.rows(keys), collection.vectors(keys), strict=True)}


def test_rows_come_back_as_they_were_written(made: Collection) -> None:
    given, vectors = rows(40), drawn(40)
    report = made.add_rows(given, vectors)
    assert (report.added, report.updated, report.generation) == (40, 0, 1)
    assert made.rows([row.key for row in given]) == given
    np.testing.assert_array_equal(made.vectors([row.key for row in given[::-1]]), vectors[::-1])
    assert (len(made), made.count("image"), made.count("text")) == (40, 30, 10)
    assert made.columns == {"year": "int", "domain": "text", "kept": "bool", "score": "float"}
    assert "k00003" in made
    assert "k3" not in made
    with pytest.raises(StoreError, match="no row has the key 'nope'"):
        made.rows(["k00001", "nope"])


def test_search_filters_kinds_and_orders(made: Collection) -> None:
    given, vectors = rows(300), drawn(300)
    made.add_rows(given, vectors)
    queries = drawn(4, seed=5)
    found = made.search_vectors(queries, 7, "domain = 'it''s' and year >= 2010", kind="image")
    chosen = [i for i in range(300) if i % 3 == 2 and i % 30 >= 10 and i % 4 != 3]
    for query, keys, scores in zip(queries, found.keys, found.scores, strict=True):
        best = sorted(chosen, key=lambda i: -float(vectors[i] @ query))[:7]
        assert keys == [f"k{i:05d}" for i in best]
        np.testing.assert_allclose(scores, [vectors[i] @ query for i in best], atol=1e-6)
    assert made.search_vectors(queries[:1], 500, "score is not null", kind="text").keys[0].__len__() == 15
    assert made.keys(where="key = 'k00007'") == ["k00007"]
    assert made.keys(where="text like '%er 29'") == ["k00029"]


@pytest.mark.parametrize("bad", [np.zeros(DIM), np.zeros((1, DIM + 1)), np.full((1, DIM), np.nan)])
def test_bad_queries_are_refused(made: Collection, bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="quer"):
        made.search_vectors(bad, 3)
    with pytest.raises(DataError, match="k is 0"):
        made.search_vectors(drawn(1), 0)
    with pytest.raises(ConfigError, match="unknown column"):
        made.search_vectors(drawn(1), 1, "nope = 1")


@pytest.mark.parametrize(
    ("row", "vector", "message"),
    [
        (Row("", "image"), drawn(1)[0], "must be 1 to 1024 bytes"),
        (Row("a\nb", "image"), drawn(1)[0], "printable"),
        (Row("x" * 1025, "image"), drawn(1)[0], "1024 bytes"),
        (Row("\ud800", "image"), drawn(1)[0], "not valid Unicode"),
        (Row("a", "image", text="\ud800"), drawn(1)[0], "'text' is not valid Unicode"),
        (Row("a", "sound"), drawn(1)[0], "kind 'sound' is none of image, text"),
        (Row("k00001", "image", meta={"year": "old"}), drawn(1)[0], "column 'year' holds int, 'old' is text"),
        (Row("a", "image", meta={"year": 2**70}), drawn(1)[0], "does not fit in 64 bits"),
        (Row("a", "image", meta={"domain": "y" * 9000}), drawn(1)[0], "longer than 8192 bytes"),
        (Row("a", "image"), np.zeros(DIM), "zero or not finite"),
        (Row("a", "image"), np.full(DIM, np.inf), "zero or not finite"),
        (Row("a", "image"), np.ones(DIM - 1), "need vectors of shape"),
    ],
)
def test_bad_rows_are_refused_whole(made: Collection, row: Row, vector: np.ndarray, message: str) -> None:
    made.add_rows(rows(5), drawn(5))
    before = state_of(made)
    good = np.ones((1, len(vector)), np.float32)
    with pytest.raises(DataError, match=message):
        made.add_rows([Row("good", "image"), row], np.concatenate([good, vector[None]]))
    assert state_of(made) == before
    assert made.generation == 1


def test_a_key_twice_in_one_write_is_refused(made: Collection) -> None:
    with pytest.raises(DataError, match="'a' is given twice"):
        made.add_rows([Row("a", "image"), Row("a", "image")], drawn(2))


def test_vectors_of_any_length_are_stored_as_units_and_units_keep_their_bits(made: Collection) -> None:
    vectors = drawn(2)
    made.add_rows([Row("a", "image"), Row("b", "image")], np.stack([vectors[0] * 3, vectors[1]]))
    np.testing.assert_allclose(made.vectors(["a"])[0], vectors[0], atol=1e-6)
    np.testing.assert_array_equal(made.vectors(["b"])[0], vectors[1])


def test_columns_widen_and_unknown_values_are_unknown(made: Collection) -> None:
    made.add_rows([Row("a", "image", meta={"n": 3, "x": float("nan")})], drawn(1))
    made.add_rows([Row("b", "image", meta={"n": 2.5, "x": 1.0, "new": "here"})], drawn(1, seed=1))
    assert made.columns == {"n": "float", "x": "float", "new": "text"}
    assert made.keys(where="n > 2") == ["a", "b"]
    assert made.keys(where="x is null") == ["a"]
    assert made.keys(where="new is null") == ["a"]
    made.optimize()
    assert made.keys(where="n = 3 or new = 'here'") == ["a", "b"]
    assert made.rows(["a"])[0].meta == {"n": 3.0}


def test_large_whole_numbers_survive_a_column_that_becomes_float(made: Collection) -> None:
    big = 2**60 + 1
    made.add_rows([Row("a", "image", meta={"n": big})], drawn(1))
    assert made.keys(where="n > 1.5") == ["a"]
    assert made.keys(where=f"n in ({big}, 2.5)") == ["a"]
    made.add_rows([Row("b", "image", meta={"n": 2.5})], drawn(1, seed=1))
    assert made.keys(where="n > 3") == ["a"]
    assert made.keys(where=f"n < {big} or n in ({big})") == ["a", "b"]
    made.optimize()
    assert made.rows(["a", "b"])[0].meta == {"n": float(big)}
    with pytest.raises(DataError, match="too many digits"):
        made.add_rows([Row("c", "image", meta={"n": 10**400})], drawn(1))


def test_names_that_are_no_unicode_are_refused_in_words(made: Collection, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column .* is not valid Unicode"):
        made.add_rows([Row("a", "image", meta={"\ud800": 1})], drawn(1))
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/ph\xe9")
    with pytest.raises(DataError, match=r"folder .* is not valid Unicode"):
        made.add(photos(Path(folder), 1), HashEncoder())
    assert len(made) == 0


# ---------------------------------------------------------------- samples


def test_samples_with_captions_are_found_by_both(made: Collection, tmp_path: Path) -> None:
    encoder = HashEncoder()
    samples = photos(tmp_path / "photos", 3)
    report = made.add(samples, encoder, texts="captions")
    assert (report.added, report.failures) == (9, ())
    row, caption = made.rows(["p1", "p1#1"])
    assert row == Row("p1", "image", "p1.png", "picture 1", {"n": 1})
    assert caption == Row("p1#1", "text", "", "number 1", {"n": 1}, "p1")
    assert made.search_vectors(encoder.encode_texts(["number 2"]), 1).keys == [["p2#1"]]
    assert made.search_vectors(vector_of(png(2))[None], 1, kind="image").keys == [["p2"]]
    assert made.image_bytes("p2") == png(2)
    with pytest.raises(BadImageError, match="a text without an image"):
        made.image_bytes("p2#0")
    # Deleting the image deletes its captions; of others none.
    assert made.delete(["p1"]) == 3
    assert made.keys() == ["p0", "p0#0", "p0#1", "p2", "p2#0", "p2#1"]


def test_captions_go_with_their_image_where_one_went_before(made: Collection, tmp_path: Path) -> None:
    encoder = HashEncoder()
    samples = photos(tmp_path / "photos", 3)
    made.add([*samples, Sample("p2#7", captions=("by itself",))], encoder, texts="captions")
    made.delete(["p1#0", "p2#0"])
    assert made.delete(["p1"]) == 2
    assert "p1#1" not in made
    # Captions that a sample no longer has go too, and no text of another.
    made.add([Sample("p2", samples[2].image)], encoder, texts="captions")
    assert made.keys() == ["p0", "p0#0", "p0#1", "p2#7", "p2"]


def test_captions_of_an_image_that_cannot_be_read_stay(made: Collection, tmp_path: Path) -> None:
    samples = photos(tmp_path / "photos", 1)
    made.add(samples, HashEncoder(), texts="captions")
    (tmp_path / "photos" / "p0.png").write_bytes(b"broken")
    report = made.add([Sample("p0", samples[0].image, ("new",))], HashEncoder(), texts="captions")
    assert (len(report.failures), report.deleted) == (1, 0)
    assert made.keys() == ["p0", "p0#0", "p0#1"]


def test_only_what_changed_is_encoded_again(made: Collection, tmp_path: Path) -> None:
    encoder = HashEncoder()
    samples = photos(tmp_path / "photos", 4)
    made.add(samples, encoder, texts="captions")
    encoder.images.clear()
    encoder.texts.clear()
    report = made.add(samples, encoder, texts="captions")
    assert (report.added, report.updated, report.unchanged, report.generation) == (0, 0, 12, 1)
    assert encoder.images == encoder.texts == []
    # New bytes, new captions, new metadata: each costs what it must.
    (tmp_path / "photos" / "p0.png").write_bytes(png(700))
    changed = [
        samples[0],
        Sample("p1", samples[1].image, ("another", "number 1"), meta={"n": 1}),
        Sample("p2", samples[2].image, samples[2].captions, meta={"n": 99}),
        Sample("p3", samples[3].image, ("picture 3",), meta={"n": 3}),
    ]
    report = made.add(changed, encoder, texts="captions")
    assert encoder.images == ["p0"]
    assert encoder.texts == ["another"]
    assert report.deleted == 1  # p3#1 is no more
    assert "p3#1" not in made
    assert made.rows(["p2"])[0].meta == {"n": 99}
    np.testing.assert_array_equal(made.vectors(["p0"])[0], vector_of(png(700)))
    np.testing.assert_array_equal(made.vectors(["p2"])[0], vector_of(png(2)))


def test_a_bad_picture_is_a_failure_and_its_old_row_stays(made: Collection, tmp_path: Path) -> None:
    encoder = HashEncoder()
    samples = photos(tmp_path / "photos", 3)
    made.add(samples[:2], encoder)
    (tmp_path / "photos" / "p0.png").write_bytes(b"broken")
    (tmp_path / "photos" / "p2.png").unlink()
    report = made.add([*samples, Sample("nothing")], encoder, texts="captions")
    assert {failure.key for failure in report.failures} == {"p0", "p2", "nothing"}
    assert made.keys() == ["p0", "p1", "p1#0", "p1#1"]
    np.testing.assert_array_equal(made.vectors(["p0"])[0], vector_of(png(0)))


def test_texts_without_images_are_rows(made: Collection) -> None:
    made.add([Sample("t", captions=("a text",)), Sample("u", captions=("one", "two"))], HashEncoder())
    assert made.rows(["t", "u", "u#1"])[2] == Row("u#1", "text", "", "two")
    assert made.count("image") == 0


def test_a_key_of_another_file_is_refused_unless_it_may_replace(made: Collection, tmp_path: Path) -> None:
    encoder = HashEncoder()
    made.add(photos(tmp_path / "one", 2), encoder)
    other = photos(tmp_path / "two", 1)
    with pytest.raises(DataError, match=r"'p0' is already that of p0.png.*--prefix.*--replace"):
        made.add(other, encoder)
    made.add(other, encoder, replace=True)
    assert made.image_bytes("p0") == png(0)
    assert made.manifest.roots == (str((tmp_path / "one").resolve()), str((tmp_path / "two").resolve()))
    with pytest.raises(DataError, match="'p0' of this text is already that of an image"):
        made.add([Sample("p0", captions=("x",))], encoder)


def test_another_space_is_refused(made: Collection) -> None:
    with pytest.raises(StoreError, match=r"space 'hash-space'.*'elsewhere'.*cannot be compared"):
        made.add([Sample("t", captions=("x",))], HashEncoder(space="elsewhere"))
    with pytest.raises(StoreError, match="8 wide"):
        made.check_space(HashEncoder(dim=8))


# ---------------------------------------------------------------- image bytes


def test_uploads_are_kept_in_the_index_and_go_when_nothing_needs_them(made: Collection) -> None:
    encoder = HashEncoder()
    made.add([Sample("a", Held(png(1), "a.png")), Sample("b", Held(png(2), "b.png"))], encoder)
    made.add([Sample("c", Held(png(3), "c.png"))], encoder)
    assert [made.image_bytes(key) for key in "abc"] == [png(1), png(2), png(3)]
    assert made.rows(["b"])[0].location == "b.png"
    blobs = made.path / "blobs"
    assert len(list(blobs.iterdir())) == 2
    encoder.images.clear()
    made.add([Sample("c", Held(png(3), "c.png"), meta={"n": 1})], encoder)
    assert encoder.images == []  # the same bytes
    assert len(list(blobs.iterdir())) == 2  # which are not kept twice
    made.delete(["a"])
    made.optimize()
    assert made.image_bytes("b") == png(2)
    assert made.image_bytes("c") == png(3)
    made.delete(["b"])
    made.optimize()
    assert made.image_bytes("c") == png(3)
    assert len(list(blobs.iterdir())) == 1
    with open_index(made.path) as reader:
        assert reader.image_bytes("c") == png(3)
        assert reader.verify()["sound"]


def test_bytes_that_nothing_needs_go_by_themselves(made: Collection) -> None:
    for number in range(20):
        made.add([Sample("a", Held(png(number), "a.png"))], HashEncoder())
    assert len(list((made.path / "blobs").iterdir())) < 12
    assert made.image_bytes("a") == png(19)
    assert made.verify()["sound"]


def test_tar_members_are_read_by_offset(made: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    photos(folder, 3)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(folder / name, name)
    samples = list_tars(str(tmp_path / "some.tar"), {}).samples
    made.add(samples, HashEncoder())
    assert made.image_bytes("p1") == png(1)
    assert made.rows(["p1"])[0].location == "some.tar:p1.png"
    (tmp_path / "some.tar").write_bytes((tmp_path / "some.tar").read_bytes()[:1000])
    with pytest.raises(BadImageError, match="ends after"):
        made.image_bytes("p1")


def test_nothing_outside_the_indexed_folders_is_read(made: Collection, tmp_path: Path) -> None:
    samples = photos(tmp_path / "photos", 2)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    made.add(samples, HashEncoder())
    (tmp_path / "photos" / "p0.png").unlink()
    (tmp_path / "photos" / "p0.png").symlink_to(secret)
    with pytest.raises(BadImageError, match="outside the folder that was indexed"):
        made.image_bytes("p0")
    (tmp_path / "photos" / "p1.png").unlink()
    with pytest.raises(BadImageError, match="cannot be read any more"):
        made.image_bytes("p1")


def test_links_that_were_there_are_followed_at_the_add(made: Collection, tmp_path: Path) -> None:
    photos(tmp_path / "real", 1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "l.png").symlink_to(tmp_path / "real" / "p0.png")
    made.add([Sample("l", FileImage(str(tmp_path / "linked" / "l.png")))], HashEncoder())
    assert made.image_bytes("l") == png(0)


# ---------------------------------------------------------------- one writer, many readers


def test_a_reader_keeps_its_state_until_it_refreshes(made: Collection) -> None:
    made.add_rows(rows(50), drawn(50))
    with open_index(made.path) as reader:
        before = state_of(reader)
        made.add_rows([Row("k00001", "image"), Row("new", "image")], drawn(2, seed=9))
        made.delete(["k00002"])
        made.optimize()  # the files that the reader uses are deleted
        assert state_of(reader) == before
        assert reader.search_vectors(drawn(1), 3).keys == reader.search_vectors(drawn(1), 3).keys
        assert reader.refresh()
        assert not reader.refresh()
        assert state_of(reader) == state_of(made)
        assert reader.generation == made.generation == 3
        assert "k00002" not in reader
        with pytest.raises(StoreError, match="for reading only"):
            reader.delete(["new"])
        with pytest.raises(StoreError, match="for reading only"):
            reader.set_fact("x", 1)


def test_another_index_in_its_place_is_not_taken_for_a_later_state(made: Collection) -> None:
    made.add_rows(rows(5), drawn(5))
    with open_index(made.path) as reader:
        before = state_of(reader)
        made.close()
        shutil.rmtree(made.path)
        with create(made.path, space="hash-space", dim=DIM) as other:
            other.add_rows(rows(5), drawn(5, seed=9))
            other.add_rows([Row("x", "image")], drawn(1))
        with pytest.raises(StoreError, match="another index has been built here"):
            reader.refresh()
        assert state_of(reader) == before


def test_a_folder_that_a_killed_process_left_is_empty(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / ".index.json.abc.tmp").write_bytes(b"{")
    create(tmp_path / "i", space="s", dim=DIM).close()
    with open_index(tmp_path / "i", write=True) as again:
        assert len(again) == 0
    assert not list((tmp_path / "i").glob(".*.tmp"))


def test_two_who_create_one_index_do_not_overwrite_each_other(tmp_path: Path) -> None:
    from clipette.index import opening as room

    real = room.take_lock

    def late(root: Path) -> int:
        room.take_lock = real
        with create(root, space="s", dim=DIM) as first:  # the other process, between our look and our lock
            first.add_rows([Row("a", "image")], drawn(1))
        return real(root)

    room.take_lock = late
    try:
        with pytest.raises(StoreError, match="not empty"):
            create(tmp_path / "i", space="s", dim=DIM)
    finally:
        room.take_lock = real
    with open_index(tmp_path / "i", write=True) as again:
        assert again.keys() == ["a"]


def test_a_second_writer_is_refused_in_words(made: Collection) -> None:
    with pytest.raises(StoreError, match=f"process {os.getpid()} is writing to this index"):
        open_index(made.path, write=True)
    made.close()
    with open_index(made.path, write=True) as second:
        second.add_rows([Row("a", "image")], drawn(1))
    with pytest.raises(StoreError, match="for reading only"):
        made.add_rows([Row("b", "image")], drawn(1))


def test_facts_are_kept(made: Collection) -> None:
    packed = "8" * 4000
    made.set_fact("calibration", {"low": 0.2, "scales": [{"alpha": 0.1, "scores": packed}]})
    made.set_fact("other", [1])
    made.set_fact("other", None)
    with open_index(made.path) as reader:
        assert reader.facts == {"calibration": {"low": 0.2, "scales": [{"alpha": 0.1, "scores": packed}]}}
        # What only programs read is not shown to people.
        assert reader.info()["calibration"] == {"low": 0.2, "scales": [{"alpha": 0.1}]}


def test_no_index_and_damaged_ones_are_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no index here"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text('{"format": "clipette-index", "version": 99}')
    with pytest.raises(StoreError, match="version 99"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text('{"format": "clipette-index", "version": 1}')
    with pytest.raises(StoreError, match="damaged"):
        open_index(tmp_path)
    with pytest.raises(StoreError, match="not empty"):
        create(tmp_path, space="s", dim=2)


@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_verify_names_the_damaged_file(made: Collection, how: str, suffix: str) -> None:
    made.add_rows(rows(20), drawn(20))
    path = made.path / "rows" / f"000000{suffix}"
    assert made.verify()["sound"]
    data = bytearray(path.read_bytes())
    path.unlink()
    if how != "gone":
        data[len(data) // 2] ^= 1
        path.write_bytes(data[:-1] if how == "cut" else data)
    report = made.verify()
    assert not report["sound"]
    assert str(path) in report["damaged"][0]
    if how == "gone":
        with pytest.raises(StoreError, match="missing, though the index lists it"):
            open_index(made.path)


def test_leftovers_of_a_killed_writer_are_swept(made: Collection) -> None:
    made.add_rows(rows(5), drawn(5))
    for name in ("rows/000009.npy", "rows/.000009.npy.x.tmp", ".index.json.abc.tmp"):
        (made.path / name).write_bytes(b"half")
    (made.path / "lance-000007").mkdir()
    before = state_of(made)
    made.close()
    with open_index(made.path, write=True) as again:
        assert state_of(again) == before
    left = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert left == {"index.json", "writer.lock", "rows/000000.npy", "rows/000000.parquet"}
    assert not (made.path / "lance-000007").exists()


def test_the_folder_can_be_copied_and_moved(made: Collection, tmp_path: Path) -> None:
    made.add_rows(rows(30), drawn(30))
    shutil.copytree(made.path, tmp_path / "copy.index")
    with open_index(tmp_path / "copy.index", write=True) as copy:
        assert state_of(copy) == state_of(made)
        copy.delete(["k00001"])
    assert "k00001" in made


def test_sampled_keys_repeat(made: Collection) -> None:
    made.add_rows(rows(100), unit(drawn(100)))
    assert made.sample_keys(10, kind="image", seed=3) == made.sample_keys(10, kind="image", seed=3)
    assert made.sample_keys(10, seed=3) != made.sample_keys(10, seed=4)
    assert len(set(made.sample_keys(1000, kind="text"))) == 25
