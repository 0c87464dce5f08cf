"""A bundle sees the pixels that its model saw in training, and those that open_clip's transform would give it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageSequence
from tests.export.kinds import student

from clipette.data.images import upright_rgb
from clipette.data.preprocess import Preprocess
from clipette.export.bundle import export_bundle
from clipette.models.inference import TorchEncoder
from clipette.runtime import BundleEncoder, load_bundle
from clipette.types import Floats

THEIR_MODES = {"crop": "shortest", "squash": "squash", "pad": "longest"}


def noise(width: int = 53, height: int = 37, mode: str = "RGB") -> Image.Image:
    drawn = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(drawn[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(drawn[..., :3]).convert(mode) if mode != "RGBA" else Image.fromarray(drawn)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(noise(), "JPEG", exif=exif, quality=95)


def moving() -> bytes:
    frames = [noise().point(lambda value, k=k: value // (k + 1)).convert("P") for k in range(3)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD: dict[str, Callable[[], bytes]] = {
    "png": lambda: saved(noise(), "PNG"),
    "grey": lambda: saved(noise(mode="L"), "PNG"),
    "grey jpeg": lambda: saved(noise(mode="L"), "JPEG"),
    "grey with alpha": lambda: saved(noise(mode="RGBA").convert("LA"), "PNG"),
    "16 bits": lambda: saved(noise(mode="I;16"), "PNG"),
    "1 bit": lambda: saved(noise(mode="1"), "PNG"),
    "alpha": lambda: saved(noise(mode="RGBA"), "PNG"),
    "palette": lambda: saved(noise(mode="P"), "PNG"),
    "palette with a transparent colour": lambda: saved(noise(mode="P"), "PNG", transparency=3),
    "cmyk": lambda: saved(noise(mode="CMYK"), "JPEG"),
    "animation": moving,
    "webp": lambda: saved(noise(), "WEBP", lossless=True),
    "bmp": lambda: saved(noise(), "BMP"),
    "tiff": lambda: saved(noise(), "TIFF"),
    "one pixel": lambda: saved(noise(1, 1), "PNG"),
    "a row": lambda: saved(noise(9, 1), "PNG"),
    "tall": lambda: saved(noise(8, 75), "PNG"),
    "large": lambda: saved(noise(700, 500), "JPEG"),
    **{f"turned {orientation}": lambda o=orientation: turned(o) for orientation in range(1, 9)},
}


class Seen:
    """Stands in for ``encode_pixels`` and remembers what it was given."""

    def __init__(self) -> None:
        self.pixels: list[Floats] = []

    def __call__(self, pixels: Floats) -> Floats:
        self.pixels.append(pixels)
        return np.zeros((len(pixels), 16), np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEncoder, BundleEncoder]:
    model = TorchEncoder(student(), name="star", device="cpu")
    return model, load_bundle(export_bundle(model, tmp_path_factory.mktemp("b") / "b").path)


def through(encoder: Any, given: Any, monkeypatch: pytest.MonkeyPatch) -> Floats:
    seen = Seen()
    monkeypatch.setattr(encoder, "encode_pixels", seen)
    encoder.encode_images([given])
    return seen.pixels[0][0]


@pytest.mark.parametrize("mode", list(THEIR_MODES))
@pytest.mark.parametrize("kind", list(ODD))
def test_equal_to_training_and_to_open_clip(
    kind: str, mode: str, pair: tuple[TorchEncoder, BundleEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = pair
    tower = model.model.image_tower()
    how = replace(tower.preprocess, mode=mode)  # type: ignore[arg-type]  # the table's keys are the literals
    monkeypatch.setattr(tower, "preprocess", how)
    # As a bundle's files bring it back.
    monkeypatch.setattr(bundle, "preprocess", Preprocess.from_dict(json.loads(json.dumps(how.to_dict()))))
    data = ODD[kind]()
    path = tmp_path / "image"
    path.write_bytes(data)
    trained = through(model, data, monkeypatch)
    for given in (data, path, str(path)):
        np.testing.assert_array_equal(through(bundle, given, monkeypatch), trained)
    if kind in ("a row", "tall") and mode != "squash":
        return  # a sliver: cut before it is resized, and padded to at least one pixel
    config = PreprocessCfg(
        size=how.size, mean=how.mean, std=how.std, interpolation=how.interpolation, resize_mode=THEIR_MODES[mode]
    )
    with Image.open(io.BytesIO(data)) as opened:
        expected = image_transform_v2(config, is_train=False)(upright_rgb(opened)).numpy()
    # In units of a pixel's value, from 0 to 1.
    difference = np.abs(trained - expected) * np.array(how.std, np.float32)[:, None, None]
    assert difference.max() <= 1 / 255


def test_odd_kinds_are_odd() -> None:
    opened = {kind: Image.open(io.BytesIO(make())) for kind, make in ODD.items()}
    assert {image.mode for image in opened.values()} >= {"RGB", "L", "LA", "RGBA", "P", "1", "CMYK"}
    assert opened["16 bits"].mode.startswith("I")
    assert len(list(ImageSequence.Iterator(opened["animation"]))) == 3
    assert {opened[f"turned {o}"].getexif()[0x0112] for o in range(1, 9)} == set(range(1, 9))
