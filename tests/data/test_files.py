"""Folders, tables, COCO, Karpathy, Hugging Face and text corpora."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipette.data.loading import iter_images, load_image
from clipette.data.sources import load_data
from clipette.errors import ConfigError, DataError
from clipette.types import Failure


def png(grey: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content or png())
    return path


def test_folder_with_classes(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "a/deeper/1.png", ".git/x.png", "a/._1.png", "a/notes.md"):
        put(tmp_path / name)
    data = load_data(tmp_path)
    assert [(s.key, s.class_name) for s in data.samples] == [("a/1", "a"), ("a/deeper/1", "a"), ("b/2", "b")]


def test_folder_with_splits_and_with_a_stated_layout(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"):
        put(tmp_path / "s" / name)
    data = load_data(f"folder:{tmp_path}/s?split=dev")
    assert [(s.key, s.class_name, s.label) for s in data.samples] == [("val/cat/1", "cat", 0)]
    assert data.class_names == ("cat", "dog"), "classes do not depend on the split"
    put(tmp_path / "d" / "photo" / "dog" / "1.png")
    domains = load_data(f"{tmp_path}/d?layout=domain/class")
    assert [(s.domain, s.class_name) for s in domains.samples] == [("photo", "dog")]
    assert load_data(f"{tmp_path}/s?layout=flat").class_names == ()
    with pytest.raises(ConfigError, match="layout 'kind/class'"):
        load_data(f"{tmp_path}/d?layout=kind/class")


def test_flat_folder_with_side_files(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "a.txt", "one\n\ntwo")
    put(tmp_path / "b.JPG")
    put(tmp_path / "b.json", '{"caption": "three", "class": "cat", "split": "test"}')
    put(tmp_path / "c.png")
    put(tmp_path / "c.json", "{broken")
    data = load_data(tmp_path)
    assert [(s.key, s.captions, s.class_name) for s in data.samples] == [
        ("a", ("one", "two"), None), ("b", ("three",), "cat"),
    ]  # fmt: skip
    assert [(f.key, "empty caption" in f.reason or "side file" in f.reason) for f in data.failures] == [
        ("a", True), ("c", True),
    ]  # fmt: skip


def test_folder_that_holds_nothing_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no images in this folder"):
        load_data(f"folder:{tmp_path}")
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "1.png")
    real = __import__("os").scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"/b: the folder cannot be read \(Permission denied\); check its permissions"):
        load_data(tmp_path)


def test_folder_links_do_not_loop(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [s.key for s in load_data(tmp_path).samples] == ["a/1"]


def test_a_quote_that_never_closes_is_named_by_its_row(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    table = put(tmp_path / "t.csv", 'image,caption\na.png,"two\nlines"\na.png,"open\na.png,three\n')
    with pytest.raises(DataError, match=r"t\.csv row 4: a quote opens here and never closes, so that the 1 lines"):
        load_data(table)
    put(tmp_path / "t.csv", 'image,caption\na.png,"two\nlines"\na.png,"said ""so"""\na.png,"odd" one\n')
    (sample,) = load_data(table).samples
    assert sample.captions == ("two\nlines", 'said "so"', "odd one")


def test_csv_rows_merge_captions_and_name_bad_rows(tmp_path: Path) -> None:
    for name in ("img/a.png", "img/b.png"):
        put(tmp_path / name)
    absolute = put(tmp_path / "elsewhere" / "c.png")
    table = put(tmp_path / "t.csv", "﻿image,caption,split\n"
        'img/a.png,"one, with a comma",train\n'
        "img/a.png,two,train\n"
        "img/b.png,,dev\n"
        f"{absolute},three,train\n"
        "img/missing.png,four,train\n"
        ",five,train\n"
        "img/a.png,one,extra,cells\n"
        "http://x/y.jpg,six,train\n"
        "img/a.png,two,train\n")  # fmt: skip
    data = load_data(table)
    assert [(s.key, s.captions) for s in data.samples] == [
        ("img/a", ("one, with a comma", "two")), ("img/b", ()), ("elsewhere/c", ("three",)),
        ("img/missing", ("four",)),
    ]  # fmt: skip
    reasons = {f.location.rsplit("row ", 1)[-1].rstrip(")"): f.reason for f in data.failures}
    assert "empty" in reasons["7"]
    assert "4 cells for 3 columns" in reasons["8"]
    assert "address" in reasons["9"]
    assert "already used" in reasons["10"]
    missing = [item for _, item in iter_images(data.samples) if isinstance(item, Failure)]
    assert len(missing) == 1
    assert f"img/missing.png ({table} row 6): no such file" in missing[0].reason


