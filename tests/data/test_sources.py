"""References: kinds, options, joins, splits, base/novel, few-shot; stable keys; messages that name the place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipette.data.dataset import Dataset, Listing, assemble
from clipette.data.sources import SOURCES, load_data
from clipette.errors import ConfigError, DataError
from clipette.types import Sample


def write_image(path: Path, grey: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Five classes of six images."""
    for name in "abcde":
        for n in range(6):
            write_image(tmp_path / "set" / name / f"{n}.png")
    return tmp_path / "set"


def keys(data: Dataset) -> list[str]:
    return [sample.key for sample in data.samples]


def test_base_and_novel_follow_coops_rule(classes: Path) -> None:
    base, novel = load_data(f"{classes}?classes=base"), load_data(f"folder:{classes}?classes=novel")
    assert (base.class_names, novel.class_names) == (("a", "b", "c"), ("d", "e"))
    assert {s.label for s in base.samples} == {0, 1, 2}
    assert {(s.class_name, s.label) for s in novel.samples} == {("d", 0), ("e", 1)}
    assert len(base) + len(novel) == 30


def test_few_shot_is_balanced_seeded_and_stable(classes: Path) -> None:
    few = load_data(f"{classes}?shots=2&seed=1")
    assert [s.class_name for s in few.samples] == list("aabbccddee")
    assert keys(few) == keys(load_data(f"{classes}?seed=1&shots=2"))
    assert keys(few) != keys(load_data(f"{classes}?seed=2&shots=2"))
    assert set(keys(few)) < set(keys(load_data(f"{classes}?shots=3&seed=1"))), "more shots keep the fewer"
    assert len(load_data(f"{classes}?shots=99")) == 30
    (classes / "c" / "5.png").unlink()
    again = load_data(f"{classes}?shots=2&seed=1")
    assert set(keys(few)) - {"c/5"} <= set(keys(again)), "removing one image must not redraw the others"


def test_limit_is_spread_over_a_sorted_source(classes: Path) -> None:
    few = load_data(f"{classes}?limit=12")
    assert len(few) == 12
    assert len({s.class_name for s in few.samples}) >= 4
    assert keys(few) == sorted(keys(few)), "order is the source's"


