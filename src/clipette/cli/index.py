"""``clipette index``: build, add, delete, search, verify, rebuild, info."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from clipette.cli.options import BatchSize, Device, MaxFailures, print_result, words

Index: TypeAlias = Annotated[Path, typer.Argument(metavar="INDEX", help="The index: a folder.")]
Sources: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="DATA...", help="Data sources: a folder, wds:x.tar, csv:, parquet:, text:, ...")
]
Model: TypeAlias = Annotated[str, typer.Option("--model", metavar="REF", help="The model that encodes: a bundle, ...")]
SomeModel: TypeAlias = Annotated[
    str | None, typer.Option("--model", metavar="REF", help="A model of the index' space: a bundle, a run, ...")
]
Where: TypeAlias = Annotated[
    str | None, typer.Option(metavar="FILTER", help="For example \"domain = 'photo' AND year > 2019\".")
]
Texts = Literal["none", "captions"]
Kinds = Literal["image", "text", "any"]

BUILD = """\
clipette index build photos/ --model student.bundle -o my.index
clipette index build wds:test.tar --model runs/student --texts captions -o my.index
clipette index build parquet:big/ --model student.bundle --store milvus://10.0.0.5:19530 -o big.index"""
ADD = """\
clipette index add my.index photos/ --model student.bundle           # only what is new or changed is encoded
clipette index add my.index other/ --model student.bundle --prefix other/"""
DELETE = """\
clipette index delete my.index holiday/0001 holiday/0002
clipette index delete my.index --where "split = 'draft'\""""
SEARCH = """\
clipette index search my.index "a dog on a beach -people" --model student.bundle -k 10
clipette index search my.index --image photo.jpg --model student.bundle --kind text
clipette index search my.index --like-key holiday/0001 --where "year > 2019" --mmr 0.7"""
VERIFY = """\
clipette index verify my.index
clipette index verify my.index --queries wds:test.tar --model student.bundle   # a student on its teacher's index"""
REBUILD = """\
clipette index rebuild my.index
clipette index rebuild my.index --recall 0.995"""
CLICKS = (
    "clipette index clicks my.index clicks.jsonl --model student.bundle   # of clipette serve --clicks clicks.jsonl"
)
INFO = "clipette index info my.index"


def build(
    data: Sources,
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The new index.")],
    texts: Annotated[Texts, typer.Option(help="captions: an image's captions can be found too.")] = "none",
    store: Annotated[str, typer.Option(metavar="STORE", help="lance, or milvus://HOST:PORT.")] = "lance",
    recall: Annotated[float, typer.Option(help="recall@10 asked of approximate search, filters included.")] = 0.98,
    exact_rows: Annotated[int, typer.Option(min=0, help="Up to so many rows every search is exact.")] = 50_000,
    max_failures: MaxFailures = 0.1,
    batch_size: BatchSize = 64,
    device: Device = None,
) -> None:
    """Encode images and texts into a new index. A build that was killed goes on when it is called again."""
    from clipette import indexing

    found = indexing.build(
        data,
        model,
        out,
        texts=texts,
        store=store,
        recall=recall,
        exact_rows=exact_rows,
        max_failures=max_failures,
        batch_size=batch_size,
        device=device,
    )
    print_result(found)


def add(
    index: Index,
    data: Sources,
    model: Model,
    texts: Annotated[Texts | None, typer.Option(help="Default: as at the build.")] = None,
    prefix: Annotated[str, typer.Option(help="Put before every key, where two sources use the same.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Let a key be taken over by another file.")] = False,
    batch_size: BatchSize = 64,
    device: Device = None,
) -> None:
    """Add images and texts, or bring them up to date: only what is new or has changed is encoded."""
    from clipette import indexing

    found = indexing.add(
        index, data, model, texts=texts, prefix=prefix, replace=replace, batch_size=batch_size, device=device
    )
    print_result(found)


def delete(
    index: Index,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Keys of rows.")] = None,
    where: Where = None,
) -> None:
    """Delete rows by key or by a filter; an image's captions go with it."""
    from clipette import indexing

    print_result(indexing.delete(index, keys or [], where=where))


