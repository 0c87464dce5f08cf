"""``clipette export --format``: a folder that open_clip or transformers load by themselves, checked by loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from clipette.errors import UnsupportedError
from clipette.export.card import write_origin
from clipette.export.folders import check_target, write_folder
from clipette.export.hf_folder import load_hf, write_hf
from clipette.export.open_clip_folder import load_open_clip_folder, write_open_clip
from clipette.export.parity import pictures
from clipette.io import write_atomic
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.types import Floats

# The largest difference of one coordinate of two unit vectors, ours and the peer's of the same weights.
PARITY = 1e-5
CARD = "README.md"
# Cleaning of mojibake and HTML is not the same everywhere.
TEXTS = ("a photo of a dog", "", "Two black cats, running; it's 12 o'clock!", "a long walk " * 100)
# Width and height. transformers' Pillow backend cuts an odd margin one pixel beside torchvision and open_clip; three to
# one, no margin is odd.
SHAPES = ((300, 100), (99, 33), (100, 300), (33, 99), (150, 150), (31, 31))
Encode = tuple[Callable[[Sequence[Image]], Floats], Callable[[Sequence[str]], Floats]]


@dataclass(frozen=True)
class Format:
    """``write``: a model into an empty folder, or ``UnsupportedError``; ``read``: the peer's own loader, as functions
    from images and from texts to unit vectors; ``load``: what a user writes; ``config``: a file that all have."""

    write: Callable[[DualEncoder, Path], None]
    read: Callable[[Path], Encode]
    load: str
    config: str


FORMATS: dict[str, Format] = {
    "open_clip": Format(
        write_open_clip,
        load_open_clip_folder,
        'open_clip.create_model_and_transforms("local-dir:{}")',
        "open_clip_config.json",
    ),
    "hf": Format(write_hf, load_hf, 'transformers.AutoModel.from_pretrained("{}")', "config.json"),
}


@dataclass(frozen=True)
class ExportedFolder:
    """What was written, how it is loaded, and the largest difference of a coordinate to the model's vectors."""

    path: Path
    load: str
    difference: float


def export_folder(
    encoder: TorchEncoder, out: str | Path, format: str, *, card: Mapping[str, Any] | None = None
) -> ExportedFolder:
    """Write ``encoder`` as a folder of the peer ``format``, replacing one that is there.

    Raises:
        ConfigError: ``out`` holds something else.
        UnsupportedError: an architecture that is not the peer's, or that the peer loads as another one.
    """
    chosen = FORMATS[format]
    target = Path(out)
    what = f"model folder of {format}"

    def ours(folder: Path) -> bool:
        return (folder / chosen.config).is_file() and (folder / CARD).is_file()

    check_target(target, ours, what)
    model = encoder.model.float().cpu().eval()
    found: list[float] = []

    def fill(made: Path) -> None:
        chosen.write(model, made)
        found.append(_difference(encoder, made, format, chosen))
        name = target.name
        load = chosen.load.format(name)
        write_atomic(made / CARD, write_origin(encoder.name, load, dict(card or {})).encode())

    write_folder(target, fill, ours=ours, what=what)
    return ExportedFolder(target, chosen.load.format(target), found[0])


def shown(seed: int = 0) -> list[Image]:
    """Pictures of ``SHAPES``."""
    return [image.resize(shape) for image, shape in zip(pictures(len(SHAPES), seed), SHAPES, strict=True)]


def _difference(encoder: TorchEncoder, made: Path, format: str, chosen: Format) -> float:
    """max |peer - model|. Raises ``UnsupportedError`` where it is more than rounding, or the peer cannot load it."""
    images = shown()
    try:
        encode_images, encode_texts = chosen.read(made)
        theirs = encode_images(images), encode_texts(TEXTS)
    except Exception as error:  # the peer raises whatever its parts raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(f"{format} cannot load this model ({first}): nothing was written") from error
    ours = encoder.encode_images(images), encoder.encode_texts(TEXTS)
    worst = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not worst <= PARITY:
        raise UnsupportedError(
            f"{format} computes other vectors from this model, by up to {worst:.1e} (allowed {PARITY:.0e}): its "
            "architecture or preprocessing is not theirs; nothing was written"
        )
    return worst