def test_tsv_and_jsonl_and_stated_columns(tmp_path: Path) -> None:
    put(tmp_path / "pics" / "a.png")
    table = put(tmp_path / "t.tsv", "foto\talt1\talt2\tkind\tid\na.png\tx\ty\tcat\t77\n")
    data = load_data(f"tsv:{table}?image=foto&caption=alt1,alt2&class=kind&key=id&root={tmp_path}/pics")
    (sample,) = data.samples
    assert (sample.key, sample.captions, sample.class_name) == ("77", ("x", "y"), "cat")
    assert not isinstance(load_image(sample), Failure)
    keyed = put(tmp_path / "keyed.jsonl", json.dumps({"key": "k", "image": f"{tmp_path}/pics/a.png", "year": 1999}))
    (sample,) = load_data(keyed).samples
    # Its place is no fact about it, and goes to nobody who searches.
    assert (sample.key, sample.meta) == ("k", {"year": 1999})
    lines = put(tmp_path / "t.jsonl", '{"file_name": "pics/a.png", "text": ["p", "q"]}\nbroken\n')
    data = load_data(lines)
    assert data.samples[0].captions == ("p", "q")
    assert data.failures[0].location == f"{lines} row 2"
    with pytest.raises(ConfigError, match="no column 'photo'; columns here: foto, alt1"):
        load_data(f"{table}?image=photo")
    with pytest.raises(ConfigError, match=r"no column \['words'\]"):
        load_data(f"{table}?image=foto&caption=words")
    with pytest.raises(DataError, match="no column of images among foto"):
        load_data(table)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the table is empty"), (b"image\n\xff\xfe.png\n", "not UTF-8"), (b"image,caption\n", "no sample")],
)
def test_unreadable_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "t.csv")


def test_parquet_of_paths_and_of_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    pq.write_table(
        pa.table({"image_path": ["a.png", None], "caption": ["one", "x"], "label": [1, 0]}), tmp_path / "p.parquet"
    )
    data = load_data(tmp_path / "p.parquet")
    assert [(s.key, s.captions) for s in data.samples] == [("a", ("one",))]
    assert "row 2" in data.failures[0].location
    held = pa.table(
        {"key": ["k1", "k2", "k3"], "jpg": [png(10), png(20), None], "caption": ["one", float("nan") and None, "c"]}
    )
    pq.write_table(held, tmp_path / "img2dataset.parquet")
    data = load_data(f"parquet:{tmp_path}/img2dataset.parquet")
    assert [(s.key, s.captions) for s in data.samples] == [("k1", ("one",)), ("k2", ())]
    assert [np.asarray(i)[0, 0, 0] for _, i in iter_images(data.samples)] == [10, 20]
    assert data.failures[0].reason == "the image cell is null"
    hub = pa.table(
        {"image": [{"bytes": png(30), "path": "x/7.png"}, {"bytes": png(40), "path": None}], "label": [0, 1]}
    )
    pq.write_table(hub, tmp_path / "hub.parquet")
    data = load_data(tmp_path / "hub.parquet")
    assert data.samples[0].key == "x/7"
    assert len(data.samples[1].key) == 32, "without a name, the key is a digest of the bytes"
    put(tmp_path / "bad.parquet", "no parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_data(tmp_path / "bad.parquet")


def test_coco_captions_and_instances(tmp_path: Path) -> None:
    put(tmp_path / "val2017" / "0001.jpg")
    images = [{"id": 1, "file_name": "0001.jpg"}, {"id": 2, "file_name": "0002.jpg"}, {"id": 3}]
    captions = put(tmp_path / "annotations" / "captions_val2017.json", json.dumps({
        "images": images,
        "annotations": [{"image_id": 1, "caption": "one "}, {"image_id": 1, "caption": "two"},
                        {"image_id": 2, "caption": " "}],
    }))  # fmt: skip
    data = load_data(captions)
    assert [(s.key, s.captions, s.split) for s in data.samples] == [
        ("0001", ("one", "two"), "val"),
        ("0002", (), "val"),
    ]
    assert not isinstance(load_image(data.samples[0]), Failure), "val2017 was found beside the annotations"
    assert {f.location for f in data.failures} == {f"{captions} image 2", f"{captions} image 3"}
    instances = put(tmp_path / "instances.json", json.dumps({
        "images": images[:2],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7},
                        {"image_id": 2, "category_id": 7}, {"image_id": 2, "category_id": 9}],
    }))  # fmt: skip
    data = load_data(f"coco:{instances}?images={tmp_path}/val2017")
    assert [(s.class_name, s.meta["classes"]) for s in data.samples] == [("cat", ("cat",)), (None, ("cat", "dog"))]
    with pytest.raises(DataError, match="no such folder of images"):
        load_data(f"coco:{instances}?images={tmp_path}/nowhere")


