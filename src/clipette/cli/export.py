"""``clipette export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result, words

EXAMPLES = """\
clipette export runs/student --out student.bundle
clipette export open_clip:MobileCLIP-S1/datacompdr --out s1.bundle
clipette export runs/student --format open_clip --out student-open_clip
clipette export runs/student --labels "a dog,a cat,a horse" --out pets.bundle
clipette classify photo.jpg --model student.bundle --labels 'a dog,a cat'"""


def export(
    model: Annotated[str, typer.Argument(help="The model: a run, a folder, open_clip:, hf:, lit:.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The bundle; a bundle there is replaced.")],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="bundle, or a folder that open_clip or hf (transformers) loads.")
    ] = "bundle",
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,...", help="A class bundle: the vectors of these classes, no text tower."),
    ] = None,
    templates: Annotated[
        str,
        typer.Option(metavar="NAME", help="How --labels are worded. auto: openai80, or what the model has learned."),
    ] = "auto",
    licence: Annotated[
        list[str] | None,
        typer.Option("--licence", "--license", metavar="TEXT", help='For the card: "data: CC BY 4.0". Repeatable.'),
    ] = None,
) -> None:
    """Write a model as a bundle that needs no PyTorch, or as a folder for open_clip or transformers."""
    from clipette import verbs

    found = verbs.export(model, out, format=format, labels=words(labels), templates=templates, licences=licence or [])
    print_result(found)
