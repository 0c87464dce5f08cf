"""``clipette prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result, words

EXAMPLES = """\
clipette prune runs/teacher --hidden 0.9 --data wds:dev.tar --out runs/leaner
clipette prune runs/teacher --depth 0.5 --width 0.5 --no-gate --out runs/start
clipette prune runs/teacher --macs 0.33 --size 160 --calibrate wds:train.tar --no-gate --out runs/start
clipette distill --teacher runs/teacher --student runs/start --data wds:train.tar --out runs/student"""


def prune(
    model: Annotated[str, typer.Argument(help="The model: a run, a folder, open_clip:, hf:, lit:.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The smaller run directory.")],
    depth: Annotated[float, typer.Option(metavar="SHARE", help="Of the layers, how many stay.")] = 1.0,
    width: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the channels, heads and hidden units, how many stay.")
    ] = 1.0,
    hidden: Annotated[
        float, typer.Option(metavar="SHARE", help="Of each transformer layer's hidden units, how many stay.")
    ] = 1.0,
    macs: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Of a convolutional image tower's multiply-adds, how many stay: channels inside its blocks go.",
        ),
    ] = 1.0,
    size: Annotated[
        int | None, typer.Option(metavar="PX", help="Another side for the images; what it saves counts in --macs.")
    ] = None,
    towers: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Which towers: image, text. Default: both.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What stays: norm (the largest; transformers) or leading (the first)."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="REF", help="Data to measure on, with captions or classes.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="Images (256 of them) that show which channels --macs may take. Default: --data."
        ),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Write it only if it stays as good as stated, or as a start.")
    ] = True,
    milder: Annotated[bool, typer.Option("--milder", help="If the gate refuses, prune less in turn.")] = False,
    cosine: Annotated[float, typer.Option(min=0.0, max=1.0, help="The least median cosine to the whole model.")] = 0.99,
    loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The largest share of recall or accuracy that may be lost.")
    ] = 0.01,
) -> None:
    """Cut layers, channels or hidden units out of a model; distil it afterwards, to win back what that costs."""
    from clipette import verbs

    found = verbs.prune(
        model,
        out,
        depth=depth,
        width=width,
        hidden=hidden,
        macs=macs,
        size=size,
        towers=words(towers) or ("image", "text"),
        by=by,
        data=data,
        calibrate=calibrate,
        gate=gate,
        milder=milder,
        cosine=cosine,
        loss=loss,
    )
    print_result(found)
