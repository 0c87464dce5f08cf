"""Common corruptions at five strengths, for robustness: PIL in, PIL out, any size, equal bytes for equal seeds.

In the spirit of ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", ICLR 2019). Deviations: lengths are relative to the picture's shorter side rather than fixed for
224 pixels, and noise at a higher strength is the same noise, only stronger, so that a curve over strengths is paired.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from clipette.data.order import stable_hash, stable_uniforms
from clipette.errors import ConfigError
from clipette.types import Floats

Corruption: TypeAlias = Callable[[Image.Image, int, int], Image.Image]

STRENGTHS = (1, 2, 3, 4, 5)
BLUR_RADIUS = (0.008, 0.014, 0.022, 0.034, 0.05)
"""Standard deviation as a fraction of the shorter side."""
NOISE_SIGMA = (0.06, 0.10, 0.16, 0.24, 0.35)
"""Standard deviation on the scale where white is 1."""
JPEG_QUALITY = (25, 16, 10, 6, 3)
CONTRAST_FACTOR = (0.6, 0.42, 0.28, 0.18, 0.1)
"""Share of the distance from the mean that is left."""
OCCLUSION_AREA = (0.05, 0.1, 0.18, 0.28, 0.4)
"""Share of the area under one grey rectangle."""


def corrupt(image: Image.Image, kind: str, strength: int, seed: int) -> Image.Image:
    """``CORRUPTIONS[kind](image, strength, seed)``. Raises ``ConfigError`` for an unknown kind or strength."""
    if kind not in CORRUPTIONS:
        raise ConfigError(f"no corruption {kind!r}: choose one of {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[kind](image, strength, seed)


def blur(image: Image.Image, strength: int, seed: int = 0) -> Image.Image:
    """Gaussian blur with ``BLUR_RADIUS`` × shorter side. ``seed`` is unused. Raises ``ConfigError`` as ``corrupt``."""
    radius = _level(BLUR_RADIUS, strength) * min(image.size)
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(radius))


def noise(image: Image.Image, strength: int, seed: int = 0) -> Image.Image:
    """x + σ·n per pixel and channel, n of mean 0 and variance 1, clipped. Raises ``ConfigError`` as ``corrupt``."""
    sigma = np.float32(255 * _level(NOISE_SIGMA, strength))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    noisy = pixels + sigma * bell_noise(pixels.shape, stable_hash("noise", seed))
    return Image.fromarray(np.clip(noisy + np.float32(0.5), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, strength: int, seed: int = 0) -> Image.Image:
    """Through a JPEG file of ``JPEG_QUALITY``. ``seed`` is unused. Raises ``ConfigError`` as ``corrupt``."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=_level(JPEG_QUALITY, strength))
    return Image.open(buffer).convert("RGB")


def contrast(image: Image.Image, strength: int, seed: int = 0) -> Image.Image:
    """m + f·(x - m), m the mean of each channel. ``seed`` is unused. Raises ``ConfigError`` as ``corrupt``."""
    factor = np.float32(_level(CONTRAST_FACTOR, strength))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return Image.fromarray(np.clip(mean + factor * (pixels - mean) + np.float32(0.5), 0, 255).astype(np.uint8))


def occlusion(image: Image.Image, strength: int, seed: int = 0) -> Image.Image:
    """One grey rectangle over ``OCCLUSION_AREA`` of the picture, placed by ``seed``, growing about its centre.

    Near an edge it is pushed inside, so the covered area is the same for every seed.
    Raises ``ConfigError`` as ``corrupt``.
    """
    area = _level(OCCLUSION_AREA, strength)
    draws = stable_uniforms("occlusion", seed)
    centre_x, centre_y, stretch = next(draws), next(draws), math.exp((next(draws) - 0.5) * math.log(2.0))
    covered = image.convert("RGB")
    width, height = (
        max(1, min(whole, round(whole * share)))
        for whole, share in zip(covered.size, (math.sqrt(area * stretch), math.sqrt(area / stretch)), strict=True)
    )
    left = round(min(max(centre_x * covered.width - width / 2, 0), covered.width - width))
    top = round(min(max(centre_y * covered.height - height / 2, 0), covered.height - height))
    covered.paste((128, 128, 128), (left, top, left + width, top + height))
    return covered


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {"blur": blur, "noise": noise, "jpeg": jpeg, "contrast": contrast, "occlusion": occlusion}
)


def bell_noise(shape: tuple[int, ...], seed: int) -> Floats:
    """Nearly normal noise of mean 0 and variance 1: sums of four random bytes, the same bits with every NumPy.

    Raw words of PCG64 are fixed for ever; the streams of NumPy's ``Generator`` methods are not.
    """
    count = math.prod(shape)
    words = np.random.PCG64(seed).random_raw((count + 1) // 2).astype("<u8")
    parts = words.view(np.uint8)[: 4 * count].reshape(count, 4)
    sums = parts[:, 0].astype(np.uint16) + parts[:, 1] + parts[:, 2] + parts[:, 3]
    # Mean 4 * 255 / 2; variance 4 * (256^2 - 1) / 12.
    return ((sums.astype(np.float32) - np.float32(510)) / np.float32(147.7993)).reshape(shape)


def _level(levels: tuple[float, ...], strength: int) -> float:
    if strength not in STRENGTHS:
        raise ConfigError(f"corruption strength {strength!r} does not exist: choose 1 (weak) to 5 (strong)")
    return levels[strength - 1]
