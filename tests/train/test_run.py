"""Whole runs of every kind of recipe, and the misfits that are refused at the start, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.encoders import write_bert
from tests.train import tiny

from clipette.data.dataset import Dataset
from clipette.errors import ClipetteError, ConfigError, ModelError, StoreError, UnsupportedError
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model
from clipette.models.stored import open_stored
from clipette.resolve import resolve
from clipette.store import Store, open_store
from clipette.tasks.pour import PourPlan, pour
from clipette.train.classes import class_side, guide_classes
from clipette.train.job import Companion, Job
from clipette.train.log import read_metrics
from clipette.train.run import run_job
from clipette.train.student import build_student
from clipette.types import Encoder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPETTE_CACHE", str(tmp_path / "cache"))


def job(out: Path, *, loss: dict[str, Any], teacher: Encoder | None = None, **options: Any) -> Job:
    """``options``: fields of ``Job``; ``student``, ``train`` and ``rest`` change the recipe."""
    student = tiny.spec(**options.pop("student", {})).model_dump(mode="json")
    train = {"steps": 3, "save_every": 0, "evaluate_every": 0, **options.pop("train", {})}
    rest = {"student": student, **options.pop("rest", {})}
    recipe = tiny.RecipeParts(loss, train, rest).recipe()
    given = {"data": tiny.dataset(), "device": "cpu", "progress": False, **options}
    return Job(recipe=recipe, out=out, teacher=teacher, **given)


def poured(teacher: TorchEncoder, folder: Path, *, seed: int = 0, **changes: Any) -> Store:
    plan = PourPlan(**{"views": 2, "captions": True, **changes})
    pour(teacher, tiny.dataset(), folder / "store", plan, seed=seed, progress=False)
    return open_store(folder / "store")


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl", "train")]


def stored_teacher(folder: Path, *, names: Sequence[str] = tiny.CLASSES, texts: bool = True) -> Encoder:
    """A teacher that is only a file."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "vectors": random.normal(size=(32, 12)).astype(np.float16),
        "files": np.array([f"s{i:03d}.jpg" for i in range(32)]),
        "words": random.normal(size=(len(names), 12)).astype(np.float16),
        "names": np.array(names),
    }
    np.savez(folder / "teacher.npz", **arrays)
    tail = "&texts=words&text_keys=names" if texts else ""
    return open_stored(f"stored:{folder}/teacher.npz?images=vectors&image_keys=files{tail}&scale=50")


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("logits", ["clip", "siglip"])
def test_pretraining_writes_a_run_directory_that_is_a_model(tmp_path: Path, logits: str) -> None:
    out = tmp_path / "run"
    result = run_job(job(out, loss={logits: 1}, student={"logits": logits}, dev=tiny.dataset(12)))
    assert result.steps == 3
    written = {path.name for path in out.iterdir()}
    assert written == {"recipe.yaml", "metrics.jsonl", "checkpoints", "model", "summary.json", "report.html"}
    dev = read_metrics(out / "metrics.jsonl", "dev")
    assert [line["step"] for line in dev] == [0, 3]
    assert 0 <= dev[-1]["mean_recall"] <= 1
    assert 0 <= dev[-1]["top1"] <= 1
    encoder = resolve(str(out), device="cpu")
    assert encoder.dim == 16
    assert (encoder.logit_bias != 0) == (logits == "siglip")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["teacher"] is None
    assert summary["failures"] == []
    assert summary["weights"] == encoder.space


def test_a_run_ends_in_the_same_bytes_twice_and_in_others_for_another_seed(tmp_path: Path) -> None:
    content = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_job(job(tmp_path / name, loss={"clip": 1}, rest={"seed": seed}))
        content.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert content[0] == content[1]
    assert content[0] != content[2]