def test_karpathy(tmp_path: Path) -> None:
    put(tmp_path / "images" / "val2014" / "a.jpg")
    path = put(tmp_path / "dataset.json", json.dumps({"images": [
        {"filepath": "val2014", "filename": "a.jpg", "split": "restval", "cocoid": 5,
         "sentences": [{"raw": "One."}, {"tokens": ["two", "words"]}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "x"}]},
        {"filename": "c.jpg", "split": "test"},
    ]}))  # fmt: skip
    data = load_data(path)
    assert [(s.key, s.captions, s.split) for s in data.samples] == [
        ("val2014/a", ("One.", "two words"), "restval"), ("b", ("x",), "test"),
    ]  # fmt: skip
    assert not isinstance(load_image(data.samples[0]), Failure)
    assert data.failures[0].location == f"{path} image 3"
    assert len(load_data(f"karpathy:{path}?split=train,restval")) == 1


def test_json_of_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither COCO's nor Karpathy's"):
        load_data(put(tmp_path / "x.json", '{"a": 1}'))
    with pytest.raises(DataError, match="not JSON"):
        load_data(put(tmp_path / "y.json", "{"))
    with pytest.raises(DataError, match="'images' must be a list of objects"):
        load_data(f"coco:{put(tmp_path / 'z.json', json.dumps({'images': [1]}))}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": label, "caption": datasets.Value("string")})
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in (10, 20)] + [None],
        "label": [1, 0, 1],
        "caption": ["a", "b", "c"],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "validation": table.select([1])}).save_to_disk(str(tmp_path / "dict"))
    data = load_data(f"hf:{tmp_path}/dict")
    assert data.class_names == ("cat", "dog")
    assert [(s.class_name, s.captions, s.split) for s in data.samples] == [
        ("dog", ("a",), "train"),
        ("cat", ("b",), "train"),
    ]
    assert [np.asarray(i)[0, 0, 0] for _, i in iter_images(data.samples)] == [10, 20]
    assert len(data.samples[0].key) == 32
    reasons = [f.reason for f in data.failures]
    assert "null" in reasons[0]
    assert "already used" in reasons[1], "the same picture in two splits is recorded"
    table.select([0, 1]).save_to_disk(str(tmp_path / "one"))
    assert len(load_data(tmp_path / "one")) == 2
    with pytest.raises(DataError, match="cannot be loaded"):
        load_data("hf:no-such-user/no-such-set")


def test_text_corpora(tmp_path: Path) -> None:
    lines = put(tmp_path / "t.txt", "a cat\n\na dog\na cat\nlast\x0cline\n")
    data = load_data(lines)
    assert [s.captions for s in data.samples] == [("a cat",), ("a dog",), ("last\x0cline",)]
    assert [f.location for f in data.failures] == [f"{lines} row 2", f"{lines} row 4"]
    assert all(s.image is None for s in data.samples)
    reordered = load_data(put(tmp_path / "r.txt", "a dog\na cat"))
    assert {s.key for s in reordered.samples} < {s.key for s in data.samples}, "keys are of texts, not of positions"
    put(tmp_path / "z.txt.gz", gzip.compress(b"a cat\n"))
    put(tmp_path / "j.jsonl", '{"text": "one"}\n"two"\n')
    put(tmp_path / "c.csv", "n,sentence\n1,three\n")
    put(tmp_path / "cupl.json", '{"cat": ["four", "five"]}')
    pq.write_table(pa.table({"words": ["six"]}), tmp_path / "p.parquet")
    for reference, texts in {
        "z.txt.gz": ["a cat"],
        "j.jsonl": ["one", "two"],
        "c.csv": ["three"],
        "cupl.json": ["four", "five"],
        "p.parquet?column=words": ["six"],
    }.items():
        assert [s.captions[0] for s in load_data(f"text:{tmp_path}/{reference}").samples] == texts
    with pytest.raises(DataError, match="no column 'word'; columns here: n, sentence"):
        load_data(f"text:{tmp_path}/c.csv?column=word")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        load_data(put(tmp_path / "bad.txt", b"\xff\xfe"))
