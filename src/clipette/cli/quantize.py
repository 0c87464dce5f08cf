"""``clipette quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result

EXAMPLES = """\
clipette quantize student.bundle --data wds:dev.tar --out student-int8.bundle
clipette quantize student.bundle --data wds:dev.tar --calibrate folder:photos --milder --out student-int8.bundle
clipette quantize student.bundle --data wds:dev.tar --precision fp16 --out student-fp16.bundle"""


def quantize(
    bundle: Annotated[str, typer.Argument(help="A bundle that `clipette export` wrote.")],
    data: Annotated[str, typer.Option(metavar="REF", help="Data to measure on, with captions or classes.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The smaller bundle.")],
    calibrate: Annotated[
        str | None, typer.Option(metavar="REF", help="Images that show the ranges of activations. Default: --data.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(metavar="NAME", help="int8, nncf (int8 for OpenVINO), or fp16 (half the size, the same speed)."),
    ] = "int8",
    kept: Annotated[
        int, typer.Option(metavar="N", help="Runs of layers, of 10, that stay in 32 bits: 0, 1, 2, 4 or 6.")
    ] = 1,
    texts: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Texts beside int8 images: fp16 (as asked alone or in company), or int8."),
    ] = None,
    milder: Annotated[bool, typer.Option("--milder", help="If the gate refuses, try milder settings in turn.")] = False,
    cosine: Annotated[float, typer.Option(min=0.0, max=1.0, help="The least median cosine to the full bundle.")] = 0.99,
    loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The largest share of recall or accuracy that may be lost.")
    ] = 0.01,
) -> None:
    """Make a bundle smaller and faster; nothing is written unless it stays as good as stated."""
    from clipette import verbs

    found = verbs.quantize(
        bundle,
        data,
        out,
        calibrate=calibrate,
        precision=precision,
        kept=kept,
        texts=texts,
        milder=milder,
        cosine=cosine,
        loss=loss,
    )
    print_result(found)
