"""A contact sheet of the sample world, for the README and the report."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from clipette.data.world import WorldImage

ROWS = ("train", "novel", "shift-outline", "shift-noise", "shift-inverted", "shift-blurred")
GAP, LABEL_WIDTH, LABEL_HEIGHT = 6, 112, 18
INK, FAINT, PAPER = (40, 42, 54), (120, 124, 138), (255, 255, 255)


def contact_sheet(
    splits: Sequence[str] = ROWS,
    *,
    columns: int = 8,
    size: int = 96,
    seed: int = 0,
    stride: int = 7,
    names: bool = True,
) -> Image.Image:
    """One row a split, its name at the left, each picture's class below it.

    ``stride`` steps through the classes, which take turns by index; splits that share scenes stay aligned.
    """
    below = LABEL_HEIGHT if names else 0
    height = GAP + len(splits) * (size + below + GAP)
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * (size + GAP) + GAP, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(max(8.0, size / 10))
    for row, split in enumerate(splits):
        top = GAP + row * (size + below + GAP)
        draw.text((GAP * 2, top + size / 2), split, INK, large, anchor="lm")
        for column in range(columns):
            image = WorldImage(split, seed, column * stride, size)
            left = LABEL_WIDTH + column * (size + GAP)
            sheet.paste(Image.fromarray(image.pixels()), (left, top))
            if names:
                name = image.scene().things[0].composition.name
                draw.text((left + size / 2, top + size + 2), name, FAINT, small, anchor="ma")
    return sheet
