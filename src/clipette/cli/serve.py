"""``clipette serve`` and ``clipette up``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

SERVE_EXAMPLES = """\
clipette serve my.index --model student.bundle
clipette serve my.index --model student.bundle --port 0 --open
clipette serve my.index --model student.bundle --host 0.0.0.0 --read-keys read.txt --write-keys write.txt"""
UP_EXAMPLES = """\
clipette up ~/Pictures
clipette up photos --model student.bundle --port 8500"""

Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on. The default: this machine alone.")]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")]
ReadKeys: TypeAlias = Annotated[
    Path | None, typer.Option("--read-keys", metavar="FILE", help="Bearer keys, one a line. Or: CLIPETTE_READ_KEY.")
]
WriteKeys: TypeAlias = Annotated[
    Path | None,
    typer.Option("--write-keys", metavar="FILE", help="Keys that may add and delete. Or: CLIPETTE_WRITE_KEY."),
]
NoReadKey: TypeAlias = Annotated[
    bool, typer.Option("--no-read-key", help="With a --host that others reach: everyone may search.")
]
Names: TypeAlias = Annotated[
    list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name this server is reached by.")
]
Sets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A limit: max_image_bytes=4000000, timeout=10, batch_size=64, ..."),
]
Clicks: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Append what users do with results to this file.")
]
Threads: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Threads of the model. Default: all cores.")]
Open: TypeAlias = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]


def serve(
    index: Annotated[Path, typer.Argument(help="The index, as `clipette index build` wrote it.")],
    model: Annotated[str, typer.Option(metavar="REF", help="A bundle or model of the index's embedding space.")],
    host: Host = "127.0.0.1",
    port: Port = 8400,
    read_keys: ReadKeys = None,
    write_keys: WriteKeys = None,
    no_read_key: NoReadKey = False,
    allow_host: Names = None,
    clicks: Clicks = None,
    threads: Threads = None,
    overrides: Sets = None,
    open_page: Open = False,
) -> None:
    """Serve search, classification and embeddings over HTTP, with a web page."""
    from clipette import serving

    given = _settings(host, port, read_keys, write_keys, no_read_key, allow_host, clicks, overrides)
    serving.serve(index, model=model, settings=given, threads=threads, ready=_ready(open_page))


def up(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, or any data reference.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="REF", help="A bundle or model. Default: CLIPETTE_MODEL, or the demo's student."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", metavar="DIR", help="Where the index is kept. Default: the cache folder.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8400,
    read_keys: ReadKeys = None,
    no_read_key: NoReadKey = False,
    threads: Threads = None,
    overrides: Sets = None,
    open_page: Open = True,
) -> None:
    """Index a folder of pictures, serve it and open the page: run again, it adds only what is new."""
    from clipette import serving

    given = _settings(host, port, read_keys, None, no_read_key, None, None, overrides)
    serving.up(str(folder), model=model, index=index, settings=given, threads=threads, ready=_ready(open_page))


def _settings(
    host: str,
    port: int,
    read_keys: Path | None,
    write_keys: Path | None,
    no_read_key: bool,
    allow_host: list[str] | None,
    clicks: Path | None,
    overrides: list[str] | None,
) -> Any:
    from clipette.serve.settings import make_settings

    return make_settings(
        overrides or (),
        read_keys_file=read_keys,
        write_keys_file=write_keys,
        without_read_key=no_read_key,
        host=host,
        port=port,
        allowed_hosts=tuple(allow_host or ()),
        clicks=clicks,
    )


def _ready(open_page: bool) -> Any:
    def ready(url: str) -> None:
        typer.echo(f"open {url}   (API: {url}openapi.json; stop: Ctrl-C)", err=True)
        if open_page:
            import webbrowser

            webbrowser.open(url)

    return ready
