"""``clipette pour``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import BatchSize, Data, Device, MaxFailures, Seed, Templates, mapping

EXAMPLES = """\
clipette pour runs/teacher --data wds:train.tar --out stores/teacher
clipette pour open_clip:ViT-B-16/laion2b_s34b_b88k --data folder:photos --no-captions --views 4 --out stores/b16
clipette pour runs/teacher --data folder:photos --views 2 --view-policy '{scale: [0.3, 1.0], flip: 0.5}' --out s"""


def pour(
    teacher: Annotated[str, typer.Argument(help="The teacher: a run, a folder, open_clip:, hf:, lit:, stored:.")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The store; an unfinished one is continued.")],
    captions: Annotated[bool, typer.Option("--captions/--no-captions", help="Also pour the captions.")] = True,
    classes: Annotated[
        bool, typer.Option("--classes/--no-classes", help="Also pour the class names, by --templates.")
    ] = True,
    templates: Templates = "single",
    recipe: Annotated[
        str | None, typer.Option("--for", metavar="RECIPE", help="Draw the views that this recipe asks for.")
    ] = None,
    views: Annotated[int, typer.Option(min=0, help="Augmented views an image, besides the image itself.")] = 0,
    view_policy: Annotated[
        str | None, typer.Option(metavar="YAML", help="How views are drawn: '{scale: [0.5, 1.0], flip: 0.5}'.")
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, fp32 or bf16.")] = "auto",
    max_failures: MaxFailures = 0.1,
    seed: Seed = 0,
    text_corpus: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="More texts to pour: text:lines.txt. May be repeated.")
    ] = None,
) -> None:
    """Run the teacher once and store its outputs."""
    from clipette import verbs

    store = verbs.pour(
        teacher,
        data,
        out,
        captions=captions,
        classes=classes,
        templates=templates,
        recipe=recipe,
        views=views,
        view_policy=mapping(view_policy, "--view-policy"),
        batch_size=batch_size,
        device=device,
        precision=precision,
        max_failures=max_failures,
        seed=seed,
        text_corpus=text_corpus or [],
    )
    typer.echo(str(store))
