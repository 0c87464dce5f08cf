"""References to data: ``kind:rest?option=value&...``, several joined by `` + ``, read into one ``Dataset``."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipette.data import coco, coop_split, folders, hub, karpathy, tables, tars, texts
from clipette.data.dataset import Classes, Dataset, Listing, assemble, join
from clipette.data.refs import IMAGE_SUFFIXES
from clipette.errors import ConfigError, DataError

Options = Mapping[str, str]

COMMON_OPTIONS = {
    "split": "keep these splits, comma-separated",
    "domain": "keep these domains, comma-separated",
    "classes": "all, base (the first half, rounded up) or novel",
    "shots": "keep this many samples a class",
    "limit": "keep this many samples",
    "draw": "0.1: move that share of the training samples to split dev; dev:0.1,test:0.2: to several",
    "seed": "of draw, shots and limit (default 0)",
    "names": "file of class names: one a line, or a JSON list",
}


@dataclass(frozen=True)
class Source:
    """One kind of source: how it is listed, and the options it has beside the common ones."""

    list: Callable[[str, Options], Listing]
    options: Mapping[str, str]


def _list_world(rest: str, options: Options) -> Listing:
    from clipette.data.world import load_world

    samples, class_names = load_world(rest, options)
    return Listing(list(samples), [], tuple(class_names))


WORLD_OPTIONS = {
    "n": "number of samples",
    "size": "of the pictures, in pixels",
    "captions": "per picture",
    "seed": "of the world, and of draw, shots and limit",
}
SOURCES: dict[str, Source] = {
    "folder": Source(folders.list_folder, folders.OPTIONS),
    "wds": Source(tars.list_tars, tars.OPTIONS),
    "csv": Source(tables.list_csv, tables.OPTIONS),
    "tsv": Source(tables.list_tsv, tables.OPTIONS),
    "jsonl": Source(tables.list_jsonl, tables.OPTIONS),
    "parquet": Source(tables.list_parquet, tables.OPTIONS),
    "coco": Source(coco.list_coco, coco.OPTIONS),
    "karpathy": Source(karpathy.list_karpathy, karpathy.OPTIONS),
    "coop": Source(coop_split.list_coop, coop_split.OPTIONS),
    "hf": Source(hub.list_hub, hub.OPTIONS),
    "text": Source(texts.list_texts, texts.OPTIONS),
    "world": Source(_list_world, WORLD_OPTIONS),
}
KIND_OF_SUFFIX = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".txt": "text", ".gz": "text"}


def load_data(reference: str | Path) -> Dataset:
    """List a source: keys, captions, classes, splits; images are only read later.

    ``wds:x-{000..005}.tar?split=train&shots=16&seed=1``, ``world:test``, ``photos/``, ``a.csv + wds:b.tar``. Options
    apply in the order draw, split and domain, classes, shots, limit.

    Raises:
        ConfigError: an unknown kind or option, or a bad value.
        DataError: nothing there, unreadable, or nothing left.
    """
    text = str(reference).strip()
    parts = [part.strip() for part in text.split(" + ")] if not Path(text).exists() else [text]
    if not all(parts) or not text:
        raise ConfigError(f"'{text}': an empty data reference; give a path or kind:path ({', '.join(SOURCES)})")
    loaded = [_load_one(part) for part in parts]
    return loaded[0] if len(loaded) == 1 else join(text, loaded)


def _load_one(reference: str) -> Dataset:
    body, options = _split_options(reference)
    kind, rest = _kind_of(body)
    source = SOURCES[kind]
    _check_options(reference, kind, source, options)
    own = {name: value for name, value in options.items() if name in source.options}
    try:
        listing = source.list(rest, own)
    except OSError as error:
        raise DataError(f"{reference}: cannot be read ({error})") from error
    if "names" in options:
        listing.class_names = tuple(read_class_names(options["names"]))
    return _selected(assemble(reference, listing), options)


def _selected(data: Dataset, options: Options) -> Dataset:
    seed = _integer(data.reference, options, "seed", minimum=0) or 0
    if "draw" in options:
        data = data.draw_splits(_shares(data.reference, options["draw"]), seed)
    classes = options.get("classes", "all")
    if classes not in ("all", "base", "novel"):
        raise ConfigError(f"{data.reference}: classes '{classes}' must be all, base or novel")
    data = data.filter(options.get("split"), options.get("domain"), cast("Classes", classes))
    shots = _integer(data.reference, options, "shots", minimum=1)
    if shots is not None:
        data = data.few_shot(shots, seed)
    limit = _integer(data.reference, options, "limit", minimum=1)
    return data if limit is None else data.limit(limit, seed)


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a file: a JSON list, or one a line in the order of the labels. Raises ``DataError``."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the class names cannot be read ({error})") from error
    if not text.lstrip().startswith("["):
        names = [line.strip() for line in text.strip().splitlines()]
    else:
        try:
            names = [str(name).strip() for name in json.loads(text)]
        except ValueError as error:
            raise DataError(f"{path}: not a JSON list ({error})") from error
    if not names or not all(names):
        raise DataError(f"{path}: line {names.index('') + 1 if names else 1} is empty: each line must name a class")
    return names


def _split_options(reference: str) -> tuple[str, dict[str, str]]:
    if "?" not in reference or Path(reference).exists():
        return reference, {}
    body, _, text = reference.rpartition("?")
    options: dict[str, str] = {}
    for item in text.split("&"):
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{reference}: '{item}' is not option=value; write for example ?split=train&limit=100")
        if name in options:
            raise ConfigError(f"{reference}: option '{name}' is given twice")
        options[name] = value
    return body, options


def _check_options(reference: str, kind: str, source: Source, options: Options) -> None:
    known = {**COMMON_OPTIONS, **source.options}
    for name in options:
        if name not in known:
            hint = _nearest(name, known)
            raise ConfigError(f"{reference}: unknown option '{name}' of {kind}:{hint} Options: {', '.join(known)}")


def _kind_of(body: str) -> tuple[str, str]:
    """(kind, rest): stated before a colon, or recognised from the path."""
    kind, colon, rest = body.partition(":")
    if colon and kind in SOURCES:
        return kind, rest
    path = Path(os.path.expanduser(body))
    if body.endswith(tars.TAR_SUFFIXES):
        return "wds", body
    if path.is_dir():
        return _kind_of_folder(path), body
    if path.suffix == ".json" and path.is_file():
        return _kind_of_json(path), body
    if path.suffix in KIND_OF_SUFFIX:
        return KIND_OF_SUFFIX[path.suffix], body
    if colon and "/" not in kind:
        raise ConfigError(f"{body}: unknown kind '{kind}'.{_nearest(kind, SOURCES)} Kinds: {', '.join(SOURCES)}")
    if not path.exists():
        raise DataError(f"{body}: no such file or folder (working folder: {Path.cwd()})")
    raise ConfigError(f"{body}: cannot tell what kind of data this is; write kind:path, one of {', '.join(SOURCES)}")


def _kind_of_folder(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error}); check its permissions") from error
    if "dataset_dict.json" in names or "state.json" in names:
        return "hf"
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return "folder"
    if any(name.endswith(tars.TAR_SUFFIXES) for name in names):
        return "wds"
    return "parquet" if any(name.endswith(".parquet") for name in names) else "folder"


def _kind_of_json(path: Path) -> str:
    content = coco.read_json(path)
    if coop_split.is_coop(content):
        return "coop"
    images = content.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return "karpathy"
    if isinstance(images, list) and "annotations" in content:
        return "coco"
    raise ConfigError(f"{path}: neither COCO's nor Karpathy's nor CoOp's format; for a text corpus write text:{path}")


def _integer(reference: str, options: Options, name: str, *, minimum: int) -> int | None:
    if name not in options:
        return None
    try:
        value = int(options[name])
    except ValueError:
        raise ConfigError(f"{reference}: {name} '{options[name]}' must be a whole number") from None
    if value < minimum:
        raise ConfigError(f"{reference}: {name} {value} must be at least {minimum}")
    return value


def _shares(reference: str, text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, colon, number = item.rpartition(":")
        try:
            shares[name if colon else "dev"] = float(number)
        except ValueError:
            raise ConfigError(f"{reference}: draw '{item}' must be a share (0.1) or split:share (dev:0.1)") from None
    return shares


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
