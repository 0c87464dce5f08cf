"""Preprocessing equals torchvision's and open_clip's; a view is the same region at every resolution."""

from __future__ import annotations

import time

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from clipette.data.preprocess import Preprocess
from clipette.errors import ConfigError
from clipette.types import View

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [
    (500, 375),
    (375, 500),
    (333, 221),
    (224, 224),
    (225, 224),
    (223, 997),
    (1, 7),
    (31, 33),
    (641, 427),
    (10, 199),
]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [224, 97])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_equals_torchvision(size: tuple[int, int], side: int, interpolation: str) -> None:
    theirs = transforms.Compose([
        transforms.Resize(side, InterpolationMode(interpolation)),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    ours = Preprocess((side, side), MEAN, STD, interpolation)  # type: ignore[arg-type]
    image = picture(*size)
    np.testing.assert_allclose(ours(image), theirs(image).numpy(), rtol=0, atol=1e-6)


def test_resize_then_smaller_crop_equals_torchvision() -> None:
    theirs = transforms.Compose([transforms.Resize(256, InterpolationMode.BICUBIC), transforms.CenterCrop(224)])
    ours = Preprocess((224, 224), MEAN, STD, shorter=256)
    for size in SIZES:
        if max(size) / min(size) > 10:
            continue  # cut before it is resized: another rounding, tested below
        image = picture(*size)
        np.testing.assert_array_equal(ours.pixels(image), np.asarray(theirs(image)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "theirs"), [("crop", "shortest"), ("squash", "squash"), ("pad", "longest")])
@pytest.mark.parametrize("target", [(224, 224), (96, 160)])
def test_every_mode_equals_open_clip(size: tuple[int, int], mode: str, theirs: str, target: tuple[int, int]) -> None:
    if max(size) / min(size) > 10 and mode != "squash":
        pytest.skip("a sliver: cut before it is resized, and padded to at least one pixel (tested below)")
    config = PreprocessCfg(size=target, mean=MEAN, std=STD, resize_mode=theirs)
    image = picture(*size)
    expected = image_transform_v2(config, is_train=False)(image).numpy()
    got = Preprocess(target, MEAN, STD, mode=mode)(image)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_squash_then_cut_equals_torchvision() -> None:
    theirs = transforms.Compose([transforms.Resize((346, 346), InterpolationMode.BICUBIC), transforms.CenterCrop(289)])
    ours = Preprocess((289, 289), MEAN, STD, mode="squash", shorter=346)
    for size in SIZES:
        image = picture(*size)
        np.testing.assert_array_equal(ours.pixels(image), np.asarray(theirs(image)))


def test_batches_normalise_as_single_images() -> None:
    preprocess = Preprocess((8, 12), MEAN, STD)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    batch = preprocess.normalize(pixels)
    assert (batch.shape, batch.dtype) == ((5, 3, 8, 12), np.float32)
    for one, many in zip(pixels, batch, strict=True):
        np.testing.assert_array_equal(preprocess.normalize(one), many)
    by_hand = (pixels[0, 3, 4, 1] / 255 - MEAN[1]) / STD[1]
    assert batch[0, 1, 3, 4] == pytest.approx(by_hand, abs=1e-6)


def test_a_sliver_costs_no_gigabytes() -> None:
    start = time.perf_counter()
    assert Preprocess((224, 224), MEAN, STD)(picture(1, 60_000)).shape == (3, 224, 224)
    assert time.perf_counter() - start < 1
    assert Preprocess((224, 224), MEAN, STD, mode="pad")(picture(60_000, 1)).shape == (3, 224, 224)


def test_a_cut_from_a_sliver_is_what_resizing_all_of_it_gives() -> None:
    image = picture(2, 90).resize((20, 900), Image.Resampling.BICUBIC)
    preprocess = Preprocess((32, 32), MEAN, STD)
    whole = transforms.Compose([transforms.Resize(32, InterpolationMode.BICUBIC), transforms.CenterCrop(32)])(image)
    assert np.abs(preprocess.pixels(image).astype(int) - np.asarray(whole)).max() <= 2


def test_any_pillow_mode_is_taken() -> None:
    preprocess = Preprocess((16, 16), MEAN, STD)
    grey = picture(20, 20).convert("L")
    np.testing.assert_array_equal(preprocess(grey), preprocess(grey.convert("RGB")))


def test_the_identity_view_is_the_full_preprocessing() -> None:
    preprocess = Preprocess((32, 32), MEAN, STD)
    image = picture(60, 40)
    np.testing.assert_array_equal(preprocess.view(image, View()), preprocess(image))


def test_pixels_may_be_written_to() -> None:
    for view in (View(), View(box=(0, 0, 0.5, 0.5))):
        assert Preprocess((8, 8), MEAN, STD).pixels(picture(9, 9), view).flags.writeable


def test_a_view_is_the_region_it_says() -> None:
    image = Image.new("RGB", (100, 80), "black")
    image.paste((255, 0, 0), (50, 40, 100, 80))
    pixels = Preprocess((16, 16), MEAN, STD).pixels(image, View(box=(0.5, 0.5, 1, 1)))
    # Pillow's filter reaches a little over the edge of the box: the outermost row and column are blends.
    np.testing.assert_array_equal(pixels[1:, 1:], np.broadcast_to([255, 0, 0], (15, 15, 3)))
    assert pixels[..., 0].min() > 200
    left_edge = Preprocess((16, 16), MEAN, STD).pixels(image, View(box=(0.4, 0.5, 0.6, 1)))
    assert left_edge[1:, :6].max() == 0
    assert left_edge[1:, 10:, 0].min() == 255


def test_flip_and_colour_follow_pillow() -> None:
    preprocess, image = Preprocess((16, 16), MEAN, STD), picture(40, 30)
    box = (0.1, 0.2, 0.9, 0.7)
    plain = preprocess.pixels(image, View(box))
    np.testing.assert_array_equal(preprocess.pixels(image, View(box, flip=True)), plain[:, ::-1])
    darker = preprocess.pixels(image, View(box, brightness=0.5))
    assert np.abs(darker.astype(int) - plain // 2).max() <= 1
    grey = preprocess.pixels(image, View(box, saturation=0.0))
    assert (grey.max(-1) == grey.min(-1)).all()
    flat = preprocess.pixels(image, View(box, contrast=0.0))
    assert len(np.unique(flat)) == 1


def test_two_resolutions_see_the_same_region() -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC)
    view = View(box=(0.137, 0.21, 0.71, 0.93), flip=True, brightness=0.8, contrast=1.2, saturation=0.7)
    large = Preprocess((224, 224), MEAN, STD).pixels(image, view)
    small = Preprocess((56, 56), (0.5,) * 3, (0.5,) * 3).pixels(image, view)
    pooled = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(pooled - small).mean() < 2
    other = Preprocess((56, 56), MEAN, STD).pixels(image, View(box=(0.187, 0.21, 0.76, 0.93), flip=True))
    assert np.abs(pooled - other).mean() > 8, "the comparison must notice a box that is off by 5 %"


def test_to_dict_survives_json() -> None:
    import json

    preprocess = Preprocess((32, 48), MEAN, STD, "bilinear", "squash")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 8)}, "size"),
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' must be one of"),
        ({"mode": "stretch"}, "mode 'stretch' must be one of"),
        ({"shorter": 4}, "shorter"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict({**Preprocess((8, 8), MEAN, STD).to_dict(), **change})
