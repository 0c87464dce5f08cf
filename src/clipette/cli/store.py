"""``clipette store``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import print_result

EXAMPLES = """\
clipette store stores/teacher                                 # what it holds, and what could not be read
clipette store stores/teacher --verify                        # compare every file with its checksum
clipette store stores/teacher --export-clip-retrieval emb/    # img_emb/, text_emb/, metadata/
clipette store stores/laion --import-clip-retrieval emb/      # a folder of clip-retrieval as a store"""


def store(
    path: Annotated[Path, typer.Argument(help="The store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged shards: the next pour fills the gap with the same outputs.")
    ] = False,
    export_clip_retrieval: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the images' vectors as clip-retrieval's folder.")
    ] = None,
    import_clip_retrieval: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Make the store from clip-retrieval's folder.")
    ] = None,
) -> None:
    """Show what a store holds; check it; exchange it with clip-retrieval."""
    from clipette import store as room

    if import_clip_retrieval is not None:
        room.import_clip_retrieval(import_clip_retrieval, path)
    if repair:
        dropped = room.repair(path)
        typer.echo(f"dropped {len(dropped)} damaged shards" if dropped else "nothing is damaged")
    # What a killed pour has committed is worth seeing too; an exchange needs the whole.
    opened = room.open_store(path, unfinished=export_clip_retrieval is None)
    if verify:
        opened.verify()
    if export_clip_retrieval is not None:
        room.export_clip_retrieval(opened, export_clip_retrieval)
    print_result(room.describe(opened))
