"""Stored embeddings as an encoder: our store, clip-retrieval's folder, ``.npy`` or ``.npz`` with keys. No model needed.

``stored:PATH?option=value&…``, where PATH is a store, a clip-retrieval folder, or an array file::

    stored:./store
    stored:./clip_retrieval_folder?scale=100
    stored:vectors.npy?keys=keys.txt
    stored:x.npz?images=image_features&image_keys=files&texts=text_features&text_keys=names&prompt=a {}&scale=100
"""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from clipette.data.prompts import fill
from clipette.errors import ConfigError, StoreError
from clipette.io import digest_file, digest_json
from clipette.models.stored_vectors import ArrayLookup, StoredEncoder, StoredFacts
from clipette.store import open_store
from clipette.store.clip_retrieval import IMAGE_FOLDER, TEXT_FOLDER, read_clip_retrieval

__all__ = ["StoredEncoder", "open_stored"]

COMMON = {"scale": "logit scale (100 for CLIP)", "bias": "logit bias", "name": "for tables", "space": "id of the space"}
NPY = {"keys": "file of keys, one a line, or a JSON list", **COMMON}
NPZ = {
    "images": "array of image vectors",
    "image_keys": "array of their keys",
    "texts": "array of text vectors",
    "text_keys": "array of their texts or class names",
    "prompt": "template that the class names were filled into: a photo of a {}",
    **COMMON,
}


def open_stored(reference: str) -> StoredEncoder:
    """The stored encoder of a reference (with or without ``stored:``).

    Raises:
        ConfigError: an unknown option, or one that is missing.
        StoreError: nothing there, damaged, or keys that do not fit.
    """
    body, _, tail = reference.removeprefix("stored:").partition("?")
    path = Path(body).expanduser()
    options = _options(reference, tail)
    if (path / "store.json").is_file():
        _check(reference, options, COMMON)
        store = open_store(path)
        return _with_options(StoredEncoder.of_store(store), options, reference)
    if (path / IMAGE_FOLDER).is_dir() or (path / TEXT_FOLDER).is_dir():
        _check(reference, options, COMMON)
        return _with_options(_clip_retrieval(path), options, reference)
    if path.suffix == ".npz" and path.is_file():
        _check(reference, options, NPZ)
        return _with_options(_npz(path, options, reference), options, reference)
    if path.suffix == ".npy" and path.is_file():
        _check(reference, options, NPY)
        return _with_options(_npy(path, options, reference), options, reference)
    raise ConfigError(
        f"{reference}: no stored embeddings there; expected a store (store.json), a clip-retrieval folder (img_emb/), "
        "a .npz or a .npy file"
    )


def _clip_retrieval(path: Path) -> StoredEncoder:
    parts = list(read_clip_retrieval(path))
    images = [part for part in parts if part.images is not None]
    texts = [part for part in parts if part.texts is not None]
    image_table = text_table = None
    if images:
        keys = [key for part in images for key in part.keys]
        image_table = ArrayLookup(keys, _joined([part.images for part in images]), f"{path}/{IMAGE_FOLDER}")
    if texts:
        captions = [caption for part in texts for caption in part.captions]
        # Equal captions have equal vectors: the first stands for all.
        first = {caption: row for row, caption in reversed(list(enumerate(captions))) if caption}
        ordered = sorted(first.items(), key=lambda item: item[1])
        vectors = _joined([part.texts for part in texts])[[row for _, row in ordered]]
        text_table = ArrayLookup([str(caption) for caption, _ in ordered], vectors, f"{path}/{TEXT_FOLDER}")
    files = sorted([*(path / IMAGE_FOLDER).glob("*.npy"), *(path / TEXT_FOLDER).glob("*.npy")])
    space = digest_json([digest_file(file) for file in files])
    return _of_tables(path.name, space, image_table, text_table, str(path))


def _joined(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any]:
    present = [array for array in arrays if array is not None]
    widths = {array.shape[1] for array in present}
    if len(widths) > 1:
        raise StoreError(f"parts of different widths: {sorted(widths)}")
    return present[0] if len(present) == 1 else np.concatenate(present)


