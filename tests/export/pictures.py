"""A few captioned pictures in a folder, for tests that measure a model on its user's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Draw: TypeAlias = Callable[[np.random.Generator], Pixels]


def noise(height: int, width: int) -> Draw:
    """Pictures of nothing."""
    return lambda generator: generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def captioned(folder: Path, count: int, draw: Draw) -> str:
    """The reference of ``count`` pictures with a caption each."""
    generator = np.random.default_rng(0)
    rows = ["image,caption"]
    for number in range(count):
        Image.fromarray(draw(generator)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,a red star number {number} on a blue sky")
    (folder / "table.csv").write_text("\n".join(rows))
    return f"csv:{folder / 'table.csv'}"
