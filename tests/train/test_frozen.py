"""A frozen trunk's outputs, kept: what is read back is what the tower would say now."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import tiny
from torch import Tensor

from clipette.data.images import DecodeSettings, decode_image
from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import DataError
from clipette.models.core import DualEncoder
from clipette.tasks.feed import CaptionIndex, Feed, FeedPlan
from clipette.tasks.objective import Objective
from clipette.tasks.terms import read_terms
from clipette.train.frozen import image_trunk_features, text_trunk_features, trunk_is_frozen
from clipette.types import Sample, View

CPU = torch.device("cpu")
POLICY = ViewPolicy(scale=(0.3, 0.9))


@pytest.fixture
def student() -> DualEncoder:
    changes: dict[str, Any] = {
        "image": {"kind": "timm", "name": "test_resnet", "size": 32, "train": "head"},
        "text": {**tiny.spec().text.model_dump(), "train": "head"},  # type: ignore[union-attr]
    }
    return tiny.student(**changes).eval()


def images_of(model: DualEncoder, samples: Any, folder: Path, **changes: Any) -> Tensor:
    options: dict[str, Any] = {"policy": POLICY, "views": 3, "seed": 2, **changes}
    return image_trunk_features(
        model.image_tower(), samples, folder=folder, device=CPU, settings=DecodeSettings(), batch_size=5, **options
    )


def test_cached_images_are_what_the_trunk_says_of_each_view(student: DualEncoder, tmp_path: Path) -> None:
    samples = tiny.dataset(6).samples
    cached = images_of(student, samples, tmp_path)
    tower = student.image_tower()
    assert trunk_is_frozen(tower)
    assert cached.shape[:2] == (6, 3)
    for position, sample in enumerate(samples):
        assert sample.image is not None
        image = decode_image(sample.image.read(), location="x")
        views = [tower.preprocess(image)]
        views += [tower.preprocess.view(image, draw_view(POLICY, image.size, 2, sample.key, v)) for v in (1, 2)]
        with torch.no_grad():
            live = tower.trunk(torch.stack([torch.from_numpy(view) for view in views]))
        torch.testing.assert_close(cached[position], live, atol=1e-5, rtol=1e-4)


def test_stored_views_are_cut_as_they_are_stored(student: DualEncoder, tmp_path: Path) -> None:
    samples = tiny.dataset(4).samples
    stored = [[View(box=(0.1 * i, 0.0, 0.5 + 0.1 * i, 0.8), flip=bool(v)) for v in range(2)] for i in range(4)]
    cached = images_of(student, samples, tmp_path, views=2, stored=stored)
    tower = student.image_tower()
    for position, sample in enumerate(samples):
        assert sample.image is not None
        image = decode_image(sample.image.read(), location="x")
        pixels = [torch.from_numpy(tower.preprocess.view(image, view)) for view in stored[position]]
        with torch.no_grad():
            live = tower.trunk(torch.stack(pixels))
        torch.testing.assert_close(cached[position], live, atol=1e-5, rtol=1e-4)
    other = images_of(student, samples, tmp_path, views=2, stored=stored[::-1])
    assert not torch.equal(other, cached), "other views are not the kept ones"


def test_cached_texts_are_what_the_trunk_says_in_the_given_order(student: DualEncoder, tmp_path: Path) -> None:
    texts = ["a red picture", "x", "a far longer caption of many more words", "blue", "x y"]
    tower = student.text_tower()
    cached = text_trunk_features(tower, texts, folder=tmp_path, device=CPU, batch_size=2)
    with torch.no_grad():
        live = tower.trunk({name: torch.from_numpy(value) for name, value in tower.tokenizer(texts).items()})
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="no captions"):
        text_trunk_features(tower, [], folder=tmp_path, device=CPU)


def test_a_step_over_cached_trunks_gives_the_gradients_of_a_live_step(student: DualEncoder, tmp_path: Path) -> None:
    samples = tiny.dataset(8).samples
    captions = CaptionIndex(samples).texts
    task = Objective(student, read_terms({"clip": 1}))
    tower, text = student.image_tower(), student.text_tower()
    live = FeedPlan(batch_size=8, seed=1, preprocess=tower.preprocess, tokenizer=text.tokenizer)
    cached = replace(
        live,
        image_trunk=images_of(student, samples, tmp_path, views=1),
        text_trunk=text_trunk_features(text, captions, folder=tmp_path, device=CPU),
    )
    found = []
    for plan in (live, cached):
        feed = Feed(samples, plan)
        batch = feed.batch(0)
        feed.close()
        task.parts.zero_grad(set_to_none=True)
        task.loss(task.encode(batch), batch.targets).loss.backward()
        found.append({n: p.grad.clone() for n, p in task.parts.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert {name.split(".trunk.")[0] for name in found[0] if ".trunk." in name} == set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_what_is_kept_is_read_back_and_not_computed_again(
    student: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tiny.dataset(4).samples
    first = images_of(student, samples, tmp_path)
    words = text_trunk_features(student.text_tower(), ["a", "b"], folder=tmp_path, device=CPU)

    def refuse(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(student.image_tower().trunk, "forward", refuse)
    monkeypatch.setattr(student.text_tower().trunk, "forward", refuse)
    assert torch.equal(images_of(student, samples, tmp_path), first)
    assert torch.equal(text_trunk_features(student.text_tower(), ["a", "b"], folder=tmp_path, device=CPU), words)


def test_a_damaged_file_is_computed_again(student: DualEncoder, tmp_path: Path) -> None:
    samples = tiny.dataset(4).samples
    first = images_of(student, samples, tmp_path)
    (path,) = tmp_path.glob("image-*")
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(images_of(student, samples, tmp_path), first)


def test_other_images_under_the_same_keys_are_other_features(student: DualEncoder, tmp_path: Path) -> None:
    """Two sources may both call their first image 000000; and an image may change where it is."""
    from clipette.data.refs import FileImage

    def at(path: Path) -> list[Sample]:
        return [Sample("000000", FileImage(str(path)), ("x",))]

    for name, label in (("a", 0), ("b", 2)):
        (tmp_path / name).write_bytes(tiny.picture(label, 1))
    a, b = (images_of(student, at(tmp_path / name), tmp_path) for name in ("a", "b"))
    assert not torch.equal(a, b)
    (tmp_path / "a").write_bytes(tiny.picture(2, 1))
    os.utime(tmp_path / "a", ns=(1, 1))
    assert torch.equal(images_of(student, at(tmp_path / "a"), tmp_path), b)


@pytest.mark.parametrize("change", [{"seed": 3}, {"policy": ViewPolicy(scale=(0.2, 0.3))}, {"views": 2}])
def test_other_views_are_other_files(student: DualEncoder, tmp_path: Path, change: dict[str, Any]) -> None:
    samples = tiny.dataset(2).samples
    images_of(student, samples, tmp_path)
    images_of(student, samples, tmp_path, **change)
    assert len(list(tmp_path.glob("image-*"))) == 2


def test_other_weights_and_other_poolings_are_other_files(student: DualEncoder, tmp_path: Path) -> None:
    tower = student.text_tower()
    text_trunk_features(tower, ["a"], folder=tmp_path, device=CPU)
    # A pooling has no weights: only the blueprint tells it apart.
    tower.blueprint = replace(tower.blueprint, arguments={**tower.blueprint.arguments, "pool": "cls"})
    text_trunk_features(tower, ["a"], folder=tmp_path, device=CPU)
    with torch.no_grad():
        next(tower.trunk.parameters()).add_(1.0)
    text_trunk_features(tower, ["a"], folder=tmp_path, device=CPU)
    assert len(list(tmp_path.glob("text-*"))) == 3


def test_the_head_may_change_without_a_new_file(student: DualEncoder, tmp_path: Path) -> None:
    samples = tiny.dataset(2).samples
    images_of(student, samples, tmp_path)
    with torch.no_grad():
        student.image_tower().head.weight.add_(1.0)  # type: ignore[operator,union-attr]
    images_of(student, samples, tmp_path)
    assert len(list(tmp_path.glob("image-*"))) == 1


def test_an_image_that_cannot_be_read_is_named(student: DualEncoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s001\.png: .*leave this image out"):
        images_of(student, tiny.dataset(3, bad=[1]).samples, tmp_path)


def test_trunks_are_frozen_only_when_nothing_below_the_head_learns(student: DualEncoder) -> None:
    assert trunk_is_frozen(student.image_tower())
    assert trunk_is_frozen(student.text_tower())
    assert not trunk_is_frozen(tiny.student().image_tower())
    next(student.image_tower().trunk.parameters()).requires_grad_(True)
    assert not trunk_is_frozen(student.image_tower())
