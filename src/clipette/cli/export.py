"""``clipette export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result

EXAMPLES = """\
clipette export runs/student --out student.bundle             # two ONNX graphs, tokenizer, preprocessing, card
clipette export open_clip:MobileCLIP-S1/datacompdr --out s1.bundle
clipette classify photo.jpg --model student.bundle --labels "a dog,a cat"    # a bundle stands wherever a model does"""


def export(
    model: Annotated[str, typer.Argument(help="The model: a run, a folder, open_clip:, hf:, lit:.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The bundle; a bundle there is replaced.")],
) -> None:
    """Write a model as a bundle that needs no PyTorch."""
    from clipette import verbs

    print_result(verbs.export(model, out))
