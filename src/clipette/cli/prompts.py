"""``clipette prompts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import BatchSize, Device, MaxFailures, Out, Seed, print_result

EXAMPLES = """\
clipette prompts open_clip:ViT-B-32/openai --data folder:pets --out reports/wording
clipette prompts runs/student --data wds:test.tar --dev wds:dev.tar --templates openai80 --out reports/wording \
--descriptions cupl.json"""


def prompts(
    model: Annotated[str, typer.Argument(help="A run, a folder, a bundle, open_clip:, hf:, lit: or stored:.")],
    data: Annotated[str, typer.Option(metavar="REF", help="Labelled images; a few hundred do.")],
    out: Out,
    dev: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Other labelled images to choose on. Default: half of each class of --data."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A set (openai80, wordings, ...) or a template with {} in it; may be repeated. "
            "Default: every set we know.",
        ),
    ] = None,
    descriptions: Annotated[
        list[Path] | None,
        typer.Option(metavar="JSON", help="LLM sentences per class, in CuPL's format; may be repeated."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The wording gains are measured against. Default: 'a photo of a {}.', else the first."
        ),
    ] = None,
    texts: Annotated[
        str | None, typer.Option(metavar="REF", help="The model that encodes texts, for an image-only student.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    max_failures: MaxFailures = 0.1,
    device: Device = None,
) -> None:
    """Find the wording of class names that serves a model best.

    Every template alone with its interval, sets, LLM descriptions, the best ensembles chosen on one half of the images
    and measured on the other, and what each does to the classes that are confused most. JSON, CSV and one HTML report
    in --out.
    """
    from clipette import verbs

    result = verbs.prompts(
        model,
        data,
        out=out,
        dev=dev,
        templates=templates or (),
        descriptions=descriptions or (),
        baseline=baseline,
        texts=texts,
        seed=seed,
        batch_size=batch_size,
        max_failures=max_failures,
        device=device,
    )
    print_result(result, out)
