"""``clipette classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import Templates, print_result, words

EXAMPLES = """\
clipette classify photo.jpg --model runs/student --labels dog,cat,horse --out bars.png
clipette classify photo.jpg --model runs/student --question "what is the dog doing?" --answers running,sleeping"""


def classify(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    model: Annotated[str, typer.Option(metavar="REF", help="A run, a folder, open_clip:, hf: or lit:.")],
    labels: Annotated[
        list[str] | None, typer.Option(metavar="A,B,...", help="Names to choose from. Default: a class bundle's own.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="A question, turned into a prompt for each answer.")] = None,
    answers: Annotated[list[str] | None, typer.Option(metavar="A,B,...", help="Answers to --question.")] = None,
    templates: Templates = "auto",
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a bar chart here.")] = None,
) -> None:
    """Say which names, or answers to a question, fit a picture."""
    from clipette import verbs

    result = verbs.classify(
        model, image, labels=words(labels), question=question, answers=words(answers), templates=templates, out=out
    )
    print_result(result)