def test_drawn_splits_are_disjoint_seeded_and_stable(classes: Path) -> None:
    parts = {
        name: set(keys(load_data(f"{classes}?draw=dev:0.2,test:0.3&split={name}"))) for name in ("train", "dev", "test")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 30
    assert parts["dev"] == set(keys(load_data(f"{classes}?draw=0.2&split=val"))), "a share alone is dev; val is dev"
    many = [Sample(f"k{n}") for n in range(5000)]
    drawn = assemble("x", Listing(many)).draw_splits({"dev": 0.1}, seed=0)
    assert np.mean([s.split == "dev" for s in drawn.samples]) == pytest.approx(0.1, abs=0.02)
    fewer = assemble("x", Listing(many[::2])).draw_splits({"dev": 0.1}, seed=0)
    splits = {s.key: s.split for s in drawn.samples}
    assert all(splits[s.key] == s.split for s in fewer.samples), "a sample keeps its split when others go"
    other = assemble("x", Listing(many)).draw_splits({"dev": 0.1}, seed=1)
    assert [s.split for s in other.samples] != [s.split for s in drawn.samples]


def test_stated_splits_are_left_alone_when_drawing() -> None:
    data = assemble("x", Listing([Sample(f"t{n}", split="test") for n in range(50)] + [Sample("a", split="train")]))
    drawn = data.draw_splits({"dev": 0.5}, 0)
    assert all(s.split == "test" for s in drawn.samples[:50])
    with pytest.raises(DataError, match="split 'test' is stated"):
        data.draw_splits({"test": 0.5}, 0)


def test_joins_unite_classes_by_name(classes: Path, tmp_path: Path) -> None:
    for name in ("e", "f"):
        write_image(tmp_path / "more" / name / "x.png")
    joined = load_data(f"{classes}?limit=10 + folder:{tmp_path / 'more'}")
    assert len(joined) == 12
    assert joined.class_names == ("a", "b", "c", "d", "e", "f")
    assert [(s.class_name, s.label) for s in joined.samples[-2:]] == [("e", 4), ("f", 5)]


def test_duplicate_keys_name_both_places(classes: Path, tmp_path: Path) -> None:
    write_image(classes / "a" / "0.jpg")
    data = load_data(classes)
    assert len(data) == 30
    assert [f.key for f in data.failures] == ["a/0"]
    assert f"{classes}/a/0.png" in data.failures[0].location
    assert f"{classes}/a/0.jpg" in data.failures[0].reason
    assert "rename" in data.failures[0].reason
    twice = load_data(f"{classes} + {classes}")
    assert len(twice) == 30
    assert len(twice.failures) == 32


def test_fingerprints_follow_what_was_listed(classes: Path) -> None:
    first = load_data(classes).fingerprint()
    assert load_data(classes).fingerprint() == first
    moved = classes.rename(classes.parent / "moved")
    assert load_data(moved).fingerprint() == first, "a move changes nothing"
    write_image(moved / "a" / "new.png")
    assert load_data(moved).fingerprint() != first


def test_subset_keeps_the_order_asked_for(classes: Path) -> None:
    assert keys(load_data(classes).subset(["e/1", "a/0"])) == ["e/1", "a/0"]
    with pytest.raises(DataError, match="no sample has the key 'z/9'"):
        load_data(classes).subset(["a/0", "z/9"])


def test_labels_stated_by_the_source_order_the_classes() -> None:
    data = assemble("x", Listing([Sample("1", class_name="zebra", label=0), Sample("2", class_name="ant", label=1)]))
    assert data.class_names == ("zebra", "ant")
    gaps = assemble("x", Listing([Sample("1", class_name="zebra", label=3), Sample("2", class_name="ant", label=7)]))
    assert [s.label for s in gaps.samples] == [0, 1]
    unnamed = assemble("x", Listing([Sample("1", label=10), Sample("2", label=9)]))
    assert unnamed.class_names == ("9", "10")
    with pytest.raises(DataError, match="class 'ant' has label 0 at text '1' and 1 at text '2'"):
        assemble("x", Listing([Sample("1", class_name="ant", label=0), Sample("2", class_name="ant", label=1)]))
    with pytest.raises(DataError, match="two class names share one label"):
        assemble("x", Listing([Sample("1", class_name="ant", label=0), Sample("2", class_name="bee", label=0)]))


def test_class_names_from_a_file_name_the_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,1\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    for names in ("names.txt", "names.json"):
        data = load_data(f"{tmp_path}/t.csv?names={tmp_path}/{names}")
        assert (data.class_names, data.samples[0].class_name, data.samples[0].label) == (("cat", "dog"), "dog", 1)
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(DataError, match="class '1' is none of the 1 stated"):
        load_data(f"{tmp_path}/t.csv?names={tmp_path}/names.txt")


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("{set}?spilt=train", ConfigError, "unknown option 'spilt' of folder: Did you mean 'split'"),
        ("{set}?split", ConfigError, "'split' is not option=value"),
        ("{set}?shots=2&shots=3", ConfigError, "given twice"),
        ("{set}?shots=two", ConfigError, "shots 'two' must be a whole number"),
        ("{set}?shots=0", ConfigError, "shots 0 must be at least 1"),
        ("{set}?classes=old", ConfigError, "classes 'old' must be all, base or novel"),
        ("{set}?draw=much", ConfigError, "draw 'much' must be a share"),
        ("{set}?draw=1.5", DataError, "must be in"),
        ("{set}?split=test", DataError, "no sample has split 'test'; splits here: None"),
        ("{set}?domain=photo", DataError, "no sample has domain 'photo'"),
        ("foldr:{set}", ConfigError, "unknown kind 'foldr'. Did you mean 'folder'"),
        ("{set}/nothing", DataError, "no such file or folder"),
        ("folder:{set}/nothing", DataError, "no such folder"),
        ("wds:{set}/x-{{0..3}}.tar", DataError, "x-0.tar: no such file"),
        ("wds:{set}/*.tar", DataError, "nothing matches this pattern"),
        ("wds:{set}", DataError, "no file ending in .tar"),
        ("", ConfigError, "empty data reference"),
    ],
)
def test_wrong_references_say_what_to_do(classes: Path, reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        load_data(reference.format(set=classes))
    assert message in str(caught.value)


def test_few_shot_and_base_need_classes() -> None:
    data = assemble("x", Listing([Sample("1")]))
    with pytest.raises(DataError, match="needs class names"):
        data.few_shot(1, 0)
    with pytest.raises(DataError, match="at least 2 classes"):
        data.filter(classes="base")
    with pytest.raises(DataError, match="the source has no sample"):
        assemble("x", Listing())


def test_names_for_tables() -> None:
    for reference, name in {
        "wds:/a/b/x-{0..3}.tar?split=train": "wds:x-{0..3}.tar?split=train",
        "photos/cats": "cats",
        "world:test?n=5": "world:test?n=5",
        "wds:/a/x.tar?root=/c/d + csv:b/y.csv": "wds:x.tar?root=d + csv:y.csv",
    }.items():
        assert Dataset(reference, ()).name == name


def test_the_world_is_a_source() -> None:
    data = load_data("world:test?n=20&size=32")
    assert (len(data), len(data.class_names) > 1) == (20, True)
    assert all(s.label is not None and data.class_names[s.label] == s.class_name for s in data.samples)
    with pytest.raises(ConfigError, match="unknown option 'sizes' of world: Did you mean 'size'"):
        load_data("world:test?sizes=3")


def test_every_kind_is_listed_by_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load_data("nonsense:x")
    assert all(kind in str(caught.value) for kind in SOURCES)


def test_what_is_not_unicode_is_left_out_and_said(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin\xff.png")).write_bytes(good)
    (tmp_path / "words.png").write_bytes(good)
    (tmp_path / "words.json").write_text('{"captions": ["a \\ud800 dog"]}')
    data = load_data(str(tmp_path))
    assert [sample.key for sample in data.samples] == ["good"]
    told = {failure.key: failure for failure in data.failures}
    assert set(told) == {"latin\\udcff", "words"}
    assert "its key is not valid Unicode" in told["latin\\udcff"].reason
    assert "its captions is" in told["words"].reason
    for failure in data.failures:
        f"{failure.key}{failure.location}{failure.reason}".encode()


def test_what_makes_classification_other_than_people_think_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        "image,class",
        *(f"{number}.png,{name}" for number, name in enumerate(["red star", "red_star", "", "dog"])),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    load_data(f"csv:{tmp_path}/t.csv")
    assert "1 of its 4 samples have no class: classification leaves them out" in caplog.text
    assert "classes 'red star' and 'red_star' read alike: no wording tells them apart" in caplog.text
    caplog.clear()
    (tmp_path / "t.csv").write_text("\n".join([lines[0], lines[1], lines[4]]))
    load_data(f"csv:{tmp_path}/t.csv")
    assert not caplog.text
