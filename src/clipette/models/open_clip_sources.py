"""Where an open_clip model comes from: reference → configuration, preprocessing, weights file."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipette.errors import ModelError


@dataclass(frozen=True)
class Source:
    """What a reference stands for, before anything is built. ``folder`` holds files the configuration names."""

    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)


def find_source(reference: str) -> Source:
    """Configuration, preprocessing and weights file of a reference; the hub is asked only where it is named."""
    name, at, weights = reference.partition("@")
    if not name or (at and not weights):
        raise ModelError(f"open_clip reference '{reference}' is incomplete: write NAME, NAME/TAG or NAME@FILE")
    if name.startswith("local-dir:"):
        source = _from_folder(Path(name.removeprefix("local-dir:")).expanduser())
    elif name.startswith("hf-hub:"):
        source = _from_hub(name.removeprefix("hf-hub:"))
    elif name.endswith(".json"):
        source = _from_json(Path(name).expanduser())
    else:
        architecture, slash, tag = name.partition("/")
        source = _from_tag(architecture, tag) if slash else Source(_known(architecture), {}, None)
    if not at:
        return source
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"weights file not found: {path} (named by '{reference}')")
    return Source(source.model, source.preprocess, path, source.folder, source.notes)


def _known(architecture: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        raise ModelError(f"open_clip knows no architecture '{architecture}'; near: {', '.join(near) or 'none'}")
    return dict(config)


def _from_tag(architecture: str, tag: str) -> Source:
    import open_clip

    model = _known(architecture)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ModelError(f"open_clip has no weights '{tag}' for {architecture}; it has: {', '.join(tags) or 'none'}")
    notes = []
    if bool(pretrained.get("quick_gelu", False)) != bool(model.get("quick_gelu", False)):
        # open_clip only warns, and then computes with another activation than the weights were trained with.
        model["quick_gelu"] = bool(pretrained.get("quick_gelu", False))
        notes.append(f"quick_gelu set to {model['quick_gelu']}, as '{tag}' was trained")
    try:
        path = open_clip.download_pretrained(pretrained)
    except Exception as error:  # hub clients raise many kinds
        raise ModelError(_unreachable(f"{architecture}/{tag}", error)) from error
    return Source(model, dict(pretrained), Path(path), None, notes)


def _from_folder(folder: Path) -> Source:
    from open_clip.factory import _find_checkpoint_in_dir

    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise ModelError(f"'local-dir:{folder}' has no open_clip_config.json: is it an open_clip model folder?")
    model, preprocess = _read_config(path)
    weights = _find_checkpoint_in_dir(folder)
    return Source(model, preprocess, None if weights is None else Path(weights), folder)


def _from_hub(name: str) -> Source:
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        config = Path(download_pretrained_from_hf(name, filename="open_clip_config.json"))
        weights = Path(download_pretrained_from_hf(name))
    except Exception as error:  # hub clients raise many kinds
        raise ModelError(_unreachable(f"hf-hub:{name}", error)) from error
    model, preprocess = _read_config(config)
    return Source(model, preprocess, weights)


def _from_json(path: Path) -> Source:
    model, preprocess = _read_config(path)
    return Source(model, preprocess, None, path.parent)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model configuration, preprocessing) of a file in either of open_clip's two layouts."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"open_clip configuration not found: {path}") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"open_clip configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"open_clip configuration {path} must be an object of names and values")
    model = dict(values.get("model_cfg", values))
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]
    if missing:
        raise ModelError(f"open_clip configuration {path} lacks {', '.join(missing)}")
    return model, dict(values.get("preprocess_cfg", {}))


def _unreachable(name: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"'{name}' is not in the local cache and could not be downloaded ({first}): connect to the hub once, "
        "or use a local folder (local-dir:./folder) or a weights file (ARCHITECTURE@./file.safetensors)"
    )


def beside(folder: Path | None, name: str) -> str:
    """A path next to the configuration file where there is one, else the name as a hub id."""
    if folder is not None and (folder / name).is_dir():
        return str((folder / name).resolve())
    return name
