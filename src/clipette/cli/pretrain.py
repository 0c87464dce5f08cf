"""``clipette pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import Dev, Device, Overrides, Resume, TrainingData

EXAMPLES = """\
clipette pretrain recipe.yaml --data wds:train.tar --dev wds:dev.tar --out runs/teacher
clipette pretrain recipe.yaml --set train.steps=500 --set train.optimizer.lr=3e-4 --out runs/short
torchrun --nproc-per-node 4 -m clipette pretrain recipe.yaml --out runs/teacher"""


def pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory.")],
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or a name from `clipette recipes`.")] = None,
    data: TrainingData = None,
    dev: Dev = None,
    overrides: Overrides = None,
    resume: Resume = True,
    device: Device = None,
) -> None:
    """Train an image-text model on captions."""
    from clipette import verbs

    run = verbs.pretrain(recipe, overrides=overrides or [], data=data, dev=dev, out=out, resume=resume, device=device)
    typer.echo(str(run))
