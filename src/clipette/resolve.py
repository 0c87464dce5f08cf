"""Reference strings to encoders: the only place that knows the kinds. Imports are lazy: a kind costs what it needs.

===========================================  ======================================================================
``open_clip:ViT-B-16/laion2b_s34b_b88k``     any open_clip architecture, with a pretrained tag, a file, or untrained
``hf:google/siglip2-base-patch16-224``       transformers' CLIP, SigLIP, SigLIP 2, ALIGN, by hub id or folder
``lit:./pair.yaml``                          an image backbone and a text encoder, paired by heads
``stored:./embeddings``                      stored embeddings: our store, clip-retrieval's folder, ``.npy``, ``.npz``
``./runs/student``                           a run directory, or a folder that ``save_model`` wrote
``./student.bundle``                         what ``clipette export`` wrote: it runs without PyTorch
===========================================  ======================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from clipette.errors import ConfigError
from clipette.types import Encoder


def _open_clip(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.models.inference import TorchEncoder
    from clipette.models.open_clip_models import load_open_clip

    return TorchEncoder(load_open_clip(rest), name=rest, device=device, precision=precision)


def _hf(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.models.inference import TorchEncoder
    from clipette.models.transformers_models import load_transformers

    return TorchEncoder(load_transformers(rest), name=Path(rest).name, device=device, precision=precision)


def _lit(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.models.inference import TorchEncoder
    from clipette.models.students import load_pair

    return TorchEncoder(load_pair(Path(rest)), name=Path(rest).stem, device=device, precision=precision)


def _stored(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.models.stored import open_stored

    return open_stored(rest)


def _bundle(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.runtime import load_bundle

    return load_bundle(rest, name=Path(rest).name)


def _folder(rest: str, device: str | None, precision: str) -> Encoder:
    from clipette.models.inference import TorchEncoder
    from clipette.models.saved import load_model

    saved = load_model(Path(rest))
    return TorchEncoder(saved.model, name=saved.name, space=saved.space, device=device, precision=precision)


KINDS: dict[str, Callable[[str, str | None, str], Encoder]] = {
    "open_clip": _open_clip,
    "hf": _hf,
    "lit": _lit,
    "stored": _stored,
    "run": _folder,
}


def resolve(reference: str, *, device: str | None = None, precision: str = "fp32") -> Encoder:
    """The encoder that ``reference`` names. Raises ``ConfigError`` on an unknown kind or a missing path."""
    kind, colon, rest = reference.partition(":")
    if colon and kind in KINDS:
        # A home folder is meant in every kind that names a path.
        return KINDS[kind](str(Path(rest).expanduser()) if rest.startswith("~") else rest, device, precision)
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        if (path / "store.json").is_file():
            return _stored(str(path), device, precision)
        if (path / "manifest.json").is_file():
            return _bundle(str(path), device, precision)
        return _folder(str(path), device, precision)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _stored(str(path), device, precision)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _lit(str(path), device, precision)
    if colon and kind.isidentifier():
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"did you mean '{near[0]}:'?" if near else f"known kinds: {', '.join(KINDS)}"
        raise ConfigError(f"model reference '{reference}': unknown kind '{kind}'; {hint}")
    raise ConfigError(
        f"model reference '{reference}': no such folder; a run directory, or one of {', '.join(f'{k}:' for k in KINDS)}"
    )
