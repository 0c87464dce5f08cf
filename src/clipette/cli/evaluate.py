"""``clipette evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import BatchSize, Data, Device, MaxFailures, Out, Templates, print_result

EXAMPLES = """\
clipette evaluate runs/student --data wds:test.tar --teacher runs/teacher --out reports/student
clipette evaluate open_clip:ViT-B-16/openai --data folder:pets --templates single --corruptions --out reports/b16"""


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a folder, open_clip:, hf:, lit: or stored:.")],
    data: Data,
    out: Out,
    teacher: Annotated[str | None, typer.Option(metavar="REF", help="Also measure agreement and retention.")] = None,
    templates: Templates = "auto",
    descriptions: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Sentences per class, in CuPL's format, in place of templates.")
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also under blur, noise, JPEG, contrast and occlusion.")
    ] = False,
    batch_size: BatchSize = 64,
    max_failures: MaxFailures = 0.1,
    device: Device = None,
) -> None:
    """Measure a model, and how well it follows its teacher.

    Zero-shot, base and novel classes, domains, retrieval, calibration, diversity, corruptions; with --teacher,
    agreement and retention. JSON, CSV and one HTML report in --out.
    """
    from clipette import verbs

    result = verbs.evaluate(
        model,
        data,
        teacher=teacher,
        templates=templates,
        descriptions=descriptions,
        corruptions=corruptions,
        out=out,
        batch_size=batch_size,
        max_failures=max_failures,
        device=device,
    )
    print_result(result, out)
