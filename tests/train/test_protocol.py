"""A run says what it was trained on, and an evaluation of it which protocol held."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.train import tiny
from tests.train.test_run import job, poured

from clipette import measuring
from clipette.data.sources import load_data
from clipette.evaluate.cost import Timing
from clipette.evaluate.protocol import read_trained_on
from clipette.train.classes import trained_on
from clipette.train.run import run_job


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "TIMING", Timing(warmup=0, repeats=1, batch_size=2, max_seconds=0.1))


def pictures(folder: Path, names: tuple[str, ...], first: int) -> str:
    for label, name in enumerate(names):
        for index in range(first, first + 4):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny.picture(label, index))
    return f"folder:{folder}"


def test_a_run_is_labelled_by_what_it_saw(tmp_path: Path) -> None:
    base = load_data(pictures(tmp_path / "base", tiny.CLASSES[:2], 0))
    # With captions it is another listing than the one evaluated: its images are told by where they are.
    base = replace(base, samples=tuple(replace(s, captions=(f"a {s.class_name} picture",)) for s in base.samples))
    everything = pictures(tmp_path / "test", tiny.CLASSES, 4)
    made = job(tmp_path / "run", loss={"clip": 1}, data=base, dev=load_data(everything))
    run_job(made)
    summary = json.loads((made.out / "summary.json").read_text())
    assert summary["trained_on"] == {"images": 8, "classes": 2}
    half = f"trained on {sum(n in base.class_names for n in load_data(everything).class_names)} of its 4 classes"
    assert half in summary["dev_protocol"]
    assert (
        json.loads((made.out / "model" / "model.json").read_text())["card"]["dev_protocol"] == summary["dev_protocol"]
    )
    found = measuring.compare([str(made.out)], [everything, f"folder:{tmp_path / 'base'}"], out=tmp_path / "report")
    models = found["models"]
    assert isinstance(models, dict)
    protocols = models["run"]["protocol"]
    assert half in protocols["folder:test"]
    assert protocols["folder:base"] == "transductive (trained on 2 of its 2 classes and 8 of its 8 images)"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "protocol: transductive (trained on 2 of its 2 classes and 8 of its 8 images)" in page


def test_class_texts_are_classes_seen_and_a_start_brings_its_own(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    given = {"teacher": teacher, "store": poured(teacher, tmp_path)}
    names = {"classes": {"names": ["emu", "owl"]}}
    told = trained_on(job(tmp_path / "a", loss={"class_text_kl": 1}, rest=names, **given))
    assert told.classes == tuple(sorted((*tiny.CLASSES, "emu", "owl")))
    silent = job(tmp_path / "b", loss={"image_gram": 1}, rest=names, **given)
    assert trained_on(silent).classes == tuple(sorted(tiny.CLASSES)), "no loss reads class texts"
    told.write(tmp_path / "a" / "model")
    assert read_trained_on(tmp_path / "a") == told
    further = job(tmp_path / "c", loss={"image_gram": 1}, rest={"init": str(tmp_path / "a")}, **given)
    assert "emu" in trained_on(further).classes
