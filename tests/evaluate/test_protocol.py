"""Which protocol held: images by place or fingerprint, classes by name or prompt, silence where nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluate.fakes import classified
from tests.train.tiny import Memory

from clipette.data.dataset import Dataset
from clipette.data.refs import FileImage
from clipette.evaluate.protocol import FILE, TrainedOn, read_trained_on

NAMES = ("cat", "dog", "fox", "owl", "elk", "emu")


def data(first: int, stop: int, classes: tuple[str, ...] = NAMES, where: str = "pets") -> Dataset:
    """Images ``first`` to ``stop`` of a folder, over ``classes`` in turn."""
    one = classified(1).samples[0]
    samples = tuple(
        replace(
            one,
            key=f"{i}",
            image=Memory(b"", f"{where}/{i}.png"),
            class_name=classes[i % len(classes)] if classes else None,
            label=i % len(classes) if classes else None,
        )
        for i in range(first, stop)
    )
    return Dataset(f"folder:{where}?first={first}", samples, classes)


@pytest.mark.parametrize(
    ("trained", "evaluated", "expected"),
    [
        # PromptKD: unlabelled images of all classes, other images of them.
        (data(0, 30), data(30, 60), "transductive (trained on 6 of its 6 classes and 0 of its 30 images)"),
        # CoOp's protocol: base classes alone.
        (data(0, 30, NAMES[:3]), data(30, 60), "inductive (trained on 3 of its 6 classes and 0 of its 30 images)"),
        (data(0, 30, NAMES[:3]), data(30, 60, NAMES[3:]), "inductive (trained on 0 of its 3 classes and 0 of its 30"),
        (data(0, 30, NAMES[:3]), data(30, 60, NAMES[:3]), "transductive (trained on 3 of its 3 classes and 0 of its"),
        # One novel class is enough, and so is one image.
        (data(0, 30, NAMES[:4]), data(30, 60), "transductive (trained on 4 of its 6 classes and 0 of its 30 images)"),
        (data(0, 31, NAMES[:3]), data(30, 60), "transductive (trained on 3 of its 6 classes and 1 of its 30 images)"),
        (data(0, 30, ("Cat", "d_og")), data(30, 60, ("cat", "d og")), "transductive (trained on 2 of its 2 classes"),
        (data(0, 30, ("cat",)), data(30, 60, ("cat",)), "transductive (trained on 1 of its 1 classes"),
        # The same keys elsewhere are other images.
        (data(0, 30, NAMES[:3], "a"), data(0, 30, NAMES, "b"), "inductive (trained on 3 of its 6 classes and 0 of its"),
        # No class is known: only images can tell.
        (data(0, 30, ()), data(30, 60), ""),
        (data(0, 40, ()), data(30, 60), "transductive (trained on 10 of its 30 images)"),
    ],
)
def test_the_protocol_follows_from_what_was_trained_on(trained: Dataset, evaluated: Dataset, expected: str) -> None:
    found = TrainedOn.of(trained).protocol(evaluated, evaluated.class_names)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_labelled_images_of_every_class_are_supervision() -> None:
    trained, fresh, seen = data(0, 30), data(30, 60), data(0, 60)
    labelled, plain = TrainedOn.of(trained, labelled=True), TrainedOn.of(trained)
    assert labelled.protocol(fresh, NAMES) == "supervised (trained on 6 of its 6 classes and 0 of its 30 images)"
    assert labelled.protocol(seen, NAMES).startswith("transductive"), "images that it was trained on are tested"
    half = TrainedOn.of(data(0, 30, NAMES[:3]), labelled=True)
    assert half.protocol(fresh, NAMES).startswith("inductive")
    assert half.joined(labelled).protocol(fresh, NAMES).startswith("supervised")
    assert half.joined(plain).protocol(fresh, NAMES).startswith("transductive"), "once without labels"
    assert labelled.joined(TrainedOn.of(data(0, 30, ()))).protocol(fresh, NAMES).startswith("supervised")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for labelled in (True, False):
        found = TrainedOn.of(data(0, 30), labelled=labelled)
        found.write(tmp_path)
        assert read_trained_on(tmp_path) == found


def test_class_texts_count_as_classes_by_name_or_prompt() -> None:
    unlabelled, evaluated = data(0, 30, ()), data(30, 60)
    for texts in (NAMES, tuple(f"a photo of a {name}" for name in NAMES), tuple(f"a photo of a {n}." for n in NAMES)):
        found = TrainedOn.of(unlabelled, texts).protocol(evaluated, NAMES)
        assert found.startswith("transductive (trained on 6 of its 6 classes and 0"), texts
    assert TrainedOn.of(unlabelled, ("a photo of a cattle",)).protocol(evaluated, NAMES).startswith("inductive")


def test_the_same_listing_is_known_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = TrainedOn.of(data(0, 30))
    moved = data(0, 30, where="elsewhere")
    assert "30 of its 30 images" in seen.protocol(moved, NAMES), "by its fingerprint"
    image = FileImage("pets/3.png", "other.csv row 9")
    named = replace(moved, samples=(replace(moved.samples[3], image=image),))
    assert "1 of its 1 images" in seen.protocol(named, NAMES), "the row that names a file is not its place"
    monkeypatch.chdir(tmp_path)
    absolute = replace(image, path=str(tmp_path / "pets" / "3.png"))
    here = TrainedOn.of(data(0, 30))
    assert "1 of its 1" in here.protocol(replace(named, samples=(replace(named.samples[0], image=absolute),)), NAMES)


def test_of_many_images_a_fair_sample_is_kept() -> None:
    # Absolute, so that the sample is the same in whichever folder the tests run.
    trained, evaluated = data(0, 2000, where="/pets"), data(1000, 3000, where="/pets")
    whole, some = TrainedOn.of(trained), TrainedOn.of(trained, keep=400)
    assert len(some.places) == 400
    assert "1000 of its 2000 images" in whole.protocol(evaluated, NAMES)
    estimate = int(some.protocol(evaluated, NAMES).split(" classes and ")[1].split()[0])
    assert estimate == pytest.approx(1000, abs=150)
    assert "0 of its 500 images" in some.protocol(data(5000, 5500, where="/pets"), NAMES)


def test_what_the_weights_saw_before_counts_too() -> None:
    first, second = data(0, 1000, NAMES[:2]), data(1000, 2000, NAMES[2:4])
    both = TrainedOn.of(second).joined(TrainedOn.of(first))
    assert "4 of its 6 classes and 20 of its 20 images" in both.protocol(data(990, 1010), NAMES)
    cut = TrainedOn.of(second, keep=100).joined(TrainedOn.of(first))
    assert cut.reach == TrainedOn.of(second, keep=100).reach
    assert max(cut.places) <= cut.reach
    assert TrainedOn.of(first).joined(None) == TrainedOn.of(first)


def test_the_record_is_read_back_from_a_run_or_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = TrainedOn.of(data(0, 30))
    assert read_trained_on(tmp_path) is None
    assert read_trained_on("open_clip:ViT-B-16/openai") is None
    seen.write(tmp_path / "model")
    for reference in (tmp_path, f"run:{tmp_path}", str(tmp_path / "model")):
        assert read_trained_on(reference) == seen
    (tmp_path / "model" / FILE).write_text(json.dumps({"classes": ["cat"]}))
    assert read_trained_on(tmp_path) is None
    assert "no protocol is named" in caplog.text