def search(
    index: Index,
    text: Annotated[
        str | None, typer.Argument(help='What to look for; a term after - is unwanted: "beach -car".')
    ] = None,
    model: SomeModel = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to look for.")] = None,
    key: Annotated[str | None, typer.Option("--like-key", metavar="KEY", help="More like this row.")] = None,
    without: Annotated[list[str] | None, typer.Option("--without", metavar="TEXT", help="What must not show.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weight", metavar="PART=NUMBER", help="Of text, image, key, negative.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 20,
    where: Where = None,
    kind: Annotated[Kinds, typer.Option(help="What to find.")] = "image",
    mmr: Annotated[float | None, typer.Option(min=0, max=1, help="Re-rank: 0 diverse, 1 relevant.")] = None,
    group: Annotated[bool, typer.Option("--group", help="Fold near-duplicates into one result.")] = False,
    threshold: Annotated[str, typer.Option(help="auto, none, or a cosine: results below it are marked.")] = "auto",
    liked: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Results that are right. Repeatable.")] = None,
    disliked: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Results that are wrong.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every row.")] = False,
    device: Device = None,
) -> None:
    """Search by text, by picture, by a row's key, or by several of them at once."""
    from clipette import indexing

    found = indexing.search(
        index,
        text,
        model=model,
        image=image,
        key=key,
        negatives=without or [],
        weights=_weights(weights),
        k=k,
        where=where,
        kind=kind,
        mmr=mmr,
        group=group,
        threshold=_threshold(threshold),
        liked=words(liked),
        disliked=words(disliked),
        exact=True if exact else None,
        device=device,
    )
    if sys.stdout.isatty():
        show(found)
    else:
        print_result(found)


def verify(
    index: Index,
    recall: Annotated[bool, typer.Option("--recall/--no-recall", help="Measure recall too.")] = True,
    queries: Annotated[
        str | None, typer.Option(metavar="REF", help="Indexed data: what --model's queries find there.")
    ] = None,
    model: SomeModel = None,
    own: Annotated[str | None, typer.Option(metavar="REF", help="The model that built it, for comparison.")] = None,
    device: Device = None,
) -> None:
    """Compare every file with its checksum, the vector store with the rows, and measure recall."""
    from clipette import indexing

    found = indexing.verify(index, recall=recall, queries=queries, model=model, own=own, device=device)
    print_result(found)
    if not found["sound"]:
        raise typer.Exit(1)


def rebuild(
    index: Index,
    recall: Annotated[float | None, typer.Option(help="recall@10 to ask for. Default: as at the build.")] = None,
    model: SomeModel = None,
    device: Device = None,
) -> None:
    """Make the vector store anew from the rows and measure recall; with --model, calibrate scores anew."""
    from clipette import indexing

    print_result(indexing.rebuild(index, recall=recall, model=model, device=device))


def clicks(
    index: Index,
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The file of clipette serve --clicks.")],
    model: SomeModel = None,
    device: Device = None,
) -> None:
    """Ask what users asked again, and see where the results that they chose rank now."""
    from clipette import indexing

    print_result(indexing.clicks(index, log, model=model, device=device))


def info(index: Index) -> None:
    """Show what an index holds: its model, rows, columns, measured recall, size."""
    from clipette import indexing

    print_result(indexing.info(index))


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "build": (build, BUILD),
    "add": (add, ADD),
    "delete": (delete, DELETE),
    "search": (search, SEARCH),
    "verify": (verify, VERIFY),
    "rebuild": (rebuild, REBUILD),
    "clicks": (clicks, CLICKS),
    "info": (info, INFO),
}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Build, change, search and check an index of images and texts.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _name, (_function, _examples) in COMMANDS.items():
    _indented = "\n".join(f"  {line}" for line in _examples.splitlines())
    app.command(_name, epilog=f"\b\nExamples:\n{_indented}")(_function)


def show(found: Mapping[str, Any]) -> None:
    """Results for a person: a line each; scripts get JSON."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(highlight=False), Table(box=None, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("cosine", justify="right")
    if found["calibrated"]:
        table.add_column("confidence", justify="right")
    table.add_column("key", overflow="fold")
    table.add_column("text" if any(hit["text"] for hit in found["hits"]) else "where", overflow="fold", style="dim")
    for hit in found["hits"]:
        sure = [] if not found["calibrated"] else ["" if hit["confidence"] is None else f"{hit['confidence']:.0%}"]
        folded = f" (+{len(hit['duplicates'])} alike)" if hit["duplicates"] else ""
        # A key is no markup.
        named = (Text(hit["key"] + folded), Text(hit["text"] or hit["location"]))
        table.add_row(
            str(hit["rank"]), f"{hit['score']:.3f}", *sure, *named, style="dim" if hit["fits"] is False else None
        )
    console.print(table)
    if found["below_threshold"]:
        console.print("nothing fits well: no result reaches the threshold; these are the nearest", style="yellow")
    console.print(f"{len(found['hits'])} results in {found['took_ms']:.0f} ms", style="dim")


def _weights(given: list[str] | None) -> dict[str, float]:
    """``text=2``, one by one. Raises ``ConfigError``."""
    from clipette.errors import ConfigError

    found: dict[str, float] = {}
    for each in given or ():
        name, equals, number = each.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--weight {each}: expected PART=NUMBER, for example --weight text=2")
    return found


def _threshold(text: str) -> float | Literal["auto"] | None:
    """``auto``, ``none`` or a cosine. Raises ``ConfigError``."""
    from clipette.errors import ConfigError

    if text == "auto":
        return "auto"
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--threshold {text}: expected auto, none, or a cosine such as 0.25") from None
