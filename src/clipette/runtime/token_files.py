"""A tokenizer as small files: what a blueprint holds, and folders for loaders that read nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipette.errors import ModelError

Assets = Mapping[str, bytes]
# What a tokenizer is and which of the assets are its own; beside its files, so that assets describe themselves.
DESCRIPTION = "clipette_tokenizer.json"


def pack(files: Assets, **description: Any) -> dict[str, bytes]:
    """``files`` and, beside them, the file that says what they are."""
    described = json.dumps({**description, "files": sorted(files)}, sort_keys=True, ensure_ascii=False)
    return {**files, DESCRIPTION: described.encode()}


def description_of(assets: Assets) -> dict[str, Any]:
    """What ``pack`` was told. Raises ``ModelError`` where its file is missing."""
    if DESCRIPTION not in assets:
        raise ModelError(f"'{DESCRIPTION}' is missing from the model's assets: copy the whole folder")
    return dict(json.loads(assets[DESCRIPTION]))


def own_files(description: Mapping[str, Any], assets: Assets) -> dict[str, bytes]:
    """The tokenizer's files among ``assets``. Raises ``ModelError`` naming the first that is missing."""
    missing = [name for name in description["files"] if name not in assets]
    if missing:
        raise ModelError(f"tokenizer file '{missing[0]}' is missing from the model's assets: copy the whole folder")
    return {name: assets[name] for name in description["files"]}


class FolderOf:
    """A temporary folder holding ``files``: Hugging Face's loaders read only folders."""

    def __init__(self, files: Assets) -> None:
        self._files = files
        self._folder = tempfile.TemporaryDirectory(prefix="clipette-tokenizer-")

    def __enter__(self) -> Path:
        root = Path(self._folder.name)
        for name, data in self._files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def saved_files(inner: Any) -> dict[str, bytes]:
    """What ``save_pretrained`` writes, by relative name."""
    with tempfile.TemporaryDirectory(prefix="clipette-tokenizer-") as name:
        inner.save_pretrained(name)
        root = Path(name)
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
