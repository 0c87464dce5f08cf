"""``clipette add-class``."""

from __future__ import annotations

from typing import Annotated

import typer

from clipette.cli.options import print_result, words

EXAMPLES = """\
clipette add-class pets.bundle "a parrot,a fish" --model runs/student"""


def add_class(
    bundle: Annotated[str, typer.Argument(help="A class bundle, from `clipette export --labels`.")],
    names: Annotated[list[str], typer.Argument(metavar="A,B,...", help="The new classes.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Whose text tower words them: the bundle's own model.")],
) -> None:
    """Add classes to a bundle that has no text tower."""
    from clipette import verbs

    print_result(verbs.add_class(bundle, words(names), model=model))
