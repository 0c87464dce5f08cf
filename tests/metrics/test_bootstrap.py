"""Intervals: their coverage, their pairing, their seeds, and what moves together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipette.errors import DataError
from clipette.metrics import bootstrap
from clipette.metrics.bootstrap import Bootstrap


def test_replicates_are_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).random(50)
    how = Bootstrap(resamples=20, seed=7)
    drawn = np.random.default_rng(7).integers(0, 50, size=(20, 50))
    expected = [np.mean([values[i] for i in row]) for row in drawn]
    got = bootstrap.replicate_means(values[:, None], np.ones((50, 1)), how)[:, 0]
    assert got == pytest.approx(expected)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        values = (rng.random(200) < 0.3).astype(np.float64)
        interval = bootstrap.mean_interval(values, how=Bootstrap(resamples=200, seed=seed, level=0.9))
        covered += interval.low <= 0.3 <= interval.high
    assert 0.84 <= covered / 300 <= 0.95


def test_same_seed_same_interval_and_it_holds_the_value() -> None:
    values = np.random.default_rng(0).random(80)
    one, two = (bootstrap.mean_interval(values, how=Bootstrap(seed=3)) for _ in range(2))
    assert one == two
    assert one.value == pytest.approx(values.mean())
    assert one.low < one.value < one.high


def test_values_that_move_together_widen_the_interval() -> None:
    images = np.random.default_rng(0).random(60)
    captions = np.repeat(images, 5)  # five captions an image, perfectly dependent
    groups = np.repeat(np.arange(60), 5)
    apart = bootstrap.mean_interval(captions)
    together = bootstrap.mean_interval(captions, groups)
    alone = bootstrap.mean_interval(images)
    assert together.value == pytest.approx(apart.value)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    assert (apart.high - apart.low) < 0.6 * (together.high - together.low)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    left = rng.random(200)
    right = left - 0.05 + 0.01 * rng.standard_normal(200)
    paired = bootstrap.difference_interval(left, right)
    assert paired.value == pytest.approx((left - right).mean())
    assert 0.045 < paired.low < paired.high < 0.055
    ratio = bootstrap.ratio_interval(right, left)
    assert ratio.value == pytest.approx(right.mean() / left.mean())
    assert 0.85 < ratio.low < ratio.value < ratio.high < 0.95
    assert math.isnan(bootstrap.ratio_interval(left, np.zeros(200)).value)
    with pytest.raises(DataError, match="same items"):
        bootstrap.difference_interval(left, right[:5])


def test_any_statistic() -> None:
    values = np.random.default_rng(0).random(100)
    interval = bootstrap.statistic_interval(lambda index: float(np.median(values[index])), 100, Bootstrap(200))
    assert interval.low < np.median(values) == interval.value < interval.high


def test_hierarchical_intervals_know_both_sources_of_chance() -> None:
    rng = np.random.default_rng(0)
    how = Bootstrap(resamples=2000)
    items = rng.random(400)
    only_items = np.tile(items, (3, 1))  # three seeds that agree: nothing but item noise
    plain = bootstrap.mean_interval(items, how=how)
    crossed = bootstrap.hierarchical_interval(only_items, how)
    assert crossed.high - crossed.low == pytest.approx(plain.high - plain.low, rel=0.1)
    seeds = np.array([0.2, 0.5, 0.8])
    only_seeds = np.tile(seeds[:, None], (1, 400))  # items that agree: nothing but seed noise
    spread = bootstrap.hierarchical_interval(only_seeds, how)
    assert spread.value == pytest.approx(0.5)
    assert (spread.low, spread.high) == pytest.approx((0.2, 0.8))
    shifted = bootstrap.hierarchical_difference(only_seeds + 0.1, only_seeds, how)
    assert (shifted.low, shifted.high) == pytest.approx((0.1, 0.1)), "paired arms share seeds and items"


def test_bad_settings_and_empty_input_are_refused() -> None:
    with pytest.raises(DataError, match="level"):
        Bootstrap(level=1.0)
    with pytest.raises(DataError, match="one item or more"):
        bootstrap.mean_interval(np.zeros(0))
    with pytest.raises(DataError, match="one group per value"):
        bootstrap.mean_interval(np.zeros(3), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="seeds, items"):
        bootstrap.hierarchical_interval(np.zeros(3))
