from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipette.data.dataset import Dataset
from clipette.data.images import DecodeSettings, decode_image
from clipette.data.sources import load_data
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import DataError, StoreError, UnsupportedError
from clipette.models.inference import TorchEncoder
from clipette.store import compact, open_store, store_path
from clipette.tasks.pour import PourPlan, identity_of, pour, poured_by
from clipette.types import Sample

from .tiny import tiny_teacher, write_picture, write_pictures

PLAN = PourPlan(
    views=2,
    policy=ViewPolicy(scale=(0.3, 0.8), brightness=0.2),
    batch_size=4,
    shard_size=5,
    templates=("a {}", "the {}"),
    max_failures=0.2,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", 12)


def data_of(folder: Path) -> Dataset:
    listed = load_data(f"folder:{folder}")
    samples = tuple(
        Sample(each.key, each.image, captions=(f"picture {each.key}", "a shared caption")) for each in listed.samples
    )
    return Dataset(str(folder), samples, class_names=("cat", "big_dog"))


class Counted:
    """How many pictures and texts the model has seen."""

    def __init__(self, teacher: TorchEncoder) -> None:
        self.images = self.texts = 0
        teacher.model.image_tower().register_forward_hook(self._image)
        teacher.model.text_tower().register_forward_hook(self._text)

    def _image(self, module: object, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        self.images += len(out)

    def _text(self, module: object, given: object, out: torch.Tensor) -> None:
        self.texts += len(out)


def files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_every_row_is_what_the_teacher_says_of_that_very_picture_view_or_text(folder: Path, tmp_path: Path) -> None:
    teacher, data = tiny_teacher(), data_of(folder)
    report = pour(teacher, data, tmp_path / "s", PLAN, seed=3, texts=["one more"])
    assert (report.images, report.texts, report.failures) == (12, 4 + 1 + 12 + 1, ())
    store = open_store(tmp_path / "s")
    preprocess = teacher.model.image_tower().preprocess
    assert store.info["logit_scale"] == pytest.approx(50.0)
    assert store.info["class_names"] == ["cat", "big_dog"]
    for sample in data.samples:
        assert sample.image is not None
        image = decode_image(sample.image.read(), location="x")
        whole = teacher.encode_pixels(preprocess(image)[None])
        np.testing.assert_allclose(store.images.vectors(store.images.rows([sample.key])), whole, atol=1e-3)
        for k, (row, view) in enumerate(store.views_of(sample.key)):
            assert view == draw_view(PLAN.policy, image.size, 3, sample.key, k)
            seen = teacher.encode_pixels(preprocess.view(image, view)[None])
            np.testing.assert_allclose(store.views.vectors([row]), seen, atol=1e-3)
    texts = ["a cat", "the big dog", "one more", "a shared caption", f"picture {data.samples[0].key}"]
    np.testing.assert_allclose(store.texts.vectors(store.texts.rows(texts)), teacher.encode_texts(texts), atol=1e-3)


def test_pouring_twice_runs_no_model_and_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    before = files(tmp_path / "s")
    teacher = tiny_teacher()
    counted = Counted(teacher)
    report = pour(teacher, data_of(folder), tmp_path / "s", PLAN)
    assert not report.changed
    assert (counted.images, counted.texts) == (0, 0)
    assert files(tmp_path / "s") == before


def test_only_what_changed_or_is_new_is_poured(folder: Path, tmp_path: Path) -> None:
    pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    write_picture(folder / "p003.png", 999)
    write_picture(folder / "p900.png", 900)
    teacher = tiny_teacher()
    counted = Counted(teacher)
    report = pour(teacher, data_of(folder), tmp_path / "s", PLAN)
    assert (report.images, report.texts) == (2, 1)
    assert (counted.images, counted.texts) == (2 * 3, 1)
    data = data_of(folder)
    store = open_store(tmp_path / "s")
    keys = [sample.key for sample in data.samples]
    expected = teacher.encode_samples(data.samples).vectors
    np.testing.assert_allclose(store.images.vectors(store.images.rows(keys)), expected, atol=1e-3)
    assert len(store.images) == 13
    assert compact(tmp_path / "s", shard_size=5) == 1 + 2
    store = open_store(tmp_path / "s")
    np.testing.assert_allclose(store.images.vectors(store.images.rows(keys)), expected, atol=1e-3)
    assert not pour(tiny_teacher(), data, tmp_path / "s", PLAN).changed


def test_views_and_texts_may_be_added_later_without_pouring_images_again(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder)
    pour(tiny_teacher(), data, tmp_path / "s", PourPlan(captions=False))
    teacher = tiny_teacher()
    counted = Counted(teacher)
    pour(teacher, data, tmp_path / "s", PLAN)
    assert counted.images == 12 * 2
    store = open_store(tmp_path / "s")
    assert store.view_count == 2
    assert len(store.images) == 12


def test_another_teacher_preprocessing_or_policy_is_another_store(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder)
    pour(tiny_teacher(), data, tmp_path / "s", PLAN)
    with pytest.raises(StoreError, match=r"poured by something else .*weights"):
        pour(tiny_teacher(seed=1), data, tmp_path / "s", PLAN)
    with pytest.raises(StoreError, match=r"views\.seed: stored 0, asked 5"):
        pour(tiny_teacher(), data, tmp_path / "s", PLAN, seed=5)
    scaled = PLAN.model_copy(update={"decode": DecodeSettings(scaled=True)})
    with pytest.raises(StoreError, match=r"images\.decode\.scaled"):
        pour(tiny_teacher(), data, tmp_path / "s", scaled)
    report = pour(tiny_teacher(seed=1), data, tmp_path / "cache", PLAN, cache=True)
    assert report.path == store_path(tmp_path / "cache", identity_of(tiny_teacher(seed=1), PLAN))
    assert not pour(tiny_teacher(seed=1), data, tmp_path / "cache", PLAN, cache=True).changed


def test_bad_images_are_recorded_not_fatal_and_tried_again_when_they_change(folder: Path, tmp_path: Path) -> None:
    (folder / "p004.png").write_bytes(b"")
    (folder / "p007.png").write_bytes(b"this is no picture")
    report = pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    assert report.images == 10
    assert [failure.key for failure in report.failures] == ["p004", "p007"]
    assert "0 bytes" in report.failures[0].reason
    assert len((tmp_path / "s" / "failures.jsonl").read_text().splitlines()) == 2
    assert not pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN).changed
    write_picture(folder / "p004.png", 4)
    report = pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    assert report.images == 1
    assert [failure.key for failure in report.failures] == ["p007"]


def test_an_image_that_goes_bad_hides_its_stale_vector(folder: Path, tmp_path: Path) -> None:
    pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    (folder / "p002.png").write_bytes(b"rotten")
    pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    store = open_store(tmp_path / "s")
    assert "p002" not in store.images.keys
    assert "p002" not in store.views.keys


def test_too_many_failures_stop_the_pour_and_keep_what_is_poured(folder: Path, tmp_path: Path) -> None:
    originals = tmp_path / "originals"
    shutil.copytree(folder, originals)
    for number in (1, 6, 8):
        (folder / f"p{number:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 of 12 samples to pour failed"):
        pour(tiny_teacher(), data_of(folder), tmp_path / "s", PLAN)
    with pytest.raises(StoreError, match="has not finished"):
        open_store(tmp_path / "s")
    teacher = tiny_teacher()
    counted = Counted(teacher)
    with pytest.raises(DataError, match="3 of 12 samples to pour failed"):
        pour(teacher, data_of(folder), tmp_path / "s", PLAN)
    assert counted.images == 0
    for number in (1, 6, 8):
        shutil.copy(originals / f"p{number:03d}.png", folder)
    pour(teacher, data_of(folder), tmp_path / "s", PLAN)
    assert counted.images == 3 * 3 + 3 * 2
    assert len(open_store(tmp_path / "s").images) == 12


def test_a_vector_that_is_not_finite_is_a_failure_of_that_sample(folder: Path, tmp_path: Path) -> None:
    teacher = tiny_teacher()
    inner = teacher.encode_pixels

    def broken(pixels: np.ndarray) -> np.ndarray:
        out = inner(pixels)
        if not broken.done:
            out[0] = np.nan
            broken.done = True
        return out

    broken.done = False
    teacher.encode_pixels = broken
    report = pour(teacher, data_of(folder), tmp_path / "s", PLAN)
    assert [failure.key for failure in report.failures] == ["p000"]
    assert "not finite" in report.failures[0].reason


def test_rows_that_never_became_samples_are_named_in_the_store(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    lines = [f'{{"image": "{folder}/{name}", "caption": "x"}}' for name in sorted(p.name for p in folder.iterdir())]
    table.write_text("\n".join([*lines, "{broken", '{"image": ""}']) + "\n")
    report = pour(tiny_teacher(), load_data(f"jsonl:{table}"), tmp_path / "s", PourPlan(batch_size=4))
    assert report.failures == ()
    info = open_store(tmp_path / "s").info
    assert info["left_out_count"] == 2
    assert [each["location"] for each in info["left_out"]] == [f"{table} row {len(lines) + n}" for n in (1, 2)]
    assert "not a JSON object" in info["left_out"][0]["reason"]


def test_one_key_for_two_images_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", 2)
    with pytest.raises(DataError, match="'p000' is both"):
        pour(tiny_teacher(), [data_of(folder), data_of(other)], tmp_path / "s", PLAN)


def test_towers_that_are_missing_are_named(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder)
    with pytest.raises(UnsupportedError, match="no text tower"):
        pour(tiny_teacher(text=False), data, tmp_path / "s", PLAN)
    with pytest.raises(UnsupportedError, match="no image tower"):
        pour(tiny_teacher(image=False), data, tmp_path / "s", PLAN)
    report = pour(tiny_teacher(image=False), data, tmp_path / "s", PourPlan(images=False))
    assert (report.images, report.texts) == (0, 13)


def test_texts_alone_need_no_images(tmp_path: Path) -> None:
    data = Dataset("text:x", (Sample("t0", captions=("a line",)), Sample("t1", captions=("another line",))))
    report = pour(tiny_teacher(), data, tmp_path / "s")
    assert (report.images, report.texts) == (0, 2)


def test_precision_is_part_of_the_identity_and_put_back(folder: Path, tmp_path: Path) -> None:
    teacher = tiny_teacher()
    half = PLAN.model_copy(update={"precision": "bf16"})
    pour(teacher, data_of(folder), tmp_path / "half", half)
    assert teacher.precision == "fp32"
    with pytest.raises(StoreError, match=r"images\.precision: stored 'bf16', asked 'fp32'"):
        pour(teacher, data_of(folder), tmp_path / "half", PLAN)


def test_a_store_knows_its_teacher_by_weights_not_by_space() -> None:
    teacher, other = tiny_teacher(seed=1), tiny_teacher(seed=2)
    student = TorchEncoder(other.model, name="student", space=teacher.space, device="cpu")
    identity = identity_of(teacher, PLAN)
    assert poured_by(teacher, identity)
    assert not poured_by(other, identity)
    assert not poured_by(student, identity)
    # What was imported names a space alone.
    assert poured_by(student, {"encoder": identity["encoder"]})
