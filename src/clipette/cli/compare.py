"""``clipette compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from clipette.cli.options import BatchSize, Data, Device, MaxFailures, Out, Templates, print_result

EXAMPLES = """\
clipette compare runs/teacher runs/student --data wds:test.tar --out reports/compare
clipette compare open_clip:ViT-L-14/openai open_clip:ViT-B-32/openai --data folder:pets --out reports/two"""


def compare(
    models: Annotated[list[str], typer.Argument(help="Two models or more; the first is what others are measured by.")],
    data: Data,
    out: Out,
    templates: Templates = "auto",
    batch_size: BatchSize = 64,
    max_failures: MaxFailures = 0.1,
    device: Device = None,
) -> None:
    """Put models side by side: cost, speed, quality.

    Parameters, GMACs, size on disk, latency, throughput, speed-up and compression, and the figures of `evaluate`.
    """
    from clipette import verbs

    result = verbs.compare(
        models,
        data,
        templates=templates,
        out=out,
        batch_size=batch_size,
        max_failures=max_failures,
        device=device,
    )
    print_result(result, out)
