"""Image folders: flat, class subfolders or a stated layout; captions in side files (``a.txt``, ``a.json``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from clipette.data.dataset import SPLIT_NAMES, Listing
from clipette.data.fields import sample_of
from clipette.data.paths import key_of
from clipette.data.refs import IMAGE_SUFFIXES, FileImage
from clipette.errors import ConfigError, DataError
from clipette.types import Failure

OPTIONS = {"layout": "what the subfolders mean, e.g. class, split/class, domain/class, flat (default: recognised)"}
LEVELS = ("class", "domain", "split", "*")
SPLITS = {"train", "dev", "test", *SPLIT_NAMES}


def list_folder(rest: str, options: Mapping[str, str]) -> Listing:
    """``folder:``. Recognised: train/dev/test folders above the classes, class folders, or a flat folder."""
    root = os.path.expanduser(rest)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder (working folder: {Path.cwd()})")
    paths = sorted(_walk(root))
    images = [path for path in paths if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{root}: no images in this folder or below (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    layout = _layout(images, options.get("layout"))
    sides = {path for path in paths if path.endswith((".txt", ".json"))}
    listing = Listing()
    for path in images:
        image = FileImage(os.path.join(root, path))
        record: dict[str, object] = dict(zip(layout, path.split(os.sep)[:-1], strict=False))
        record.pop("*", None)
        try:
            captions = _side_files(root, os.path.splitext(path)[0], sides, record)
        except (OSError, ValueError) as error:
            reason = f"the side file cannot be read: {error}"
            listing.failures.append(Failure(key_of(path), image.location, reason))
            continue
        listing.samples.append(sample_of(key_of(path), image, record, listing.failures, captions=captions))
    return listing


def _side_files(root: str, stem: str, sides: set[str], record: dict[str, object]) -> list[str]:
    """Put the .json into ``record``, return the captions of the .txt."""
    if stem + ".json" in sides:
        parsed = json.loads(Path(root, stem + ".json").read_text(encoding="utf-8-sig"))
        if not isinstance(parsed, dict):
            raise ValueError(f"{stem}.json: expected a JSON object")
        record |= parsed
    if stem + ".txt" in sides:
        return Path(root, stem + ".txt").read_text(encoding="utf-8-sig").splitlines() or [""]
    return []


def _layout(images: list[str], stated: str | None) -> list[str]:
    if stated == "flat":
        return []
    if stated is not None:
        levels = stated.split("/")
        if any(level not in LEVELS for level in levels):
            raise ConfigError(f"layout '{stated}': each level must be one of {', '.join(LEVELS)}; or flat")
        return levels
    tops = {path.split(os.sep)[0] if os.sep in path else "" for path in images}
    if tops <= SPLITS:
        return ["split", "class"]
    # One folder is a place and not a choice of classes.
    return ["class"] if "" not in tops and len(tops) > 1 else []


def _walk(root: str) -> Iterator[str]:
    """Relative paths of visible files; links are followed, loops are not; an unreadable folder is an error."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions") from error
