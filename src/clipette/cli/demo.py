"""``clipette demo``."""

from __future__ import annotations

from pathlib import Path

from clipette.cli.options import Out, Seed, print_result

EXAMPLES = """\
clipette demo
clipette demo --out runs/demo-1 --seed 1"""


def demo(out: Out = Path("runs/demo"), seed: Seed = 0) -> None:
    """Teacher, student and report on a rendered sample world."""
    from clipette import verbs

    print_result(verbs.demo(out, seed))
