"""``clipette render``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import Seed

EXAMPLES = """\
clipette render world/train --split train
clipette render world/novel --split novel --n 500 --size 96 --seed 1"""


def render(
    out: Annotated[Path, typer.Argument(help="Folder for the tars.")],
    split: Annotated[
        str, typer.Option(help="pretrain, train, dev, test, novel, or shift-outline|noise|inverted|blurred.")
    ] = "train",
    n: Annotated[int | None, typer.Option(min=1, help="Pictures; the split's own number if not given.")] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels a side.")] = 64,
    seed: Seed = 0,
    captions: Annotated[int, typer.Option(min=1, max=20, help="Captions a picture.")] = 5,
) -> None:
    """Write the rendered sample world as WebDataset tars."""
    from clipette.data.world import WorldSpec
    from clipette.data.world_write import write_world

    for path in write_world(out, WorldSpec(split, n, size, seed, captions)):
        typer.echo(str(path))
