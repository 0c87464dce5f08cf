"""A bundle on disk: what files it has, that they are whole, and that nothing points outside.

::

    manifest.json     format, name, embedding space, width, scale, bias, both sides, size and digest of every file
    image.onnx        pixels [N, 3, H, W] → unit vectors [N, D]
    preprocess.json   how an image becomes pixels
    text.onnx         token ids (and a mask) → unit vectors [N, D]
    tokenizer/        what the tokenizer reads (tokenizer.json of the library ``tokenizers``, or a list of words)
    classes.npy       in place of a text tower: stored vectors of the texts in classes.json
    card.md           where it comes from
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipette.errors import ModelError
from clipette.io import digest

FORMAT, VERSION = "clipette-bundle", 1
MANIFEST = "manifest.json"
# The newest operator set that the export writes; an older onnxruntime would say so in its own words, and late.
OPSET = 20
# What a manifest says, and of what type; a side may be missing.
FACTS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "space": (str,),
    "precision": (str,),
    "dim": (int,),
    "opset": (int,),
    "logit_scale": (int, float),
    "logit_bias": (int, float),
    "image": (dict, type(None)),
    "text": (dict, type(None)),
    "files": (dict,),
}
SIDES: dict[str, dict[str, tuple[type, ...]]] = {
    "image": {"file": (str,), "preprocess": (dict,)},
    "text": {"file": (str,), "tokenizer": (dict,)},
}
RECORD: dict[str, tuple[type, ...]] = {"size": (int,), "digest": (str,)}


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked: every file is there, whole, and inside the folder."""

    path: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]

    def side(self, name: str) -> Mapping[str, Any] | None:
        """``image`` or ``text``: its part of the manifest, or None."""
        found: Mapping[str, Any] | None = self.manifest[name]
        return found


# Of a scale and a bias; SigLIP's are 117 and −17.
MOST = 1e6


def is_bundle(path: Path) -> bool:
    """Whether the folder claims to be a bundle."""
    return (path / MANIFEST).is_file() and not (path / "store.json").is_file()


def holds_bundle(path: Path) -> bool:
    """Whether the folder says of itself that it is a bundle, and so may be replaced by one.

    Many folders have a ``manifest.json``: web pages, browser extensions, container images.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def open_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle. Raises ``ModelError``: no bundle, a newer format, a file missing, cut or changed."""
    root = Path(path)
    manifest = _manifest(root)
    files = {name: _checked(root, name, record) for name, record in manifest["files"].items()}
    return Bundle(root, manifest, files)


def _manifest(root: Path) -> Mapping[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{root}: no bundle here ({MANIFEST}: {error.strerror}); make one: clipette export") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged ({error}); export the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{path}: this is not a bundle of Clipette; make one: clipette export")
    if manifest.get("version") != VERSION:
        raise ModelError(
            f"{path}: version {manifest.get('version')!r} of the format, this Clipette reads {VERSION}: "
            "export again, or use the Clipette that wrote it"
        )
    _check_facts(path, manifest)
    if manifest["opset"] > OPSET:
        raise ModelError(
            f"{path}: ONNX operator set {manifest['opset']}, this Clipette reads up to {OPSET}: upgrade it"
        )
    return manifest


def _check_facts(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ``ModelError`` where something is missing or of another type."""
    faults = _faults(manifest, FACTS, "") or _inner_faults(manifest)
    if faults:
        told = ", ".join(name[:100] for name in faults[:5])
        raise ModelError(f"{path}: damaged, it does not say {told}; export the model again")


def _inner_faults(manifest: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, record in manifest["files"].items():
        faults += _faults(record, RECORD, f"files.{name}.")
    for name, kinds in SIDES.items():
        side = manifest[name]
        found = [] if side is None else _faults(side, kinds, f"{name}.")
        if side is not None and not found and side["file"] not in manifest["files"]:
            found = [f"files.{side['file']}"]
        faults += found
    numbers = {"logit_scale": manifest["logit_scale"], "logit_bias": manifest["logit_bias"]}
    # JSON knows integers that no float holds.
    faults += [name for name, number in numbers.items() if not abs(number) < MOST]
    if not manifest["logit_scale"] > 0:
        faults.append("logit_scale")
    if not manifest["space"]:
        faults.append("space")
    return faults + [name for name in ("dim", "opset") if manifest[name] < 1]


def _faults(values: object, kinds: Mapping[str, tuple[type, ...]], prefix: str) -> list[str]:
    """The names whose values are missing or of another type."""
    found = values if isinstance(values, dict) else {}
    # No fact is a truth value, which Python takes for an integer.
    return [
        prefix + name
        for name, kind in kinds.items()
        if not isinstance(found.get(name, ...), kind) or isinstance(found[name], bool)
    ]


def _checked(root: Path, name: str, record: Mapping[str, Any]) -> bytes:
    try:
        path = (root / name).resolve()
    except (OSError, ValueError) as error:
        raise ModelError(f"{root / MANIFEST}: '{name!r}' is no file's name ({error}); export again") from error
    if not path.is_relative_to(root.resolve()):
        raise ModelError(f"{root / MANIFEST}: the file '{name}' lies outside the bundle: refused")
    try:
        # Before it is read: a pipe would never end, and a hole in the disk has any size.
        size = path.stat().st_size if path.is_file() else -1
        data = path.read_bytes() if size == record.get("size") else b""
    except OSError as error:
        raise ModelError(f"{path}: missing ({error.strerror}); copy the whole bundle again") from error
    if size < 0:
        raise ModelError(f"{path}: missing (no such file); copy the whole bundle again")
    if len(data) != record.get("size") or digest(data) != record.get("digest"):
        raise ModelError(
            f"{path}: not the file that was exported ({size} of {record.get('size')} bytes, or changed); "
            "copy the whole bundle again"
        )
    return data
