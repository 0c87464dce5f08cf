"""Domains, corruptions and what survives them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image

from clipette.data.corruptions import CORRUPTIONS
from clipette.data.dataset import Dataset
from clipette.data.images import decode_image
from clipette.errors import ConfigError, DataError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.robustness import corrupt, robustness
from clipette.evaluate.shift import dataset_shift, domain_shift, shift_table
from clipette.evaluate.zero_shot import zero_shot
from clipette.metrics.bootstrap import Bootstrap
from clipette.types import Encoded, Failure, Floats, Sample

from .fakes import CLASSES, FakeEncoder, classified, encoder_of, unit

NAME_ONLY = ("{}",)


def test_the_table_of_domains() -> None:
    data = classified(90, ("photo", "sketch", "clay"))
    result = zero_shot(encoder_of(data, noise=0.9), data, NAME_ONLY)
    table = domain_shift(result, "photo")
    top1 = {domain: figure.value for domain, figure in result.by_domain.items()}
    assert {domain: figure.value for domain, figure in table.domains.items()} == top1
    assert table.mean.value == pytest.approx((top1["sketch"] + top1["clay"]) / 2)
    assert table.gap.value == pytest.approx(top1["photo"] - table.mean.value)
    assert table.worst.value == min(top1["sketch"], top1["clay"]) == top1[table.worst_domain]
    assert table.mean.low < table.mean.value < table.mean.high
    assert table.mean.count == 60
    alone = domain_shift(result)
    assert alone.mean.value == pytest.approx(np.mean(list(top1.values())))
    assert alone.gap is None


def test_shift_needs_domains() -> None:
    one = zero_shot(encoder_of(classified()), classified(), NAME_ONLY)
    with pytest.raises(DataError, match="two domains or more, here: none"):
        domain_shift(one)
    data = classified(20, ("photo", "sketch"))
    two = zero_shot(encoder_of(data), data, NAME_ONLY)
    with pytest.raises(DataError, match="no domain 'oil'; domains here: photo, sketch"):
        domain_shift(two, "oil")
    with pytest.raises(DataError, match="no domain beside"):
        shift_table("m", "d", {"photo": np.ones(3)}, "photo")


def test_domains_of_equal_size_are_resampled_independently() -> None:
    correct = (np.random.default_rng(0).random(200) < 0.5).astype(np.float64)
    table = shift_table("m", "d", {"a": correct, "b": correct, "home": correct}, "home", Bootstrap(2000))
    # Were all three drawn alike, the gap would be 0 in every replicate.
    assert table.gap.value == 0.0
    assert table.gap.high - table.gap.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 200 * 1.5), rel=0.1)


def test_data_sets_as_domains() -> None:
    home, away = classified(40), replace(classified(30), reference="fake:away")
    encoder = encoder_of(home)
    table = dataset_shift(encoder, home, {"away": away}, NAME_ONLY)
    assert table.reference == table.domains[home.name]
    assert table.reference.value == zero_shot(encoder, home, NAME_ONLY).top1.value
    assert table.mean.value == zero_shot(encoder, away, NAME_ONLY).top1.value


@dataclass(frozen=True)
class Drawing:
    """A grey image of one brightness."""

    grey: int
    broken: bool = False

    @property
    def location(self) -> str:
        return f"drawing-{self.grey}"

    def read(self) -> bytes:
        if self.broken:
            return b"not an image"
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (self.grey,) * 3).save(buffer, format="PNG")
        return buffer.getvalue()


@dataclass
class BrightnessEncoder(FakeEncoder):
    """Its vector is (brightness, 1 - brightness): really reads the images."""

    dim: int = 2
    images: dict[str, Floats] = field(default_factory=dict)

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        vectors = []
        for sample in samples:
            image = decode_image(sample.image.read(), location=sample.image.location)
            level = float(np.asarray(image).mean()) / 255
            vectors.append(unit(np.array([level, 1 - level])))
        return Encoded(tuple(sample.key for sample in samples), np.stack(vectors))


def drawings(count: int = 12) -> tuple[Dataset, BrightnessEncoder]:
    samples = tuple(
        Sample(
            f"d{i}",
            image=Drawing(200 if i % 2 else 60),
            captions=(f"picture {i}",),
            class_name=CLASSES[i % 2],
            label=i % 2,
        )
        for i in range(count)
    )
    texts = {"cat": unit(np.array([0.0, 1.0])), "dog": unit(np.array([1.0, 0.0]))}
    texts |= {f"picture {i}": texts["dog" if i % 2 else "cat"] for i in range(count)}
    return Dataset("fake:drawings", samples, CLASSES[:2]), BrightnessEncoder(texts=texts)


def darkened(image: Image.Image, strength: int, seed: int) -> Image.Image:
    """From strength 3 on, everything is black: class dog is lost."""
    return image if strength < 3 else Image.new("RGB", image.size)


def test_the_table_of_corruptions() -> None:
    data, encoder = drawings()
    result = robustness(encoder, data, {"darkened": darkened}, templates=NAME_ONLY)
    assert result.measure == "top1"
    assert result.clean.value == 1.0
    assert {s: f.value for s, f in result.table["darkened"].items()} == {1: 1.0, 2: 1.0, 3: 0.5, 4: 0.5, 5: 0.5}
    assert result.mean.value == pytest.approx(0.7)
    assert result.relative.value == pytest.approx(0.7)
    # An image is lost in all of three cells or in none: between 0.4 and 1, and wider than 60 independent cells.
    assert result.mean.low < 0.6 < 0.8 < result.mean.high


def test_retrieval_can_be_the_measure() -> None:
    data, encoder = drawings()
    result = robustness(encoder, data, {"darkened": darkened}, (1, 5), measure="mean_recall", templates=NAME_ONLY)
    assert result.table["darkened"][1].value == pytest.approx(result.clean.value)
    assert result.table["darkened"][5].value < result.clean.value
    assert result.relative.value == pytest.approx(result.mean.value / result.clean.value)
    assert result.relative.low < result.relative.value < result.relative.high


def test_corrupted_images_are_read_corrupted_and_keyed_apart() -> None:
    data, _ = drawings(2)
    once, twice = (corrupt(data, "noise", CORRUPTIONS["noise"], 3, seed=seed).samples[0] for seed in (0, 0))
    other = corrupt(data, "noise", CORRUPTIONS["noise"], 3, seed=1).samples[0]
    assert once.key == "d0#noise-3"
    assert once.image.location == "drawing-60#noise-3"
    assert once.image.read() == twice.image.read() != other.image.read()
    assert decode_image(once.image.read(), location="x").size == (16, 16)


def test_stored_vectors_of_clean_images_do_not_answer_for_corrupted_ones() -> None:
    data = classified()
    encoder = encoder_of(data)
    known = set(encoder.images)

    class Stored(FakeEncoder):
        def encode_samples(self, samples: Sequence[Sample], **more: object) -> Encoded:
            absent = replace(self, broken=frozenset({s.key for s in samples} - known))
            return FakeEncoder.encode_samples(absent, samples)

    with pytest.raises(DataError, match="40 of 40 images"):
        robustness(Stored(encoder.images, encoder.texts), data, {"darkened": darkened}, (1,), templates=NAME_ONLY)


def test_unknown_corruptions_and_strengths_are_refused() -> None:
    data, encoder = drawings()
    with pytest.raises(ConfigError, match="unknown corruption 'fog'; known: blur"):
        robustness(encoder, data, ["fog"], templates=NAME_ONLY)
    with pytest.raises(ConfigError, match="strengths"):
        robustness(encoder, data, ["blur"], (0,), templates=NAME_ONLY)


def test_all_of_ours_run() -> None:
    data, encoder = drawings(4)
    quick = Settings(bootstrap=Bootstrap(20))
    result = robustness(encoder, data, strengths=(1, 5), templates=NAME_ONLY, settings=quick)
    assert set(result.table) == {"blur", "noise", "jpeg", "contrast", "occlusion"}
    assert all(0.0 <= figure.value <= 1.0 for cells in result.table.values() for figure in cells.values())


def test_images_lost_to_a_corruption_are_listed_and_do_not_count() -> None:
    data, encoder = drawings(20)

    class Fragile(BrightnessEncoder):
        def encode_samples(self, samples: Sequence[Sample], **more: object) -> Encoded:
            lost = tuple(Failure(s.key, s.key, "spoilt") for s in samples if s.key == "d19#darkened-1")
            read = BrightnessEncoder.encode_samples(self, [s for s in samples if s.key != "d19#darkened-1"])
            return replace(read, failures=lost)

    result = robustness(Fragile(texts=encoder.texts), data, {"darkened": darkened}, (1, 2), templates=NAME_ONLY)
    assert [failure.key for failure in result.failures] == ["d19#darkened-1"]
    assert result.table["darkened"][1].count == 19
    assert (result.mean.value, result.mean.low, result.mean.high) == (1.0, 1.0, 1.0)
