"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from clipette.errors import ConfigError

Data: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="REF",
        help="A data source: folder:, wds:, csv:, tsv:, parquet:, coco:, karpathy:, hf:, world: or a path; "
        "options after `?`, for example `wds:x.tar?split=test`. May be given several times.",
    ),
]
TrainingData: TypeAlias = Annotated[
    str | None, typer.Option("--data", metavar="REF", help="Training data, in place of the recipe's.")
]
Dev: TypeAlias = Annotated[
    str | None, typer.Option(metavar="REF", help="Data for evaluation during training, in place of the recipe's.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe: train.steps=100. May be repeated."),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue what --out holds, if anything.")
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the best there is.")
]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, help="Images a batch.")]
MaxFailures: TypeAlias = Annotated[float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")]
Templates: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Prompt templates for class names: none, single, openai80, plain, detail, ..., or one with {} in it. "
        "auto: openai80, or the wording that a student's stored texts have.",
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Everything random comes from this number.")]
Out: TypeAlias = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]


def words(values: Sequence[str] | None) -> list[str]:
    """``["dog, cat", "horse"]`` as given on a command line, one by one: ``["dog", "cat", "horse"]``."""
    return [word.strip() for value in values or () for word in value.split(",") if word.strip()]


def mapping(text: str | None, option: str) -> dict[str, object] | None:
    """Keys and values given in one option as YAML: ``'{scale: [0.5, 1.0], flip: 0.5}'``.

    Raises ``ConfigError`` where it is anything else.
    """
    from clipette.plain_yaml import parse_yaml

    if text is None:
        return None
    value, _ = parse_yaml(text, option)
    if not isinstance(value, dict):
        raise ConfigError(f"{option} {text!r}: expected keys and values, for example '{{scale: [0.5, 1.0], flip: 0}}'")
    return value


def print_result(result: Mapping[str, object], written: Path | None = None) -> None:
    """The figures as one JSON object on one line: the last line of a verb, for scripts to read.

    On a terminal sits a person: indented, or only where the report was ``written``, for its tables were shown above.
    """
    if not sys.stdout.isatty():
        typer.echo(json.dumps(result, ensure_ascii=False))
    elif written is None:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        typer.echo(f"report: {written / 'report.html'}   figures: {written / 'summary.json'}")
