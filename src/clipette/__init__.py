"""Clipette: draws what a large vision-language model knows into a small one, and measures what was kept.

The verbs of the command line are functions here, loaded when first used (importing ``clipette`` imports no PyTorch)::

    import clipette

    encoder = clipette.load("runs/student")
    vectors = encoder.encode_images(["photo.jpg"])

``load``, ``pour``, ``pretrain``, ``adapt``, ``adapt_study``, ``distill``, ``evaluate``, ``compare``, ``prompts``,
``classify``, ``export``, ``add_class``, ``quantize``, ``prune``, ``bench``, ``build_index``, ``open_index``, ``serve``,
``up``, ``demo``, ``doctor``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clipette.version import VERSION as __version__

if TYPE_CHECKING:
    from clipette.health import doctor
    from clipette.index import build_index, open_index
    from clipette.resolve import resolve as load
    from clipette.serving import serve, up
    from clipette.verbs import (
        adapt,
        adapt_study,
        add_class,
        bench,
        classify,
        compare,
        demo,
        distill,
        evaluate,
        export,
        pour,
        pretrain,
        prompts,
        prune,
        quantize,
    )

__all__ = [
    "__version__",
    "adapt",
    "adapt_study",
    "add_class",
    "bench",
    "build_index",
    "classify",
    "compare",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "load",
    "open_index",
    "pour",
    "pretrain",
    "prompts",
    "prune",
    "quantize",
    "serve",
    "up",
]

# Public name -> (module, name there).
_TORCH_FREE = {
    "build_index": ("clipette.index", "build_index"),
    "doctor": ("clipette.health", "doctor"),
    "load": ("clipette.resolve", "resolve"),
    "open_index": ("clipette.index", "open_index"),
    "serve": ("clipette.serving", "serve"),
    "up": ("clipette.serving", "up"),
}
_PUBLIC = {
    **_TORCH_FREE,
    **{verb: ("clipette.verbs", verb) for verb in __all__ if verb not in ("__version__", *_TORCH_FREE)},
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipette' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _Room(ModuleType):
    """A room that shares its name with a verb: calling it is the verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    # Importing the room `clipette.evaluate` makes Python bind it to this package, over the verb of the same name.
    def __setattr__(self, name: str, value: object) -> None:
        if name in _PUBLIC and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
