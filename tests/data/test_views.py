"""Views: inside the image, of RandomResizedCrop's law, and a function of their arguments alone."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from clipette.data.views import ViewPolicy, draw_view
from clipette.errors import ConfigError
from clipette.types import View

SIDES = st.integers(1, 5000)


@st.composite
def policies(draw: st.DrawFn) -> ViewPolicy:
    scale = sorted(draw(st.tuples(*[st.floats(0.01, 1.0)] * 2)))
    ratio = sorted(draw(st.tuples(*[st.floats(0.1, 10.0)] * 2)))
    return ViewPolicy((scale[0], scale[1]), (ratio[0], ratio[1]), flip=draw(st.floats(0, 1)), brightness=0.4)


@settings(max_examples=100, deadline=None)
@given(
    policies(),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(0, 2**32),
    st.text(max_size=20),
    st.integers(0, 99),
)
def test_boxes_lie_inside_and_are_whole_pixels(
    policy: ViewPolicy, width: int, height: int, seed: int, key: str, index: int
) -> None:
    view = draw_view(policy, (width, height), seed, key, index)
    left, top, right, bottom = view.box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    in_pixels = np.array(view.box) * [width, height, width, height]
    np.testing.assert_allclose(in_pixels, np.round(in_pixels), atol=1e-6)
    assert 0.6 <= view.brightness <= 1.4
    assert view.contrast == view.saturation == 1
    assert view == draw_view(policy, (width, height), seed, key, index)


def boxes_of(policy: ViewPolicy, size: tuple[int, int], count: int) -> np.ndarray:
    return np.array([draw_view(policy, size, 0, f"key-{n}", 0).box for n in range(count)])


@pytest.mark.parametrize("size", [(500, 375), (200, 600)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_the_law_is_random_resized_crops(size: tuple[int, int], scale: tuple[float, float]) -> None:
    count = 2000
    ours = boxes_of(ViewPolicy(scale=scale), size, count)
    torch.manual_seed(0)
    blank = torch.empty(3, size[1], size[0])
    drawn = [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array([(j / size[0], i / size[1], (j + w) / size[0], (i + h) / size[1]) for i, j, h, w in drawn])
    # Two-sample Kolmogorov-Smirnov on each edge, and on area and shape; 1.95 is the 0.1 % critical value.
    for name, of in {
        "left": lambda b: b[:, 0],
        "top": lambda b: b[:, 1],
        "right": lambda b: b[:, 2],
        "bottom": lambda b: b[:, 3],
        "area": lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
        "ratio": lambda b: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]),
    }.items():
        one, other = np.sort(of(ours)), np.sort(of(theirs))
        at = np.concatenate([one, other])
        gap = np.abs(np.searchsorted(one, at, "right") - np.searchsorted(other, at, "right")).max() / count
        assert gap < 1.95 * np.sqrt(2 / count), name


def test_what_cannot_be_drawn_is_a_centred_crop() -> None:
    view = draw_view(ViewPolicy(scale=(1, 1), ratio=(1, 1)), (400, 100), 0, "a", 0)
    assert view.box == (150 / 400, 0.0, 250 / 400, 1.0)


def test_flips_follow_their_probability() -> None:
    flips = [draw_view(ViewPolicy(flip=0.3), (64, 64), 0, str(n), 0).flip for n in range(2000)]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.03)
    assert not any(draw_view(ViewPolicy(flip=0), (64, 64), 0, str(n), 0).flip for n in range(100))
    assert all(draw_view(ViewPolicy(flip=1), (64, 64), 0, str(n), 0).flip for n in range(100))


def test_every_argument_counts() -> None:
    base = draw_view(ViewPolicy(), (500, 375), 0, "a", 0)
    assert base != draw_view(ViewPolicy(), (500, 375), 1, "a", 0)
    assert base != draw_view(ViewPolicy(), (500, 375), 0, "b", 0)
    assert base != draw_view(ViewPolicy(), (500, 375), 0, "a", 1)


def test_views_are_the_same_in_another_process_and_in_years() -> None:
    code = (
        "from clipette.data.views import *; from clipette.data.order import *; import json\n"
        "v = draw_view(ViewPolicy(brightness=.4), (500, 375), 7, 'photo/ä', 3)\n"
        "print(json.dumps([v.box, v.flip, v.brightness, epoch_order(8, 1, 2).tolist(), stable_hash('a', 1)]))"
    )
    here = draw_view(ViewPolicy(brightness=0.4), (500, 375), 7, "photo/ä", 3)
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": path},
                                  check=True, capture_output=True, text=True).stdout)
        for seed, path in [("1", ":".join(sys.path)), ("2", ":".join(sys.path))]
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0][:3] == [list(here.box), here.flip, here.brightness]
    # Frozen: stores hold such values. A change here invalidates every store.
    assert here == View(
        box=(0.066, 0.029333333333333333, 0.81, 0.8693333333333333), flip=True, brightness=0.8964331054839589
    )


def test_policy_survives_json_and_refuses_nonsense() -> None:
    policy = ViewPolicy((0.2, 0.9), flip=0.1, saturation=0.3)
    assert ViewPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    for bad, message in [
        ({"scale": [0, 1]}, "scale"),
        ({"scale": [0.9, 0.5]}, "scale"),
        ({"ratio": [2, 1]}, "ratio"),
        ({"scale": 0.5}, "two numbers"),
        ({"flip": 1.5}, "flip 1.5 is a probability"),
        ({"brightness": -1}, "brightness"),
        ({"brightness": "much"}, "view policy"),
        ({"blur": 1}, r"unknown \['blur'\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ViewPolicy.from_dict(bad)