def _npy(path: Path, options: Mapping[str, str], reference: str) -> StoredEncoder:
    if "keys" not in options:
        raise ConfigError(f"{reference}: rows need keys: add ?keys=FILE (one key a line, or a JSON list)")
    file = path.parent / options["keys"] if not Path(options["keys"]).exists() else Path(options["keys"])
    table = ArrayLookup(_read_keys(file), _array(path), str(path))
    return _of_tables(path.stem, digest_file(path), table, None, str(path))


def _read_keys(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        keys = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: keys cannot be read ({error})") from error
    return [str(key) for key in keys]


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read as an array of numbers ({error})") from error
    return array


def _npz(path: Path, options: Mapping[str, str], reference: str) -> StoredEncoder:
    try:
        # Opened here, because numpy forgets to close an archive that it cannot read.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _named(options, file.files, reference)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: cannot be read as arrays of numbers and strings ({error})") from error
    images = texts = None
    if "images" in options:
        keys = [str(key) for key in arrays[_required(options, "image_keys", reference)]]
        images = ArrayLookup(keys, arrays[options["images"]], f"{path}:{options['images']}")
    if "texts" in options:
        names = [str(name) for name in arrays[_required(options, "text_keys", reference)]]
        filled = [fill(options["prompt"], name) for name in names] if "prompt" in options else names
        texts = ArrayLookup(filled, arrays[options["texts"]], f"{path}:{options['texts']}")
    if images is None and texts is None:
        raise ConfigError(
            f"{reference}: say which arrays are which: ?images=NAME&image_keys=NAME&texts=NAME&text_keys=NAME"
        )
    return _of_tables(path.stem, digest_file(path), images, texts, str(path))


def _named(options: Mapping[str, str], there: Sequence[str], reference: str) -> list[str]:
    """The arrays that the options name. Raises ``ConfigError`` where one is not there, naming the nearest."""
    wanted = [options[name] for name in ("images", "image_keys", "texts", "text_keys") if name in options]
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"it holds {', '.join(there)}"
            raise ConfigError(f"{reference}: no array '{name}' in the file; {hint}")
    return wanted


def _required(options: Mapping[str, str], name: str, reference: str) -> str:
    if name not in options:
        raise ConfigError(f"{reference}: {name.split('_')[0]}s need keys: add {name}=NAME, an array of strings")
    return options[name]


def _of_tables(
    name: str, space: str, images: ArrayLookup | None, texts: ArrayLookup | None, where: str
) -> StoredEncoder:
    widths = {table.vectors(np.zeros(0, np.int64)).shape[1] for table in (images, texts) if table is not None}
    if len(widths) != 1:
        raise StoreError(f"{where}: images and texts are of different widths {sorted(widths)}: not one space")
    return StoredEncoder(StoredFacts(name, space, widths.pop()), images, texts)


def _options(reference: str, tail: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in tail.split("&") if tail else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{reference}: the option {part!r} needs a value: name=value")
        options[name] = unquote(value)
    return options


def _check(reference: str, options: Mapping[str, str], known: Mapping[str, str]) -> None:
    for name in options:
        if name not in known:
            _unknown(reference, name, known)


def _unknown(reference: str, name: str, known: Mapping[str, str]) -> NoReturn:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"{reference}: unknown option '{name}'; {hint}")


def _with_options(encoder: StoredEncoder, options: Mapping[str, str], reference: str) -> StoredEncoder:
    facts = encoder.facts
    try:
        facts = StoredFacts(
            name=options.get("name", facts.name),
            space=options.get("space", facts.space),
            dim=facts.dim,
            logit_scale=float(options.get("scale", facts.logit_scale)),
            logit_bias=float(options.get("bias", facts.logit_bias)),
        )
    except ValueError as error:
        raise ConfigError(f"{reference}: scale and bias must be numbers ({error})") from None
    return encoder.with_facts(facts)
