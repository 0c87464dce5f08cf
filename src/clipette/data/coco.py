"""COCO annotation files: captions, or instances (the classes of an image's objects)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.data.dataset import Listing
from clipette.data.fields import clean_captions
from clipette.data.paths import key_of
from clipette.data.refs import FileImage
from clipette.errors import DataError
from clipette.types import Failure, Sample

OPTIONS = {"images": "folder of the images (default: looked for beside the JSON file)"}
SPLIT_IN_NAME = re.compile(r"(train|val|test)")


def list_coco(rest: str, options: Mapping[str, str]) -> Listing:
    """``coco:``. One category in an image is its class; several are kept in ``meta["classes"]``."""
    path = Path(rest).expanduser()
    content = read_json(path)
    entries, annotations = records(path, content, "images", "COCO's"), records(path, content, "annotations", "COCO's")
    listing = Listing()
    names = {c["id"]: str(c["name"]) for c in content.get("categories", []) if "id" in c and "name" in c}
    captions: dict[object, list[str]] = {}
    classes: dict[object, dict[str, None]] = {}
    for number, annotation in enumerate(annotations, 1):
        image = annotation.get("image_id")
        if isinstance(annotation.get("caption"), str):
            captions.setdefault(image, []).append(annotation["caption"])
        elif annotation.get("category_id") in names:
            classes.setdefault(image, {})[names[annotation["category_id"]]] = None
        else:
            place = f"{path} annotation {number}"
            listing.failures.append(Failure(str(image), place, "neither a caption nor a known category"))
    stated = SPLIT_IN_NAME.search(path.stem)
    root = image_root(path, options, [str(entry.get("file_name", "")) for entry in entries[:1]])
    for number, entry in enumerate(entries, 1):
        place = f"{path} image {number}"
        if not isinstance(entry.get("file_name"), str) or "id" not in entry:
            listing.failures.append(Failure(place, place, "no 'file_name' or no 'id'"))
            continue
        key, found = key_of(entry["file_name"]), list(classes.get(entry["id"], ()))
        listing.samples.append(Sample(
            key=key,
            image=FileImage(os.path.join(root, entry["file_name"]), place),
            captions=clean_captions(captions.get(entry["id"], []), key, place, listing.failures),
            class_name=found[0] if len(found) == 1 else None,
            split=stated.group(1) if stated else None,
            meta={"id": entry["id"], "classes": tuple(found)} if found else {"id": entry["id"]},
        ))  # fmt: skip
    return listing


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``DataError``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def records(path: Path, content: dict[str, Any], name: str, file_format: str) -> list[dict[str, Any]]:
    """The list of objects under ``name``. Raises ``DataError``."""
    entries = content.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: not {file_format} format: '{name}' must be a list of objects")
    return entries


def image_root(path: Path, options: Mapping[str, str], examples: list[str]) -> str:
    """The stated folder of images, or the first usual one that has an example, or the JSON file's own."""
    if "images" in options:
        folder = Path(options["images"]).expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of images (working folder: {Path.cwd()})")
        return str(folder)
    beside = (path.parent, path.parent.parent)
    split = SPLIT_IN_NAME.search(path.stem)
    inner = ["", "images", "Images"] + [f"{split.group(1)}{year}" for year in ("2017", "2014", "") if split]
    for folder in (base / name for base in beside for name in inner):
        if any(name and (folder / name).is_file() for name in examples):
            return str(folder)
    return str(path.parent)
