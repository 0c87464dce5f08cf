"""Images and texts in batches through any encoder: what all of them share around the one call that differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from clipette.data.images import DecodeSettings, decode_image, upright_rgb
from clipette.data.loading import iter_images
from clipette.data.preprocess import Preprocess
from clipette.errors import BadImageError, ConfigError, DataError
from clipette.progress import track
from clipette.types import Encoded, Failure, Floats, ImageInput, Sample

# Pixels [B, 3, H, W], or B strings, to unit vectors [B, D].
EncodePixels = Callable[[Floats], Floats]
EncodeStrings = Callable[[Sequence[str]], Floats]


def open_image(image: ImageInput, settings: DecodeSettings) -> Image:
    """An upright RGB image of a path, encoded bytes or a Pillow image.

    Raises ``BadImageError`` where it cannot be read, ``DataError`` where it is none of these.
    """
    if isinstance(image, Image):
        return upright_rgb(image)
    if isinstance(image, bytes):
        return decode_image(image, location="<bytes>", settings=settings)
    if not isinstance(image, str | Path):
        raise DataError(f"an image is a path, encoded bytes or a Pillow image, not a {type(image).__name__}")
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise BadImageError(f"{image}: cannot be read ({error.strerror or error})") from error
    return decode_image(data, location=str(image), settings=settings)


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: give at least 1")


def encode_images(
    images: Sequence[ImageInput],
    encode: EncodePixels,
    preprocess: Preprocess,
    *,
    dim: int,
    batch_size: int,
    settings: DecodeSettings,
) -> Floats:
    """``Encoder.encode_images``: [N, D]. Raises ``BadImageError`` on the first image that cannot be read,
    ``DataError`` where one image is given in place of a list."""
    if isinstance(images, str | bytes | Path | Image):
        raise DataError("encode_images takes a list of images: write [image]")
    _check_size(batch_size)
    pieces = []
    for start in range(0, len(images), batch_size):
        opened = [open_image(image, settings) for image in images[start : start + batch_size]]
        pieces.append(encode(np.stack([preprocess(image) for image in opened])))
    return np.concatenate(pieces) if pieces else np.zeros((0, dim), np.float32)


def encode_samples(
    samples: Sequence[Sample],
    encode: EncodePixels,
    preprocess: Preprocess,
    *,
    name: str,
    dim: int,
    batch_size: int,
    settings: DecodeSettings,
    progress: bool,
) -> Encoded:
    """``Encoder.encode_samples``: what cannot be read becomes a ``Failure``."""
    _check_size(batch_size)
    keys: list[str] = []
    failures: list[Failure] = []
    waiting: list[Floats] = []
    pieces: list[Floats] = []
    stream = iter_images(samples, settings=settings, want=preprocess.size)
    for index, image in track(stream, total=len(samples), description=f"encode {name}", enabled=progress):
        if isinstance(image, Failure):
            failures.append(image)
            continue
        keys.append(samples[index].key)
        waiting.append(preprocess(image))
        if len(waiting) == batch_size:
            pieces.append(encode(np.stack(waiting)))
            waiting = []
    if waiting:
        pieces.append(encode(np.stack(waiting)))
    vectors = np.concatenate(pieces) if pieces else np.zeros((0, dim), np.float32)
    return Encoded(tuple(keys), vectors, tuple(failures))


def encode_texts(texts: Sequence[str], encode: EncodeStrings, *, dim: int, batch_size: int) -> Floats:
    """``Encoder.encode_texts``: by length, which keeps padding and so the cost low; rows in the order of ``texts``.

    Raises ``DataError`` where one string is given in place of a list: its letters would be encoded one by one.
    """
    if isinstance(texts, str):
        raise DataError(f"encode_texts takes a list of texts: write [{texts[:40]!r}]")
    _check_size(batch_size)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {place} is a {type(text).__name__}: encode_texts takes a list of texts")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), dim), np.float32)
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        # Half of a character (a lone surrogate) is none: no tokenizer can read it.
        out[rows] = encode([texts[i].encode("utf-8", "replace").decode() for i in rows])
    return out
