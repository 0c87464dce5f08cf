"""``clipette serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

EXAMPLES = """\
clipette serve my.index --model student.bundle
clipette serve my.index --model student.bundle --port 0 --open
clipette serve my.index --model student.bundle --host 0.0.0.0 --read-keys read.txt --write-keys write.txt"""

Host: TypeAlias = Annotated[str, typer.Option(metavar="ADDRESS", help="Default: this machine alone can connect.")]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")]
ReadKeys: TypeAlias = Annotated[
    Path | None, typer.Option("--read-keys", metavar="FILE", help="Bearer keys, one a line. Or: CLIPETTE_READ_KEY.")
]
NoReadKey: TypeAlias = Annotated[
    bool, typer.Option("--no-read-key", help="With a --host that others reach: everyone may search.")
]
Threads: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Threads of a bundle. Default: all cores.")]
Limits: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A limit: timeout=10, batch_size=64, max_image_bytes=4000000, ..."),
]
OpenPage: TypeAlias = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]


def serve(
    index: Annotated[Path, typer.Argument(help="The index, as `clipette index build` wrote it.")],
    model: Annotated[str, typer.Option(metavar="REF", help="A bundle or model of the index's embedding space.")],
    host: Host = "127.0.0.1",
    port: Port = 8400,
    read_keys: ReadKeys = None,
    write_keys: Annotated[
        Path | None,
        typer.Option("--write-keys", metavar="FILE", help="Keys that may add and delete. Or: CLIPETTE_WRITE_KEY."),
    ] = None,
    no_read_key: NoReadKey = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name this server is reached by.")
    ] = None,
    clicks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what users do with results to this file.")
    ] = None,
    threads: Threads = None,
    limits: Limits = None,
    open_page: OpenPage = False,
) -> None:
    """Serve search, classification and embeddings over HTTP, with a web page."""
    from clipette import serving

    serving.serve(
        index,
        model=model,
        host=host,
        port=port,
        read_keys=read_keys,
        write_keys=write_keys,
        without_read_key=no_read_key,
        allowed_hosts=allow_host or [],
        clicks=clicks,
        threads=threads,
        overrides=limits or [],
        open_page=open_page,
    )
