"""Reference strings to encoders: the only place that knows the kinds. Imports are lazy: a kind costs what it needs.

===========================================  ======================================================================
``open_clip:ViT-B-16/laion2b_s34b_b88k``     any open_clip architecture, with a pretrained tag, a file, or untrained
``hf:google/siglip2-base-patch16-224``       transformers' CLIP, SigLIP, SigLIP 2, ALIGN, by hub id or folder
``lit:./pair.yaml``                          an image backbone and a text encoder, paired by heads
``stored:./embeddings``                      stored embeddings: our store, clip-retrieval's folder, ``.npy``, ``.npz``
``./runs/student``                           a run directory (of an adaptation too), or what ``save_model`` wrote
``adapter:./runs/coop?base=REF``             what ``clipette adapt`` wrote, over its base where that is now
``./student.bundle``                         what ``clipette export`` wrote: it runs without PyTorch
===========================================  ======================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from clipette.errors import ConfigError
from clipette.types import Classifier, Encoder


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


def _adapter(
    rest: str, device: str | None, precision: str, class_names: Sequence[str] = (), *, classifiers: bool = True
) -> Encoder:
    """``PATH`` or ``PATH?base=REFERENCE``: an adapter over its base, which must be the one that it was trained over."""
    from clipette.adapt.adapter import check_base, load_adapter
    from clipette.adapt.forms import CLASSIFIERS, apply_adapter
    from clipette.errors import UnsupportedError
    from clipette.io import digest, digest_json
    from clipette.models.core import weights_digest
    from clipette.models.inference import TorchEncoder
    from clipette.models.saved import state_bytes
    from clipette.tasks.adapt import freeze

    path, _, option = rest.partition("?")
    folder, (name, _, stated) = Path(path).expanduser(), option.partition("=")
    if option and (name != "base" or not stated):
        raise ConfigError(f"model reference 'adapter:{rest}': '{option}' must be base=REFERENCE")
    saved = load_adapter(folder)
    if saved.adapter.form in CLASSIFIERS and not classifiers:
        raise UnsupportedError(
            f"{folder} is a classifier of {len(saved.adapter.classes)} classes: its vectors are logits, and no "
            "image-text space that can be searched or adapted; name its base, or an adaptation that keeps a space "
            "(coop, promptsrc, clip-adapter, ...)"
        )
    try:
        base = resolve(stated or saved.reference, device=device, precision=precision)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: the base of this adaptation is not found: {error}; say where it is now: "
            f"adapter:{folder}?base=REFERENCE"
        ) from error
    if not isinstance(base, TorchEncoder):
        raise ConfigError(f"{folder}: its base '{stated or saved.reference}' is no PyTorch model: adapters need one")
    check_base(saved, weights_digest(base.model), folder)
    adapter = saved.adapter
    classes = tuple(class_names) or adapter.classes
    told = [adapter.form, dict(adapter.facts), adapter.classes, adapter.templates, digest(state_bytes(adapter.tensors))]
    space = digest_json([saved.weights, told, classes if adapter.form in CLASSIFIERS else None])
    model = apply_adapter(freeze(base), adapter, classes)
    return TorchEncoder(model, name=saved.name, space=space, device=device, precision=precision)


def resolve_classifier(
    reference: str, *, class_names: Sequence[str] = (), device: str | None = None, precision: str = "fp32"
) -> Classifier:
    """An adaptation that is a classifier, by default of the classes that it was trained on.

    Raises ``ConfigError`` for anything else, ``UnsupportedError`` for an adaptation that is still an encoder.
    """
    from clipette.adapt.adapter import adapter_folder, load_adapter
    from clipette.adapt.forms import CLASSIFIERS
    from clipette.adapt.packed import PackedClassifier
    from clipette.errors import UnsupportedError
    from clipette.models.inference import TorchEncoder

    folder = Path(reference.removeprefix("adapter:").partition("?")[0]).expanduser()
    if adapter_folder(folder) is None:
        raise ConfigError(f"model reference '{reference}': no adaptation; `clipette adapt` makes classifiers")
    adapter = load_adapter(folder).adapter
    if adapter.form not in CLASSIFIERS:
        raise UnsupportedError(f"{folder} has one image-text space: it is an encoder; classify by its texts")
    classes = tuple(class_names) or adapter.classes
    encoder = _adapter(reference.removeprefix("adapter:"), device, precision, classes)
    assert isinstance(encoder, TorchEncoder)
    return PackedClassifier(encoder, classes)


def _is_adapter(path: Path) -> bool:
    return any((folder / "adapter.json").is_file() for folder in (path, path / "model"))


def resolve(
    reference: str | Path,
    *,
    device: str | None = None,
    precision: str = "fp32",
    class_names: Sequence[str] = (),
    classifiers: bool = True,
) -> Encoder:
    """The encoder that ``reference`` names. ``class_names``: what an adaptation that is a classifier chooses from, by
    default the classes that it was trained on; nothing to all others. ``classifiers``: whether one will do.

    Raises ``ConfigError`` on an unknown kind or a missing path, ``UnsupportedError`` for an unwanted classifier.
    """
    reference = str(reference)
    kind, colon, rest = reference.partition(":")
    if colon and kind == "adapter":
        return _adapter(rest, device, precision, class_names, classifiers=classifiers)
    if colon and kind in KINDS:
        # A home folder is meant in every kind that names a path.
        return KINDS[kind](str(Path(rest).expanduser()) if rest.startswith("~") else rest, device, precision)
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        if (path / "store.json").is_file():
            return _stored(str(path), device, precision)
        if (path / "manifest.json").is_file():
            return _bundle(str(path), device, precision)
        if _is_adapter(path):
            return _adapter(str(path), device, precision, class_names, classifiers=classifiers)
        return _folder(str(path), device, precision)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _stored(str(path), device, precision)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _lit(str(path), device, precision)
    if colon and kind.isidentifier():
        known = (*KINDS, "adapter")
        near = difflib.get_close_matches(kind, known, 1)
        hint = f"did you mean '{near[0]}:'?" if near else f"known kinds: {', '.join(known)}"
        raise ConfigError(f"model reference '{reference}': unknown kind '{kind}'; {hint}")
    raise ConfigError(
        f"model reference '{reference}': no such folder; a run directory, or one of {', '.join(f'{k}:' for k in KINDS)}"
    )
