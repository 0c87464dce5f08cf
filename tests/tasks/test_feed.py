"""Batches: a function of the step alone, shared by ranks, with stored views beside their vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.tiny import Letters, tiny_teacher
from tests.train import tiny

from clipette.data.images import decode_image
from clipette.data.order import epoch_order
from clipette.data.preprocess import Preprocess
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import ConfigError, DataError, StoreError
from clipette.store import Store, open_store
from clipette.tasks.batch import Batch
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan
from clipette.tasks.outputs import EncodedOutputs, StoredOutputs
from clipette.tasks.pour import PourPlan, pour
from clipette.types import Failure, Sample

STUDENT = Preprocess((12, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
POLICY = ViewPolicy(scale=(0.3, 0.8), brightness=0.3, contrast=0.2, saturation=0.1)


def plan(**changes: Any) -> FeedPlan:
    base = FeedPlan(batch_size=8, seed=4, preprocess=STUDENT, policy=POLICY, tokenizer=Letters(), max_failures=0.2)
    return replace(base, **changes)


@contextmanager
def feeding(*args: Any, **options: Any) -> Iterator[Feed]:
    feed = Feed(*args, **options)
    try:
        yield feed
    finally:
        feed.close()


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    groups = {"in": batch.inputs, "target": batch.targets, "token": batch.tokens, "teacher": batch.teacher_tokens}
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def same(left: Batch, right: Batch) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_step_is_the_same_batch_whatever_ran_before() -> None:
    samples = tiny.dataset(30, bad=[3, 17]).samples
    with feeding(samples, plan()) as first, feeding(samples, plan(cache_mb=0, threads=1)) as second:
        forward = [first.batch(step) for step in range(7)]
        backward = {step: second.batch(step) for step in (6, 2, 5, 0, 6, 1)}
        for step, batch in backward.items():
            assert same(batch, forward[step]), step
        assert all(same(x, y) for x, y in zip(second.run(2, 5), forward[2:5], strict=True))
    assert not same(forward[0], forward[3])


def test_an_epoch_reads_every_sample_once_and_epochs_differ() -> None:
    with feeding(tiny.dataset(32).samples, plan()) as feed:
        assert feed.steps_per_epoch == 4
        epochs = [torch.cat([feed.batch(4 * e + s).targets["ids"] for s in range(4)]).tolist() for e in range(2)]
    assert epochs == [epoch_order(32, 4, e).tolist() for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert epochs[0] != epochs[1]


def test_the_shares_of_the_ranks_are_the_whole_batch() -> None:
    samples = tiny.dataset(32).samples
    with feeding(samples, plan()) as whole:
        for step in (0, 5):
            parts = []
            for rank in range(4):
                with feeding(samples, plan(), rank=rank, world=4) as feed:
                    parts.append(tensors(feed.batch(step)))
            joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            expected = tensors(whole.batch(step))
            assert joined.keys() == expected.keys()
            assert all(torch.equal(joined[name], expected[name]) for name in joined)


def test_pixels_labels_and_captions_belong_to_the_sample() -> None:
    data = tiny.dataset(16)
    with feeding(data.samples, plan(batch_size=16)) as feed:
        batch = feed.batch(2)
    assert batch.inputs["pixels"].is_contiguous(memory_format=torch.channels_last)
    for row, position in enumerate(batch.targets["ids"].tolist()):
        sample = data.samples[position]
        assert sample.image is not None
        image = decode_image(sample.image.read(), location="x")
        expected = STUDENT.view(image, draw_view(POLICY, image.size, 4, sample.key, 2))
        np.testing.assert_allclose(batch.inputs["pixels"][row].numpy(), expected, atol=1e-5)
        assert batch.targets["labels"][row] == sample.label
        known = [Letters()([caption])["input_ids"][0].tolist() for caption in sample.captions]
        assert batch.tokens["input_ids"][row].tolist() in known


def test_several_captions_of_an_image_are_neighbours_and_differ() -> None:
    samples = tiny.dataset(8).samples
    index = CaptionIndex(samples)
    with feeding(samples, plan(captions_per_image=2)) as feed:
        batch = feed.batch(0)
    assert batch.tokens["input_ids"].shape[0] == 16
    assert batch.targets["text_ids"].tolist() == [i for i in batch.targets["ids"].tolist() for _ in range(2)]
    positions = batch.targets["ids"].numpy()
    rows = index.pick(positions, [samples[p].key for p in positions], 4, 0, each=2).reshape(-1, 2)
    for position, pair in zip(positions, rows, strict=True):
        assert {index.texts[r] for r in pair} == set(samples[position].captions)


def test_every_caption_is_drawn_in_time() -> None:
    samples = tiny.dataset(4).samples
    index, seen = CaptionIndex(samples), set()
    for epoch in range(12):
        seen |= set(index.pick(np.arange(4), [s.key for s in samples], 0, epoch).tolist())
    assert seen == set(range(8))


def test_a_bad_image_is_replaced_by_the_next_and_recorded_once() -> None:
    samples = tiny.dataset(32, bad=[5, 6]).samples
    with feeding(samples, plan()) as feed:
        ids = torch.cat([feed.batch(step).targets["ids"] for step in range(8)]).tolist()
        assert [failure.key for failure in feed.failures] == ["s005", "s006"]
        assert all(failure.reason for failure in feed.failures)
        order = [int(p) for step in range(8) for p in feed.positions(step)[0]]
    assert [7 if p in (5, 6) else p for p in order] == ids


def test_a_replacement_brings_its_own_caption_label_and_stored_vector(tmp_path: Path) -> None:
    data = tiny.dataset(16, bad=[5])
    good = data.subset(sample.key for sample in data.samples if sample.key != "s005")
    teacher = tiny_teacher()
    pour(teacher, good, tmp_path / "s", PourPlan(views=2), progress=False)
    # The store knows all; the picture has been damaged since.
    whole = tiny.dataset(16)
    pour(teacher, whole, tmp_path / "whole", PourPlan(views=2), progress=False)
    store = open_store(tmp_path / "whole")
    outputs = StoredOutputs(store, data.samples, [], seed=4)
    with feeding(data.samples, plan(batch_size=16, teacher_images=True), outputs) as feed:
        batch = feed.batch(0)
        asked = feed.positions(0)[0].tolist()
    row = asked.index(5)
    assert batch.targets["ids"][row] == 6
    assert batch.targets["labels"][row] == data.samples[6].label
    vectors = store.table("views").vectors(store.table("views").view_rows(["s006"])[0])
    assert any(np.array_equal(batch.targets["teacher_image"][row].numpy(), vector) for vector in vectors)


def test_an_image_that_has_changed_since_it_was_poured_is_none(tmp_path: Path) -> None:
    whole = tiny.dataset(16)
    pour(tiny_teacher(), whole, tmp_path / "s", PourPlan(views=2), progress=False)
    store = open_store(tmp_path / "s")
    other = replace(whole.samples[5], image=tiny.Memory(tiny.picture(0, 99), "s005.png"))
    samples = [*whole.samples[:5], other, *whole.samples[6:]]
    with feeding(samples, plan(teacher_images=True), StoredOutputs(store, samples, [], seed=4)) as feed:
        [feed.batch(step) for step in range(2)]
        assert [failure.key for failure in feed.failures] == ["s005"]
        assert "changed since it was poured" in feed.failures[0].reason
    # A teacher's word that is not read cannot be wrong.
    with feeding(samples, plan()) as feed:
        [feed.batch(step) for step in range(2)]
        assert feed.failures == ()


def test_more_bad_images_than_the_stated_share_are_an_error() -> None:
    samples = tiny.dataset(16, bad=[0, 1, 2, 3]).samples
    with (
        feeding(samples, plan(batch_size=16)) as feed,
        pytest.raises(DataError, match="4 of 16 training images failed"),
    ):
        feed.batch(0)
    everything = tiny.dataset(8, bad=range(8)).samples
    with feeding(everything, plan(max_failures=1.0)) as feed, pytest.raises(ConfigError, match="none of the 8"):
        feed.batch(0)


def test_recalled_failures_change_no_batch() -> None:
    samples = tiny.dataset(16, bad=[5]).samples
    with feeding(samples, plan(batch_size=16)) as fresh, feeding(samples, plan(batch_size=16)) as recalled:
        recalled.recall([Failure("s005", "s005.png", "known"), Failure("gone", "gone.png", "of other data")])
        assert same(fresh.batch(0), recalled.batch(0))
        assert [f.reason for f in recalled.failures] == ["known"]


@pytest.fixture(scope="module")
def poured(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "s"
    pour(tiny_teacher(), tiny.dataset(16), path, PourPlan(views=3, policy=POLICY), seed=2, progress=False)
    return open_store(path)


def test_a_stored_view_and_its_vector_belong_together(poured: Store) -> None:
    """Recomputed: the teacher encodes the very region that the student's pixels show."""
    data, teacher = tiny.dataset(16), tiny_teacher()
    outputs = StoredOutputs(poured, data.samples, [], seed=9)
    positions = np.arange(16, dtype=np.int64)
    drawn = {}
    for epoch in range(4):
        draw = outputs.draw(positions, epoch)
        drawn[epoch] = draw.views
        for position, view, vector in zip(positions, draw.views, draw.vectors, strict=True):
            image = data.samples[position].image
            assert image is not None
            pixels = teacher.model.image_tower().preprocess.view(decode_image(image.read(), location="x"), view)
            np.testing.assert_allclose(teacher.encode_pixels(pixels[None])[0], vector, atol=2e-3)
    assert len({view for views in drawn.values() for view in views}) > 16
    with feeding(data.samples, plan(batch_size=16, teacher_images=True, seed=9), outputs) as feed:
        batch = feed.batch(1)
    assert feed.steps_per_epoch == 1
    ids = batch.targets["ids"].numpy()
    again = outputs.draw(ids, 1)
    assert np.array_equal(batch.targets["teacher_image"].numpy(), again.vectors)
    for row, position in enumerate(ids):
        image = data.samples[position].image
        assert image is not None
        expected = STUDENT.view(decode_image(image.read(), location="x"), again.views[row])
        np.testing.assert_allclose(batch.inputs["pixels"][row].numpy(), expected, atol=1e-5)


