"""Corruptions: deterministic, monotone in strength, at any size and mode."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image

from clipette.data.corruptions import CORRUPTIONS, OCCLUSION_AREA, STRENGTHS, bell_noise, corrupt
from clipette.data.world import WorldImage
from clipette.errors import ConfigError


def picture(size: int) -> Image.Image:
    return Image.fromarray(WorldImage("pretrain", 0, 5, size).pixels())


def damage(image: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(image, np.float64) - np.asarray(other, np.float64)
    return float(np.sqrt(np.mean(difference * difference)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [48, 160])
def test_every_strength_does_more_damage_than_the_one_before(kind: str, size: int) -> None:
    image = picture(size)
    if kind == "occlusion":  # on a picture whose every pixel differs equally from grey, damage is the covered area
        image = Image.new("RGB", (size, size), (255, 0, 255))
    steps = [damage(image, corrupt(image, kind, strength, 3)) for strength in STRENGTHS]
    assert steps[0] > 1.0
    assert all(later > 1.08 * earlier for earlier, later in itertools.pairwise(steps)), steps


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_equal_seeds_give_equal_pixels_and_the_input_is_left_alone(kind: str) -> None:
    image = picture(64)
    before = image.tobytes()
    first, second = (corrupt(image, kind, 3, 11).tobytes() for _ in range(2))
    assert first == second != before
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", ["noise", "occlusion"])
def test_seeds_matter_where_there_is_chance(kind: str) -> None:
    image = picture(64)
    assert len({hashlib.sha256(corrupt(image, kind, 3, seed).tobytes()).hexdigest() for seed in range(6)}) == 6


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (300, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_size_and_mode_gives_rgb_of_the_same_size(kind: str, size: tuple[int, int], mode: str) -> None:
    image = Image.effect_noise(size, 60).convert(mode)
    for strength in (1, 5):
        out = corrupt(image, kind, strength, 0)
        assert (out.mode, out.size) == ("RGB", size)


def test_strength_is_relative_to_the_size() -> None:
    """The same scene drawn large loses the same details: blur then shrink is close to shrink then blur."""
    small, large = picture(64), picture(256)
    blurred_large = corrupt(large, "blur", 3, 0).resize((64, 64), Image.Resampling.BOX)
    assert damage(blurred_large, corrupt(small, "blur", 3, 0)) < 0.3 * damage(small, corrupt(small, "blur", 3, 0))


def test_occlusion_covers_the_stated_share_for_every_seed() -> None:
    image = Image.new("RGB", (200, 120), (255, 0, 255))
    for seed in range(20):
        for strength in STRENGTHS:
            pixels = np.asarray(corrupt(image, "occlusion", strength, seed))
            share = np.mean(np.all(pixels == 128, axis=2))
            assert share == pytest.approx(OCCLUSION_AREA[strength - 1], rel=0.04)


def test_occlusion_grows_around_the_same_place() -> None:
    image = Image.new("RGB", (100, 100), (255, 0, 255))
    covered = [np.all(np.asarray(corrupt(image, "occlusion", s, 4)) == 128, axis=2) for s in STRENGTHS]
    for inner, outer in itertools.pairwise(covered):
        assert not np.any(inner & ~outer)


def test_contrast_keeps_the_mean() -> None:
    image = picture(64)
    for strength in STRENGTHS:
        shift = np.asarray(corrupt(image, "contrast", strength, 0), np.float64) - np.asarray(image, np.float64)
        assert np.all(np.abs(shift.mean(axis=(0, 1))) < 0.6)


def test_noise_of_a_higher_strength_is_the_same_noise() -> None:
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    weak, strong = (np.asarray(corrupt(image, "noise", s, 9), np.float64).ravel() - 128 for s in (1, 2))
    assert np.corrcoef(weak, strong)[0, 1] > 0.99


def test_bell_noise_is_nearly_normal_white_noise() -> None:
    values = bell_noise((200, 200, 3), 5)
    assert values.shape == (200, 200, 3)
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs(np.mean(np.abs(values) < 1) - 0.6827) < 0.02
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    assert bell_noise((3,), 5).tolist() == bell_noise((5,), 5)[:3].tolist()


@pytest.mark.parametrize("strength", [0, 6, -1])
def test_an_unknown_strength_is_refused(strength: int) -> None:
    for kind in CORRUPTIONS:
        with pytest.raises(ConfigError, match=r"1 \(weak\) to 5 \(strong\)"):
            corrupt(picture(32), kind, strength, 0)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"fog.*blur, noise, jpeg, contrast, occlusion"):
        corrupt(picture(32), "fog", 1, 0)
