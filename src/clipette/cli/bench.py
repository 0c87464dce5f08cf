"""``clipette bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from clipette.cli.options import Out, print_result

EXAMPLES = """\
clipette bench runs/teacher student.bundle student-int8.bundle --data wds:test.tar --out reports/bench
clipette bench student.bundle --threads 1 --out reports/bench"""


def bench(
    models: Annotated[list[str], typer.Argument(help="Models and bundles, the teacher first.")],
    out: Out,
    data: Annotated[
        str | None, typer.Option(metavar="REF", help="Data for the task figure: captions, or classes.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each model. Default: all cores.")] = None,
) -> None:
    """Time models and bundles on this machine: latency, throughput, memory, size, and the Pareto front."""
    from clipette import verbs

    print_result(verbs.bench(models, data=data, out=out, threads=threads))