def test_a_cached_trunk_follows_the_stored_views(poured: Store) -> None:
    """Row [i, v] of the cache stands beside the vector of view v of sample i."""
    data = tiny.dataset(16)
    outputs = StoredOutputs(poured, data.samples, [], seed=9)
    count = len(outputs.views_of(0))
    trunk = torch.arange(16 * count).reshape(16, count, 1).float()
    with feeding(data.samples, plan(batch_size=16, teacher_images=True, seed=9, image_trunk=trunk), outputs) as feed:
        batches = [feed.batch(step) for step in range(3)]
    for epoch, batch in enumerate(batches):
        ids = batch.targets["ids"].numpy()
        for row, position in enumerate(ids):
            view = int(batch.inputs["image_trunk"][row, 0]) - count * int(position)
            assert outputs.views_of(position)[view] == outputs.draw(ids, epoch).views[row]
    assert not torch.equal(batches[0].inputs["image_trunk"], batches[1].inputs["image_trunk"])


def test_stored_captions_are_the_drawn_captions(poured: Store) -> None:
    data = tiny.dataset(16)
    index = CaptionIndex(data.samples)
    outputs = StoredOutputs(poured, data.samples, index.texts, seed=0)
    assert outputs.has_texts
    with feeding(data.samples, plan(teacher_texts=True), outputs) as feed:
        batch = feed.batch(0)
        positions = feed.positions(0)[0]
    rows = index.pick(positions, [data.samples[p].key for p in positions], 4, 0)
    expected = tiny_teacher().encode_texts([index.texts[r] for r in rows])
    np.testing.assert_allclose(batch.targets["teacher_text"].numpy(), expected, atol=2e-3)


