"""``clipette adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipette.cli.options import Dev, Device, Overrides, Resume, TrainingData, print_result, words

EXAMPLES = """\
clipette adapt coop --base open_clip:ViT-B-16/openai --data 'folder:pets?shots=16' --out runs/coop
clipette adapt upl --base runs/teacher --data folder:unlabelled?names=classes.txt --out runs/upl
clipette adapt tip-adapter --base runs/teacher --data wds:train.tar --dev wds:dev.tar --out runs/tip
clipette adapt zero-shot coop --base runs/teacher --data wds:pets.tar --protocol base-to-novel --out b2n"""


def adapt(
    recipes: Annotated[list[str], typer.Argument(help="A YAML file, or a name from `clipette recipes`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory, or the study's.")],
    base: Annotated[
        str | None, typer.Option(metavar="REF", help="The model to adapt, in place of the recipe's.")
    ] = None,
    data: TrainingData = None,
    dev: Dev = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="The base's vectors, if poured already.")] = None,
    overrides: Overrides = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare recipes: few-shot, base-to-novel, cross-dataset or domain-generalisation, over --seeds.",
        ),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="REF", help="With --protocol: test data, where --data states no split.")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(metavar="N,N", help="With --protocol: images a class, for example 1,2,4,8,16.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N", help="With --protocol: which shots and starts. Default: 1,2,3.")
    ] = None,
    max_failures: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of images that may be unreadable. Default: 0.1.")
    ] = None,
    resume: Resume = True,
    device: Device = None,
) -> None:
    """Make a frozen model better in a domain: prompts, adapters, probes; or compare such methods by a protocol."""
    from clipette import verbs
    from clipette.errors import ConfigError

    changes = [*(overrides or []), *([] if max_failures is None else [f"train.max_failures={max_failures}"])]
    if protocol is None:
        if len(recipes) != 1 or test or shots or seeds:
            raise ConfigError(
                "several recipes, --test, --shots and --seeds belong to a comparison: name its --protocol; for one run "
                "--set shots=16, --set seed=1"
            )
        run = verbs.adapt(
            recipes[0],
            base=base,
            data=data,
            dev=dev,
            out=out,
            store=store,
            overrides=changes,
            resume=resume,
            device=device,
        )
        typer.echo(str(run))
        return
    if base is None or data is None or dev is not None or store is not None:
        raise ConfigError("--protocol needs --base and --data, and draws its own --dev and --store: leave these out")
    result = verbs.adapt_study(
        recipes,
        protocol,
        base=base,
        data=data,
        tests=test or [],
        shots=numbers(shots, "--shots"),
        seeds=numbers(seeds or "1,2,3", "--seeds"),
        out=out,
        overrides=changes,
        resume=resume,
        device=device,
    )
    print_result(result)


def numbers(text: str | None, option: str) -> list[int]:
    """``"1,2,4"`` as numbers. Raises ``ConfigError`` for anything else."""
    from clipette.errors import ConfigError

    try:
        return [int(word) for word in words([text] if text else [])]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected whole numbers, for example 1,2,4") from None
