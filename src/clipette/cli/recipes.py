"""``clipette recipes``."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\
clipette recipes
clipette recipes pretrain/clip > mine.yaml"""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, to start one's own from.")] = None,
) -> None:
    """List the recipes in the package, or print one."""
    from clipette.config import describe_recipes, find_recipe

    if name is not None:
        typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    for each, line in describe_recipes().items():
        typer.echo(f"{each:<32} {line}")
