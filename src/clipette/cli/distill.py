"""``clipette distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import Dev, Device, Overrides, Resume, TrainingData

EXAMPLES = """\
clipette distill --teacher runs/teacher --data wds:train.tar --out runs/student
clipette distill recipe.yaml --store stores/teacher --data wds:train.tar --out runs/student
clipette distill recipe.yaml --teacher runs/teacher --data wds:train.tar --out runs/student --set seed=1
clipette distill --budget 10m --teacher runs/teacher --data wds:train.tar --out runs/student
clipette distill recipe.yaml --teacher runs/teacher --teacher-online --data folder:photos --out runs/online"""


def distill(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory.")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or a name from `clipette recipes`. Without one, student, losses and schedule are chosen "
            "by what the data has and what the teacher is worth."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(metavar="REF", help="The teacher; poured first if need be.")] = None,
    data: TrainingData = None,
    dev: Dev = None,
    student: Annotated[str | None, typer.Option(metavar="REF", help="The student, in place of the recipe's.")] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="A store that `clipette pour` wrote.")] = None,
    teacher_online: Annotated[
        bool, typer.Option("--teacher-online", help="Run the teacher in the loop: slower, for comparison.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|GMACS",
            help="In place of a recipe: 10m, 0.1gmacs or 10m,0.1gmacs chooses the student's size, losses and schedule. "
            "The time counts pouring and training; GMACs are the student's image tower's, per image.",
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = True,
    device: Device = None,
) -> None:
    """Train a student on a teacher's stored outputs."""
    from clipette import verbs

    run = verbs.distill(
        recipe,
        teacher=teacher,
        data=data,
        dev=dev,
        student=student,
        store=store,
        teacher_online=teacher_online,
        budget=budget,
        overrides=overrides or [],
        out=out,
        resume=resume,
        device=device,
    )
    typer.echo(str(run))
