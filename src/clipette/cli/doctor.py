"""``clipette doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result

EXAMPLES = """\
clipette doctor
clipette doctor stores/teacher runs/student
clipette doctor --json"""


def doctor(
    paths: Annotated[list[Path] | None, typer.Argument(help="Stores, runs or model folders to look through.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of lines.")] = False,
) -> None:
    """Say what this machine has and lacks, and check folders.

    Exit code 1 if a store or run given is not sound.
    """
    from clipette import health

    findings = health.doctor(paths or [])
    if as_json:
        print_result({finding.name: {"status": finding.status, "value": finding.value} for finding in findings})
    else:
        for finding in findings:
            typer.echo(f"{finding.status:<5} {finding.name:<16} {finding.value}")
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)
