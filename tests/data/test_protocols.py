"""Rounds of the protocols: nobody is tested on what it was trained or chosen on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipette.data.dataset import Dataset
from clipette.data.protocols import PROTOCOLS, base_to_novel, cross_dataset, domain_generalisation, drawn, few_shot
from clipette.data.sources import load_data
from clipette.errors import ConfigError, DataError
from clipette.types import Sample

NAMES = ("ant", "bee", "cat", "dog", "emu")


def data(name: str = "pets", *, splits: tuple[str, ...] = ("train", "test"), domains: tuple[str, ...] = ()) -> Dataset:
    samples = []
    for split in splits:
        for label, each in enumerate(NAMES):
            for number in range(12 if split == "train" else 4):
                domain = domains[number % len(domains)] if domains else None
                key = f"{name}-{split}-{each}-{number}"
                samples.append(Sample(key, class_name=each, label=label, split=split or None, domain=domain))
    return Dataset(f"folder:{name}", tuple(samples), NAMES)


def keys(found: Dataset | None) -> set[str]:
    return set() if found is None else {sample.key for sample in found.samples}


def test_base_and_novel_classes() -> None:
    (part,) = base_to_novel(data(), [])
    assert part.train.class_names == NAMES[:3]
    assert {sample.split for sample in part.train.samples} == {"train"}
    assert {name: test.class_names for name, test in part.tests.items()} == {"base": NAMES[:3], "novel": NAMES[3:]}
    assert {sample.label for sample in part.tests["novel"].samples} == {0, 1}
    with pytest.raises(ConfigError, match="tests on one data set, got 2"):
        base_to_novel(data(), [data("a"), data("b")])


@pytest.mark.parametrize("shots", [1, 2, 8])
def test_shots_are_drawn_and_validation_comes_from_the_rest(shots: int) -> None:
    (part,) = few_shot(data(), [])
    found = drawn(part, shots, seed=3)
    assert len(found.train) == shots * 5
    assert found.dev is not None
    assert len(found.dev) == min(shots, 4) * 5
    assert not keys(found.train) & keys(found.dev)
    assert not keys(found.tests["test"]) & (keys(found.train) | keys(found.dev))
    assert keys(found.train) != keys(drawn(part, shots, seed=4).train)
    assert keys(found.train) == keys(drawn(part, shots, seed=3).train)


def test_a_stated_validation_split_is_used_and_none_is_drawn_where_nothing_is_left() -> None:
    (part,) = few_shot(data(splits=("train", "val", "test")), [])
    found = drawn(part, 2, seed=0)
    assert found.dev is not None
    assert {sample.split for sample in found.dev.samples} == {"val"}
    (whole,) = few_shot(data(), [])
    assert drawn(whole, 12, seed=0).dev is None
    assert drawn(whole, None, seed=0) is whole


def test_each_domain_is_left_out_once() -> None:
    found = domain_generalisation(data(domains=("photo", "sketch", "art")), [])
    assert [part.name for part in found] == ["photo", "sketch", "art"]
    for part in found:
        assert part.name not in {sample.domain for sample in part.train.samples}
        (test,) = part.tests.values()
        assert {sample.domain for sample in test.samples} == {part.name}
        assert {sample.split for sample in test.samples} == {"test"}
    (source,) = domain_generalisation(data(), [data("sketches", splits=("test",))])
    assert list(source.tests) == ["folder:sketches"]
    with pytest.raises(ConfigError, match="two domains or more"):
        domain_generalisation(data(), [])


def test_domains_without_splits_are_tested_whole() -> None:
    found = domain_generalisation(data(splits=("",), domains=("photo", "sketch")), [])
    for part in found:
        (test,) = part.tests.values()
        assert {sample.domain for sample in test.samples} == {part.name}
        assert len(test) + len(part.train) == 20


def test_images_of_no_stated_split_are_for_training_and_test_images_never_are() -> None:
    """A table may name its test images alone."""
    mixed = data(splits=("", "test", "val"))
    (part,) = few_shot(mixed, [])
    assert {sample.split for sample in part.train.samples} == {None}
    assert not keys(part.train) & keys(part.tests["test"])
    with pytest.raises(DataError, match="no image is of split 'train'"):
        few_shot(data(splits=("test",)), [])
    strangers = data("ships", splits=("test",))
    strangers = replace(strangers, class_names=("ship", "raft"), samples=())
    with pytest.raises(DataError, match=r"no class of it is learned from .* --protocol cross-dataset"):
        few_shot(data(), [strangers])
    (part,) = few_shot(data(splits=("sketched", "test")), [])
    assert {sample.split for sample in part.train.samples} == {"sketched"}, "where none is called train"


def test_another_test_set_is_halved_by_the_training_classes() -> None:
    """It may lack a class, or number its own otherwise: its first half would then hold classes that are novel."""
    other = data("other", splits=("test",))
    names = ("emu", "dog", "bee", "ant")
    samples = tuple(
        replace(sample, label=names.index(sample.class_name))
        for sample in other.samples
        if sample.class_name is not None and sample.class_name in names
    )
    (part,) = base_to_novel(data(), [replace(other, samples=samples, class_names=names)])
    assert part.tests["base"].class_names == NAMES[:3]
    assert part.tests["novel"].class_names == NAMES[3:]
    for test in part.tests.values():
        assert all(test.class_names[sample.label or 0] == sample.class_name for sample in test.samples)
    with pytest.raises(DataError, match="no image is of the classes dog, emu"):
        base_to_novel(data(), [replace(other, samples=tuple(s for s in other.samples if s.class_name == "ant"))])


def test_other_data_sets_are_tested_whole() -> None:
    (part,) = cross_dataset(data(), [data("x", splits=("",)), data("y", splits=("",))])
    assert list(part.tests) == ["folder:x", "folder:y"]
    assert {sample.split for sample in part.train.samples} == {"train"}
    with pytest.raises(ConfigError, match="name them with --test"):
        cross_dataset(data(), [])
    with pytest.raises(ConfigError, match="called alike"):
        cross_dataset(data(), [data("x"), data("x")])
    with pytest.raises(DataError, match="no test split is stated"):
        few_shot(data(splits=("",)), [])
    assert set(PROTOCOLS) == {"few-shot", "base-to-novel", "cross-dataset", "domain-generalisation"}


# ---------------------------------------------------------------- CoOp's split files


def write_split(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "101_ObjectCategories"
    rows = {
        "train": [["ant/1.jpg", 0, "ant"], ["bee/1.jpg", 1, "bee"]],
        "val": [["ant/2.jpg", 0, "ant"]],
        "test": [["bee/2.jpg", 1, "bee"]],
    }
    for each in rows.values():
        for name, *_ in each:
            (images / str(name)).parent.mkdir(parents=True, exist_ok=True)
            (images / str(name)).write_bytes(b"x")
    path = folder / "split_zhou_Caltech101.json"
    path.write_text(json.dumps({**rows, **changes}))
    return path


def test_coops_split_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_split(tmp_path)
    for reference in (f"coop:{path}", str(path)):
        found = load_data(reference)
        assert found.class_names == ("ant", "bee")
        assert [(s.key, s.split, s.label) for s in found.samples] == [
            ("ant/1", "train", 0),
            ("bee/1", "train", 1),
            ("ant/2", "val", 0),
            ("bee/2", "test", 1),
        ]
        assert all(s.image is not None and s.image.read() == b"x" for s in found.samples)
    assert len(load_data(f"coop:{path}?split=dev")) == 1
    assert load_data(f"coop:{path}?classes=novel&split=test").class_names == ("bee",)
    moved = write_split(tmp_path / "far")
    images = tmp_path / "elsewhere"
    (tmp_path / "far" / "101_ObjectCategories").rename(images)
    (sample, *_) = load_data(f"coop:{moved}?images={images}").samples
    assert sample.image is not None
    assert sample.image.read() == b"x"


def test_damaged_split_files_are_named(tmp_path: Path) -> None:
    path = write_split(tmp_path / "a", test=[["x.jpg", 1, "bee"], ["y.jpg", 1]])
    found = load_data(f"coop:{path}")
    assert ["test 2" in failure.location for failure in found.failures] == [True]
    contrary = write_split(tmp_path / "b", test=[["x.jpg", 1, "ant"]])
    with pytest.raises(DataError, match="class 1 is 'ant' here and 'bee' before"):
        load_data(f"coop:{contrary}")
    other = tmp_path / "other.json"
    other.write_text('{"train": "no"}')
    with pytest.raises(DataError, match="not CoOp's format"):
        load_data(f"coop:{other}")
    plain = replace(found, failures=())
    assert len(plain) == 4