def test_a_student_in_its_own_space_learns_through_adapters(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    loss = {"image_cosine": 1, "text_mse": 1, "in_batch_kl": 1, "class_text_kl": 1, "interactive": 1}
    run_job(job(tmp_path / "run", loss=loss, teacher=teacher, store=poured(teacher, tmp_path)))
    saved = load_model(tmp_path / "run")
    assert saved.model.dim == 16
    assert saved.space != teacher.space
    assert not any("adapter" in name for name in saved.model.state_dict())
    line = read_metrics(tmp_path / "run" / "metrics.jsonl", "train")[0]
    assert line["effective"].keys() == loss.keys()


def test_an_image_only_student_lives_among_its_teachers_class_texts(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    student = {"dim": None, "space": "teacher", "text": None}
    settings = {"steps": 12, "optimizer": {"lr": 0.01}}
    made = job(
        tmp_path / "run",
        loss={"class_text_kl": 1},
        teacher=teacher,
        store=poured(teacher, tmp_path),
        student=student,
        train=settings,
        dev=replace(tiny.dataset(), samples=tuple(replace(s, captions=()) for s in tiny.dataset(8).samples)),
    )
    run_job(made)
    curve = losses(made.out)
    assert curve[-1] < curve[0]
    saved = load_model(made.out)
    assert saved.space == teacher.space
    assert float(saved.model.scale.detach()) == pytest.approx(teacher.logit_scale)
    encoder = TorchEncoder(saved.model, name="s", device="cpu")
    prompts = [f"a photo of a {name}" for name in tiny.CLASSES]
    carried = saved.model.text_tower().tokenizer.texts  # type: ignore[attr-defined]
    np.testing.assert_allclose(encoder.encode_texts(carried), teacher.encode_texts(carried), atol=1e-5)
    assert len(carried) == len(prompts)
    with pytest.raises(UnsupportedError, match="no text tower, only 4 stored texts"):
        encoder.encode_texts(["a dog"])


@pytest.mark.parametrize("source", ["data", "teacher"])
def test_a_teacher_that_is_only_a_file_teaches_an_image_student(tmp_path: Path, source: str) -> None:
    names = tiny.CLASSES if source == "data" else ("one", "two", "three", "four", "five", "six")
    teacher = stored_teacher(tmp_path, names=names)
    unlabelled = Dataset(
        "bare", tuple(replace(s, captions=(), class_name=None, label=None) for s in tiny.dataset().samples)
    )
    data = tiny.dataset() if source == "data" else unlabelled
    made = job(
        tmp_path / "run",
        loss={"class_text_kl": 1, "image_cosine": 1},
        teacher=teacher,
        data=data,
        student={"dim": None, "space": "teacher", "text": None},
        rest={"classes": {"source": source, "templates": "none"}},
        train={"steps": 12, "optimizer": {"lr": 0.01}},
    )
    run_job(made)
    assert losses(made.out)[-1] < losses(made.out)[0]
    saved = load_model(made.out)
    assert (saved.space, saved.model.dim) == (teacher.space, 12)
    assert float(saved.model.scale.detach()) == pytest.approx(50.0)
    encoder = TorchEncoder(saved.model, name="s", device="cpu")
    np.testing.assert_allclose(encoder.encode_texts(names), teacher.encode_texts(names), atol=1e-5)


def test_a_stored_teachers_texts_are_whole_for_its_guide_and_its_student_too(tmp_path: Path) -> None:
    """No template goes round a text that is a sentence already."""
    texts = ("a red square", "a blue dot")
    teacher, second = stored_teacher(tmp_path, names=texts), tiny.teacher()
    made = job(tmp_path / "run", loss={"class_text_kl": 1}, teacher=teacher, rest={"classes": {"source": "teacher"}})
    np.testing.assert_allclose(guide_classes(made, second).numpy(), second.encode_texts(texts), atol=1e-6)
    student = tiny.student()
    tokens = class_side(made, student)[2]["input_ids"].numpy()
    assert np.array_equal(tokens, student.text_tower().tokenizer(texts)["input_ids"])


def test_a_student_may_share_its_teachers_text_tower(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    made = job(
        tmp_path / "run",
        loss={"clip": 1, "image_cosine": 1},
        teacher=teacher,
        store=poured(teacher, tmp_path),
        student={"dim": None, "space": "teacher", "text": {"kind": "teacher"}},
        dev=tiny.dataset(8),
    )
    run_job(made)
    encoder = resolve(str(made.out), device="cpu")
    assert encoder.space == teacher.space
    texts = ["a red picture", "something else"]
    np.testing.assert_array_equal(encoder.encode_texts(texts), teacher.encode_texts(texts))


def test_an_image_only_student_reads_its_teachers_captions_from_the_store(tmp_path: Path) -> None:
    """Contrastive among stored captions: nothing of the teacher is run."""
    teacher = tiny.teacher()
    made = job(
        tmp_path / "run",
        loss={"clip": 1},
        teacher=teacher,
        store=poured(teacher, tmp_path),
        student={"dim": None, "space": "teacher", "text": None},
    )
    run_job(made)
    assert len(losses(made.out)) == 3


def test_a_student_may_start_from_some_of_its_teachers_text_layers(tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert", layers=3)
    text = {"kind": "hf", "path": str(bert), "context_length": 16}
    teacher = TorchEncoder(tiny.student(seed=5, dim=24, text=text), name="teacher", device="cpu")
    made = job(
        tmp_path / "run",
        loss={"clip": 1, "text_cosine": 1},
        teacher=teacher,
        store=poured(teacher, tmp_path),
        student={"dim": 24, "text": {"kind": "teacher", "layers": [0, 2], "train": "all"}},
    )
    student = build_student(made)
    layers = student.text_tower().trunk.encoder.encoder.layer  # type: ignore[union-attr]
    origin = teacher.model.text_tower().trunk.encoder.encoder.layer  # type: ignore[union-attr]
    assert len(layers) == 2  # type: ignore[arg-type]
    for mine, theirs in zip(layers, (origin[0], origin[2]), strict=True):  # type: ignore[arg-type,index]
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert all(p.requires_grad for p in student.text_tower().parameters())
    run_job(made)
    assert resolve(str(made.out), device="cpu").encode_texts(["red"]).shape == (1, 24)
    # The teacher itself has not learned.
    assert len(teacher.model.text_tower().trunk.encoder.encoder.layer) == 3  # type: ignore[union-attr,arg-type]


def test_a_teacher_in_the_loop_gives_the_losses_of_a_store_without_views(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    loss = {"image_cosine": 1, "in_batch_kl": 1, "text_cosine": 1}
    still = {"rest": {"views": {"count": 0}}, "teacher": teacher, "loss": loss}
    run_job(job(tmp_path / "store", store=poured(teacher, tmp_path, views=0), **still))
    run_job(job(tmp_path / "online", online=True, **still))
    assert losses(tmp_path / "online") == pytest.approx(losses(tmp_path / "store"), rel=2e-3)


def test_frozen_trunks_train_their_heads_from_the_cache_and_stay_as_they_were(tmp_path: Path) -> None:
    spec = tiny.spec().model_dump(mode="json")
    student = {"image": {**spec["image"], "train": "head"}, "text": {**spec["text"], "train": "none"}}
    made = job(tmp_path / "run", loss={"clip": 1}, student=student, rest={"trunk_views": 2})
    before = build_student(made).state_dict()
    run_job(made)
    after = load_model(made.out).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"image.head.weight", "image.head.bias", "logit_scale"}
    assert len(list((tmp_path / "cache" / "trunks").iterdir())) == 2


def test_a_frozen_trunk_over_stored_views_is_cached_view_by_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stored vector meets its own region: the losses are those of a run without the cache."""
    teacher = tiny.teacher()
    spec = tiny.spec().model_dump(mode="json")
    given = {
        "loss": {"image_cosine": 1},
        "teacher": teacher,
        "store": poured(teacher, tmp_path),
        "student": {"image": {**spec["image"], "train": "head"}},
        "rest": {"views": {"count": 0}},
    }
    run_job(job(tmp_path / "cached", **given))
    assert len(list((tmp_path / "cache" / "trunks").iterdir())) == 1
    monkeypatch.setattr("clipette.train.feeding.trunk_is_frozen", lambda tower: False)
    run_job(job(tmp_path / "live", **given))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=1e-4)


def test_a_run_starts_from_another_runs_weights(tmp_path: Path) -> None:
    run_job(job(tmp_path / "first", loss={"clip": 1}))
    made = job(tmp_path / "second", loss={"clip": 1}, rest={"init": "first", "seed": 8}, base=tmp_path)
    start = build_student(made).state_dict()
    first = load_model(tmp_path / "first").model.state_dict()
    assert all(torch.equal(start[name], first[name]) for name in first)
    other = job(tmp_path / "third", loss={"clip": 1}, rest={"init": "first"}, base=tmp_path, student={"dim": 8})
    with pytest.raises(ModelError, match="is of another architecture than the student"):
        build_student(other)


def test_a_student_inherits_its_larger_teachers_leading_channels(tmp_path: Path) -> None:
    """Half as wide, and equal to the teacher's first half at the start; nothing to inherit from vectors alone."""
    vit = {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32, "train": "all", "head": {"kind": "linear"}}
    large = {**vit, "args": {"embed_dim": 32, "depth": 4, "num_heads": 4}}
    small = {**vit, "args": {"embed_dim": 16, "depth": 2, "num_heads": 2}}
    teacher = tiny.teacher(image=large)
    given = {"loss": {"image_cosine": 1}, "teacher": teacher, "rest": {"inherit": {"towers": ["image"]}}}
    start = build_student(job(tmp_path / "run", student={"image": small}, **given)).state_dict()
    whole = teacher.model.state_dict()
    torch.testing.assert_close(
        start["image.trunk.patch_embed.proj.weight"], whole["image.trunk.patch_embed.proj.weight"][:16]
    )
    # Two of four layers: the first and the last.
    torch.testing.assert_close(
        start["image.trunk.blocks.1.norm1.weight"], whole["image.trunk.blocks.3.norm1.weight"][:16]
    )
    with pytest.raises(ConfigError, match="inherit: there are no weights to take"):
        build_student(
            job(tmp_path / "none", student={"image": small}, **{**given, "teacher": stored_teacher(tmp_path)})
        )


def test_neighbours_and_rare_classes_change_the_batches_and_repeat(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    given = {"loss": {"image_cosine": 1}, "teacher": teacher, "store": poured(teacher, tmp_path)}
    plain = {"loss": {"clip": 1}}
    runs: dict[str, dict[str, Any]] = {
        "plain": given,
        "neighbours": {**given, "rest": {"sampling": {"neighbours": 4}}},
        "again": {**given, "rest": {"sampling": {"neighbours": 4}}},
        "unbalanced": plain,
        "balanced": {**plain, "rest": {"sampling": {"balance": 1}}},
    }
    for name, options in runs.items():
        run_job(job(tmp_path / name, **options))
    found = {name: losses(tmp_path / name) for name in runs}
    assert found["neighbours"] == found["again"]
    assert found["neighbours"] != found["plain"]
    assert found["balanced"] != found["unbalanced"]
    with pytest.raises(ConfigError, match=r"sampling\.neighbours reads the teacher's stored image vectors"):
        run_job(job(tmp_path / "none", **plain, rest={"sampling": {"neighbours": 4}}))


def test_two_teachers_of_different_width_teach_at_once(tmp_path: Path) -> None:
    """The second has projectors of its own; with weight on it alone the run is one taught by it alone."""
    first, second = tiny.teacher(dim=24), tiny.teacher(dim=10)
    stores = {"first": poured(first, tmp_path / "a"), "second": poured(second, tmp_path / "b")}
    also = {"second": Companion(second, stores["second"])}
    base = {"teacher": first, "store": stores["first"]}
    both = job(tmp_path / "both", loss={"image_cosine": 1, "image_cosine@second": 1}, **base, also=also)
    run_job(both)
    assert set(read_metrics(both.out / "metrics.jsonl", "train")[0]["raw"]) == {"image_cosine", "image_cosine@second"}

    ensemble = {"in_batch_ensemble": {"weight": 1, "confidence": 0.5}, "class_text_ensemble": 1}
    run_job(job(tmp_path / "joint", loss=ensemble, **base, also=also))
    twice = {"again": Companion(first, stores["first"])}
    run_job(job(tmp_path / "same", loss={"in_batch_ensemble": 1}, **base, also=twice))
    run_job(job(tmp_path / "alone", loss={"in_batch_ensemble": 1}, **base))
    assert losses(tmp_path / "same") == pytest.approx(losses(tmp_path / "alone")), "one teacher twice is that teacher"

    with pytest.raises(ConfigError, match="no further teacher is called 'third'"):
        run_job(job(tmp_path / "x", loss={"image_cosine@third": 1}, **base, also=also))
    with pytest.raises(ConfigError, match="make 'second' the first teacher"):
        run_job(job(tmp_path / "z", loss={"clip": 1, "image_cosine@second": 1}, **base, also=also))
    other = {"second": Companion(second, poured(second, tmp_path / "c", seed=99))}
    with pytest.raises(StoreError, match="the teacher 'second' poured other views"):
        run_job(job(tmp_path / "y", loss={"image_cosine": 1, "image_cosine@second": 1}, **base, also=other))


def test_a_frozen_scale_stays(tmp_path: Path) -> None:
    made = job(tmp_path / "run", loss={"siglip": 1}, student={"logits": "siglip"}, rest={"freeze_scale": True})
    run_job(made)
    model = load_model(made.out).model
    assert float(model.scale.detach()) == pytest.approx(10.0)
    assert float(model.bias.detach()) == -10.0


def test_what_could_not_be_read_is_in_the_summary(tmp_path: Path) -> None:
    from clipette.types import Failure

    listed = replace(tiny.dataset(bad=[4]), failures=(Failure("twice", "a.csv row 3", "the key is already used"),))
    run_job(job(tmp_path / "run", loss={"clip": 1}, data=listed, train={"steps": 4}))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [failure["key"] for failure in summary["failures"]] == ["twice", "s004"]
    # A finished run, run again, knows them still.
    run_job(job(tmp_path / "run", loss={"clip": 1}, data=listed, train={"steps": 4}))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_another_recipe_data_or_teacher_does_not_continue_a_run(tmp_path: Path) -> None:
    run_job(job(tmp_path / "run", loss={"clip": 1}))
    others: list[dict[str, Any]] = [
        {"loss": {"siglip": 1}},
        {"loss": {"clip": 1}, "data": tiny.dataset(28)},
        {"loss": {"clip": 1}, "rest": {"seed": 1}},
        {"loss": {"clip": 1}, "teacher": tiny.teacher()},
    ]
    for other in others:
        with pytest.raises(ConfigError, match="holds a run of another recipe, teacher or data"):
            run_job(job(tmp_path / "run", **other))
    # Words about it and dev data change no weights.
    run_job(job(tmp_path / "run", loss={"clip": 1}, rest={"about": "another line"}, dev=tiny.dataset(8)))


# ---------------------------------------------------------------- refusals


def refuse(made: Job, kind: type[ClipetteError], message: str) -> None:
    with pytest.raises(kind, match=message):
        run_job(made)
    assert not (made.out / "metrics.jsonl").exists()


TEACHERS = {"dim": None, "space": "teacher", "text": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": {"image_cosine": 1}}, "loss terms image_cosine need a teacher"),
        ({"loss": {"clip": 1}, "student": TEACHERS}, "there is no teacher: name one, or use space: own"),
        ({"loss": {"clip": 1}, "student": {"text": None}}, "has no text tower: give it one"),
        ({"loss": {"clip": 1}, "student": {"text": {"kind": "teacher"}}}, "needs a teacher with a text tower"),
        ({"loss": {"class_text_ce": 1}, "student": {"text": None}}, "only in its teacher's space"),
        ({"loss": {"clip": 1}, "train": {"batch_size": 99}}, "batch_size 99 exceeds the 32 training samples"),
        ({"loss": {"clip": 1}, "train": {"keep": "best"}}, "keep: best needs dev data"),
        (
            {"loss": {"class_text_ce": 1}, "rest": {"classes": {"names": ["a"]}}},
            "class_text_ce reads the data's",
        ),
        ({"loss": {"class_text_ce": 1}, "rest": {"classes": {"file": "no.txt"}}}, "classes.file not found"),
        ({"loss": {"class_text_ce": 1}, "rest": {"classes": {"source": "teacher"}}}, "needs a teacher of stored"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refuse(job(tmp_path / "run", **options), ConfigError, message)


def test_widths_that_differ_are_refused(tmp_path: Path) -> None:
    student = {**TEACHERS, "dim": 16}
    message = r"space: teacher means the teacher's width (24|12), but the student says dim: 16; remove dim"
    for teacher in (tiny.teacher(), stored_teacher(tmp_path)):
        refuse(job(tmp_path / "run", loss={"class_text_kl": 1}, teacher=teacher, student=student), ConfigError, message)


def test_a_store_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    store = poured(teacher, tmp_path)
    other = tiny.teacher(dim=12)
    refuse(
        job(tmp_path / "run", loss={"image_cosine": 1}, teacher=other, store=store),
        StoreError,
        "is 24 wide but the teacher teacher 12: it is another teacher's",
    )
    more = job(tmp_path / "run", loss={"image_cosine": 1}, teacher=teacher, store=store, data=tiny.dataset(34))
    refuse(more, StoreError, r"'s032' is not stored \(and 1 more of 34\)")
    pour(teacher, tiny.dataset(), tmp_path / "silent", PourPlan(captions=False), progress=False)
    silent = open_store(tmp_path / "silent")
    refuse(
        job(tmp_path / "run", loss={"text_cosine": 1}, teacher=teacher, store=silent),
        StoreError,
        "the losses read captions, but the store has none: pour them",
    )


def test_captions_that_are_missing_are_refused(tmp_path: Path) -> None:
    bare = Dataset("bare", tuple(replace(s, captions=()) for s in tiny.dataset().samples), tiny.CLASSES)
    whole = tiny.spec(text={"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "clip"})
    student = {"text": whole.model_dump(mode="json")["text"]}
    refuse(job(tmp_path / "run", loss={"clip": 1}, data=bare, student=student), ConfigError, "s000' has no caption")
    refuse(
        job(tmp_path / "run", loss={"clip": 1}, data=bare), ConfigError, "learns its words from the training captions"
    )


def test_a_teacher_without_texts_cannot_be_asked_for_them(tmp_path: Path) -> None:
    teacher = stored_teacher(tmp_path, texts=False)
    refuse(
        job(tmp_path / "run", loss={"class_text_kl": 1}, teacher=teacher, student=TEACHERS),
        UnsupportedError,
        "holds no texts",
    )
    refuse(
        job(tmp_path / "run", loss={"image_cosine": 1}, teacher=teacher, student=TEACHERS, dev=tiny.dataset(8)),
        UnsupportedError,
        "no text tower and its teacher teacher no texts either",
    )
    # Without either it learns from images alone.
    run_job(job(tmp_path / "run", loss={"image_cosine": 1}, teacher=teacher, student=TEACHERS))


def test_a_stored_teacher_cannot_be_run_online(tmp_path: Path) -> None:
    teacher = stored_teacher(tmp_path)
    made = job(tmp_path / "run", loss={"image_cosine": 1}, teacher=teacher, online=True)
    refuse(made, ConfigError, "--teacher-online needs a teacher that can run")


def test_an_image_student_of_its_own_space_cannot_be_measured_by_texts(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    made = job(tmp_path / "run", loss={"image_cosine": 1}, teacher=teacher, student={"text": None}, dev=tiny.dataset(8))
    refuse(replace(made, store=poured(teacher, tmp_path)), ConfigError, "has no text side to measure it by")


def test_a_size_that_a_tower_cannot_read_is_refused(tmp_path: Path) -> None:
    student = {"image": {"kind": "timm", "name": "test_vit", "size": 32}}
    made = job(tmp_path / "run", loss={"clip": 1}, student=student, train={"sizes": {"0": 24}})
    refuse(made, ConfigError, "train.sizes: the student cannot read 24 px images")


def test_dev_data_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    bare = Dataset("bare", tuple(replace(s, captions=(), label=None) for s in tiny.dataset(8).samples))
    refuse(job(tmp_path / "run", loss={"clip": 1}, dev=bare), ConfigError, "neither captions nor class labels")


def test_a_class_named_twice_is_refused_before_training(tmp_path: Path) -> None:
    made = job(
        tmp_path / "run",
        loss={"class_text_kl": 1},
        teacher=tiny.teacher(),
        student=TEACHERS,
        rest={"classes": {"names": ["red", "red"]}},
    )
    refuse(made, ConfigError, "class 'red' is named twice")
