"""CoOp's split files (``split_zhou_Caltech101.json``): the splits, class numbers and names of a field's benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.data.coco import read_json
from clipette.data.dataset import Listing
from clipette.data.paths import key_of
from clipette.data.refs import FileImage
from clipette.errors import DataError
from clipette.types import Failure, Sample

OPTIONS = {"images": "folder that the image paths start from (default: the file's own, or one beside it)"}
SPLITS = ("train", "val", "test")


def is_coop(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is such a file: lists named by splits, of [path, number, name]."""
    rows = [content[name] for name in SPLITS if isinstance(content.get(name), list)]
    return "train" in content and bool(rows) and all(_whole(row) for each in rows for row in each[:1])


def list_coop(rest: str, options: Mapping[str, str]) -> Listing:
    """``coop:``. Splits train, val (our dev) and test are the file's own; so are the classes' numbers and order."""
    path = Path(rest).expanduser()
    content = read_json(path)
    if not is_coop(content):
        raise DataError(f"{path}: not CoOp's format: expected train, val and test, each a list of [path, number, name]")
    rows = [(split, place, row) for split in SPLITS for place, row in enumerate(content.get(split) or [], 1)]
    root = _root(path, options, [str(row[0]) for _, _, row in rows[:1] if _whole(row)])
    listing = Listing()
    names: dict[int, str] = {}
    for split, place, row in rows:
        where = f"{path} {split} {place}"
        if not _whole(row):
            listing.failures.append(Failure(where, where, f"not [path, number, name]: {str(row)[:60]}"))
            continue
        name, label, class_name = str(row[0]), int(row[1]), str(row[2])
        if names.setdefault(label, class_name) != class_name:
            raise DataError(f"{where}: class {label} is '{class_name}' here and '{names[label]}' before: mend the file")
        image = FileImage(os.path.join(root, name), where)
        listing.samples.append(Sample(key_of(name), image, class_name=class_name, label=label, split=split))
    return listing


def _whole(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and isinstance(row[1], int) and isinstance(row[0], str)


def _root(path: Path, options: Mapping[str, str], first: list[str]) -> str:
    """Where the images are: stated, beside the file, or in the one folder beside it that holds the first of them."""
    if "images" in options:
        return os.path.expanduser(options["images"])
    folders = [path.parent, *sorted(each for each in path.parent.iterdir() if each.is_dir())]
    return str(next((folder for folder in folders if first and (folder / first[0]).is_file()), path.parent))
