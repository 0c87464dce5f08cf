"""The verbs put together, and errors turned into messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from clipette.cli import (
    adapt,
    add_class,
    bench,
    classify,
    compare,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    index,
    pour,
    pretrain,
    prompts,
    prune,
    quantize,
    recipes,
    render,
    serve,
    store,
    up,
)
from clipette.errors import ClipetteError, UserError
from clipette.version import VERSION

# Verb -> (function, examples), in the order of a first day with Clipette.
VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo.demo, demo.EXAMPLES),
    "pretrain": (pretrain.pretrain, pretrain.EXAMPLES),
    "pour": (pour.pour, pour.EXAMPLES),
    "store": (store.store, store.EXAMPLES),
    "adapt": (adapt.adapt, adapt.EXAMPLES),
    "distill": (distill.distill, distill.EXAMPLES),
    "evaluate": (evaluate.evaluate, evaluate.EXAMPLES),
    "compare": (compare.compare, compare.EXAMPLES),
    "prompts": (prompts.prompts, prompts.EXAMPLES),
    "classify": (classify.classify, classify.EXAMPLES),
    "export": (export.export, export.EXAMPLES),
    "add-class": (add_class.add_class, add_class.EXAMPLES),
    "quantize": (quantize.quantize, quantize.EXAMPLES),
    "prune": (prune.prune, prune.EXAMPLES),
    "bench": (bench.bench, bench.EXAMPLES),
    "serve": (serve.serve, serve.EXAMPLES),
    "up": (up.up, up.EXAMPLES),
    "render": (render.render, render.EXAMPLES),
    "recipes": (recipes.recipes, recipes.EXAMPLES),
    "doctor": (doctor.doctor, doctor.EXAMPLES),
}

# What a missing library means: the extra that brings it.
EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "accelerate": "train",
    "open_clip": "train",
    "timm": "train",
    "transformers": "train",
    "safetensors": "train",
    "datasets": "train",
    "ftfy": "train",
    "matplotlib": "train",
    "jinja2": "train",
    "tensorboard": "tensorboard",
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "nncf": "openvino",
    "lancedb": "index",
    "pymilvus": "index",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "ray": "scale",
}

app = typer.Typer(
    name="clipette",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipette {VERSION}")
        raise typer.Exit


@app.callback(epilog="Examples and options of a verb: clipette VERB --help")
def _clipette(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw what a large vision-language model knows into a small one, and measure what was kept."""


for _name, (_function, _examples) in VERBS.items():
    _indented = "\n".join(f"  {line}" for line in _examples.splitlines())
    app.command(_name, epilog=f"\b\nExamples:\n{_indented}")(_function)
app.add_typer(index.app, name="index")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    0 done; 1 a bug or an unsound folder; 2 wrong input, missing extra or full disk; 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        typer.main.get_command(app)(given, prog_name="clipette")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error, debug)
    return 0


def _explain(error: Exception, debug: bool) -> int:
    """Print one message in plain words on stderr; the exit code."""
    if isinstance(error, UserError):
        return _say(str(error), 2)
    if isinstance(error, ClipetteError):
        return _say(f"internal error: {error}\nPlease report this, with the output of the same command and --debug.", 1)
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = EXTRAS.get(error.name.partition(".")[0])
        if extra:
            return _say(f"this needs the library {error.name!r}: pip install 'clipette[{extra}]'", 2)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return _say(f"the disk is full{where}; free some space and run the same command again: what is done is kept", 2)
    if isinstance(error, PermissionError):
        return _say(f"{error.filename}: permission denied; choose another folder or change its permissions", 2)
    if (
        isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError)
        and error.filename
    ):
        return _say(f"{error.filename}: {error.strerror}; name another path", 2)
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has gone: nothing more to say, and Python's own flush at exit must not say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if not debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    return _say("this is a bug in Clipette: please report the lines above", 1)


def _say(message: str, code: int) -> int:
    typer.echo(f"clipette: {message}", err=True)
    return code
