"""``clipette up``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.serve import Host, Limits, NoReadKey, OpenPage, Port, ReadKeys, Threads

EXAMPLES = """\
clipette up ~/Pictures
clipette up photos --model student.bundle --port 8500"""


def up(
    data: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder of pictures, or any data reference.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="REF", help="A bundle or model. Default: CLIPETTE_MODEL, or the demo's student."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the index is kept. Default: in the cache folder.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8400,
    read_keys: ReadKeys = None,
    no_read_key: NoReadKey = False,
    threads: Threads = None,
    limits: Limits = None,
    open_page: OpenPage = True,
) -> None:
    """Index a folder of pictures, serve it and open the page. Run again, it encodes only what is new."""
    from clipette import serving

    serving.up(
        data,
        model=model,
        index=index,
        host=host,
        port=port,
        read_keys=read_keys,
        without_read_key=no_read_key,
        threads=threads,
        overrides=limits or [],
        open_page=open_page,
    )
