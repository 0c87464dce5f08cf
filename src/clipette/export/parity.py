"""Does a bundle say what its model says? Vectors side by side, on pictures and texts of the awkward kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipette.errors import UnsupportedError
from clipette.types import Encoder, Floats

# The largest difference of one coordinate of two unit vectors that is still rounding.
PARITY = 1e-4
TEXTS = (
    "a photo of a dog",
    "",
    "   two   spaces\tand a tab\n",
    "naïve café, ﬁne print — “quotes” &amp; <b>tags</b>",
    "дом, 犬が走る, كلب",
    "🐕‍🦺 emoji 🏖️",
    "UPPER lower 12345 !?#",
    "it's the dogs' day, isn't it",
    "word " * 200,
    "x" * 300,
)


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute difference of a coordinate, by side; None where there is no such side."""

    images: float | None
    texts: float | None

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(value for value in (self.images, self.texts, 0.0) if value is not None)


def pictures(count: int = 8, seed: int = 0) -> list[Image.Image]:
    """Noise, ramps and flat colours of several shapes: no data set is at hand when a model is exported."""
    generator = np.random.default_rng(seed)
    out = []
    for number in range(count):
        height, width = (int(side) for side in generator.integers(40, 400, 2))
        ramp = np.linspace(0, 255, width, dtype=np.float64)[None, :, None] * np.ones((height, 1, 3))
        noise = generator.integers(0, 256, (height, width, 3))
        share = number / max(count - 1, 1)
        out.append(Image.fromarray((share * noise + (1 - share) * ramp).astype(np.uint8)))
    return out


def measure_parity(
    model: Encoder, bundle: Encoder, images: Sequence[Image.Image] = (), texts: Sequence[str] = TEXTS
) -> Parity:
    """max |bundle - model| on ``images`` (drawn ones by default) and ``texts``.

    A side of stored texts is compared on what it stores.
    """
    shown = list(images) or pictures()
    image = _difference(model.encode_images(shown), bundle.encode_images(shown)) if model.can_encode_images else None
    text = None
    if model.can_encode_text:
        asked = list(texts)
        try:
            expected = model.encode_texts(asked)
        except UnsupportedError:
            asked = _stored(bundle)
            expected = model.encode_texts(asked)
        text = _difference(expected, bundle.encode_texts(asked))
    return Parity(image, text)


def _stored(bundle: Encoder) -> list[str]:
    from clipette.runtime.encoder import BundleEncoder
    from clipette.runtime.tokens import TableTokenizer

    if isinstance(bundle, BundleEncoder) and isinstance(bundle.tokenizer, TableTokenizer):
        return list(bundle.tokenizer.texts)
    return []


def _difference(one: Floats, other: Floats) -> float:
    return float(np.abs(one.astype(np.float64) - other).max()) if one.size else 0.0
