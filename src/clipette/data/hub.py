"""Hugging Face data sets: a hub id, a folder of ``save_to_disk``, or a local folder that ``load_dataset`` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.data.dataset import Listing
from clipette.data.fields import sample_of
from clipette.data.refs import CellImage
from clipette.data.tables import IMAGE_COLUMNS, KEY_COLUMNS, content_key, find_column, renamed
from clipette.errors import DataError, UnsupportedError
from clipette.types import Failure, ImageBytes

OPTIONS = {
    "config": "the data set's configuration, where it has several",
    "image": "column of the image",
    "caption": "column(s) of captions, comma-separated",
    "class": "column of class names",
    "label": "column of class numbers",
    "key": "column of keys",
}


def list_hub(rest: str, options: Mapping[str, str]) -> Listing:
    """``hf:``. Splits are the data set's own; ``ClassLabel`` columns give the class names; images stay encoded."""
    listing = Listing()
    for split, rows in _open(rest, options).items():
        _list_split(f"hf:{rest}", str(split), rows, options, listing)
    return listing


class _DecodedColumn:
    """A column of a ``datasets.Dataset`` as an Arrow column would be read."""

    def __init__(self, rows: Any) -> None:  # rows: a datasets.Dataset of one column
        self.rows = rows

    def __getitem__(self, row: int, /) -> _Cell:
        return _Cell(next(iter(self.rows[row].values())))


class _Cell:
    def __init__(self, value: object) -> None:
        self.value = value

    def as_py(self) -> object:
        return self.value


def _open(rest: str, options: Mapping[str, str]) -> Mapping[str, Any]:
    """{split: datasets.Dataset}."""
    try:
        import datasets
    except ImportError as error:
        raise UnsupportedError("hf: needs the package 'datasets': pip install 'clipette[train]'") from error
    folder = Path(rest).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else rest, options.get("config"))
    except Exception as error:
        # Whatever the library, its backends or the network raise, the reference is what the user can mend.
        raise DataError(f"hf:{rest}: the data set cannot be loaded ({type(error).__name__}: {error})") from error
    return loaded if isinstance(loaded, Mapping) else {str(loaded.split or ""): loaded}


def _list_split(place: str, split: str, rows: Any, options: Mapping[str, str], listing: Listing) -> None:
    import datasets

    image_column = _image_column(place, rows, options)
    classes = _class_label(rows, options)
    if classes is not None:
        listing.class_names = tuple(classes[1])
    images = None
    if image_column is not None:
        if isinstance(rows.features[image_column], datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        images = _DecodedColumn(rows.select_columns([image_column]))
    key_column = find_column(rows.column_names, KEY_COLUMNS, options.get("key"), place)
    plain = rows.select_columns([name for name in rows.column_names if name != image_column])
    for row in range(len(rows)):
        here = f"{place} split {split or 'all'} row {row + 1}"
        record = dict(plain[row]) if plain.column_names else {}
        if classes is not None and isinstance(record.get(classes[0]), int) and record[classes[0]] >= 0:
            record |= {"label": record[classes[0]], "clip_name": classes[1][record[classes[0]]]}
        record = dict(renamed(record, {k: v for k, v in options.items() if k != "label" or classes is None}, here))
        image: ImageBytes | None = None
        key = str(record.get(key_column) or "") if key_column is not None else ""
        if images is not None:
            value = images[row].as_py()
            data, name = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
            if data is None and not name:
                listing.failures.append(Failure(key or here, here, "the image cell is null"))
                continue
            key = key or content_key(os.path.basename(name) if name else None, data)
            image = CellImage(images, row, here)
        record.setdefault("split", split or None)
        texts_key = content_key(None, "\n".join(str(v) for v in record.values()).encode())
        listing.samples.append(sample_of(key or texts_key, image, record, listing.failures, place=here))


def _image_column(place: str, rows: Any, options: Mapping[str, str]) -> str | None:
    import datasets

    if "image" in options:
        return find_column(rows.column_names, (), options["image"], place)
    typed = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    return typed[0] if typed else find_column(rows.column_names, IMAGE_COLUMNS, None, place)


def _class_label(rows: Any, options: Mapping[str, str]) -> tuple[str, list[str]] | None:
    """(column, names) of the class column, where the features name the classes."""
    import datasets

    named = {n: list(f.names) for n, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
    column = options.get("label") or next((n for n in ("label", "fine_label", *named) if n in named), None)
    return (column, named[column]) if column is not None and column in named else None