def test_a_store_of_other_data_is_refused_naming_what_is_missing(poured: Store) -> None:
    samples = tiny.dataset(17).samples
    with pytest.raises(StoreError, match=r"'s016' is not stored.*pour the data"):
        StoredOutputs(poured, samples, [], seed=0)
    with pytest.raises(StoreError, match="'a new caption' is not stored"):
        StoredOutputs(poured, samples[:16], ["a new caption"], seed=0)


def test_a_teacher_in_memory_needs_every_image() -> None:
    samples = tiny.dataset(8, bad=[2]).samples
    with pytest.raises(StoreError, match="no vector for 1 of 8 training images, first 's002'"):
        EncodedOutputs(tiny_teacher(), samples, [])
    outputs = EncodedOutputs(tiny_teacher(), samples[3:], ["a", "b"])
    assert outputs.draw(np.array([1]), 0).vectors.shape == (1, 8)
    np.testing.assert_allclose(outputs.texts(np.array([1])), tiny_teacher().encode_texts(["b"]), atol=1e-6)


def test_what_cannot_be_fed_is_refused_in_words() -> None:
    samples = tiny.dataset(8).samples
    for count, world, message in (
        (8, 1, "batch_size 9 exceeds the 8 training samples: use --set train.batch_size=8, or more images"),
        (8, 3, "the 8 training samples: use --set train.batch_size=6, or more images"),
        (1, 1, "the 1 training sample: use --set train.batch_size=1, or more images"),
        (1, 2, "the 1 training sample: use more images"),
    ):
        with pytest.raises(ConfigError, match=message):
            Feed(samples[:count], plan(batch_size=9), world=world)
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared equally by 3 processes"):
        Feed(samples, plan(), world=3)
    bare = [*samples[:7], Sample("bare", samples[7].image)]
    with pytest.raises(ConfigError, match="sample 'bare' has no caption"):
        Feed(bare, plan())
    with feeding(bare, plan(texts=False, tokenizer=None)) as feed:
        assert feed.batch(0).targets["labels"].min() == -1


def test_a_micro_batch_keeps_captions_with_their_images() -> None:
    with feeding(tiny.dataset(8).samples, plan(captions_per_image=2)) as feed:
        batch = feed.batch(0)
    part = batch.part(2, 5)
    assert part.size == 3
    assert torch.equal(part.targets["text_ids"], batch.targets["text_ids"][4:10])
    assert torch.equal(part.tokens["input_ids"], batch.tokens["input_ids"][4:10])
    assert torch.equal(part.inputs["pixels"], batch.inputs["pixels"][2:5])


def test_the_students_own_views_leave_the_teachers_word_on_the_whole_image() -> None:
    data = tiny.dataset(32)
    outputs = EncodedOutputs(tiny.teacher(), data.samples, ())
    given = plan(texts=False, teacher_images=True)
    with (
        feeding(data.samples, given, outputs) as whole,
        feeding(data.samples, replace(given, own_views=True), outputs) as own,
    ):
        still, drawn = whole.batch(0), own.batch(0)
        later = own.batch(4)
    torch.testing.assert_close(drawn.targets["teacher_image"], still.targets["teacher_image"])
    row, position = 3, int(drawn.targets["ids"][3])
    sample = data.samples[position]
    assert sample.image is not None
    image = decode_image(sample.image.read(), location=sample.key)
    view = draw_view(POLICY, image.size, 4, sample.key, 0)
    expected = STUDENT.normalize(STUDENT.pixels(image, view)[None])[0]
    np.testing.assert_allclose(drawn.inputs["pixels"][row].numpy(), expected, atol=1e-5)
    assert not torch.equal(drawn.inputs["pixels"], still.inputs["pixels"])
    assert later.targets["ids"].tolist() != drawn.targets["ids"].tolist()
