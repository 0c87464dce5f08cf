"""A model as a folder: ``model.json``, ``model.safetensors``, ``assets/``. Written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from clipette.errors import ModelError
from clipette.io import write_atomic, write_json
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower, weights_digest
from clipette.models.rebuild import build_tower

FORMAT = 1


@dataclass(frozen=True)
class SavedModel:
    """A model read back: with the id of its embedding space and what it was called."""

    model: DualEncoder
    space: str
    name: str
    card: Mapping[str, object]


def state_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors bytes; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())})


def save_model(
    model: DualEncoder, folder: Path, *, name: str, space: str | None = None, card: Mapping[str, object] | None = None
) -> str:
    """Write ``model`` to ``folder`` and return its space id.

    ``space``: the teacher's id for a student that lives in its teacher's space; by default a digest of the weights.
    """
    space = space or weights_digest(model)
    description: dict[str, object] = {
        "format": FORMAT,
        "name": name,
        "space": space,
        "logit_bias": model.logit_bias is not None,
        "card": dict(card or {}),
    }
    towers: dict[str, ImageTower | TextTower | None] = {"image": model.image, "text": model.text}
    for side, tower in towers.items():
        if tower is None:
            description[side] = None
            continue
        blueprint = tower.blueprint
        description[side] = {
            "kind": blueprint.kind,
            "arguments": dict(blueprint.arguments),
            "assets": sorted(blueprint.assets),
        }
        for asset, content in blueprint.assets.items():
            write_atomic(folder / "assets" / side / asset, content)
    write_atomic(folder / "model.safetensors", state_bytes(model.state_dict()))
    write_json(folder / "model.json", description)
    return space


def _tower(folder: Path, side: str, description: Mapping[str, object] | None) -> ImageTower | TextTower | None:
    if description is None:
        return None
    where = f"{folder / 'model.json'}: the {side} tower"
    if not isinstance(description, dict):
        raise ModelError(f"{where} is not described as Clipette writes it")
    names, arguments = description.get("assets"), description.get("arguments")
    if not isinstance(names, list) or not isinstance(arguments, dict):
        raise ModelError(f"{where} is not described as Clipette writes it")
    root = (folder / "assets" / side).resolve()
    assets = {}
    for name in names:
        path = (root / str(name)).resolve()
        if not path.is_relative_to(root):
            raise ModelError(f"{folder / 'model.json'}: asset '{name}' points outside the model's folder: refused")
        if not path.is_file():
            raise ModelError(f"{path} is missing: the model's folder is not whole")
        assets[str(name)] = path.read_bytes()
    try:
        return build_tower(Blueprint(str(description.get("kind")), arguments, assets))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{where} cannot be built from its description: {type(error).__name__}: {error}") from error


def load_model(folder: Path) -> SavedModel:
    """Read what ``save_model`` wrote; a run directory's ``model/`` is found by itself.

    Raises ``ModelError`` where a file is missing, damaged or of a newer format.
    """
    if not (folder / "model.json").is_file() and (folder / "model" / "model.json").is_file():
        folder = folder / "model"
    path = folder / "model.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no model: model.json is missing (has the run finished its first checkpoint?)")
    try:
        description = json.loads(path.read_text())
        if not isinstance(description, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if description.get("format") != FORMAT:
        raise ModelError(f"{path} has format {description.get('format')}, this Clipette reads {FORMAT}")
    image, text = (_tower(folder, side, description.get(side)) for side in ("image", "text"))
    if isinstance(image, TextTower) or isinstance(text, ImageTower):
        raise ModelError(f"{path}: the image and text towers are exchanged")
    missing = [name for name in ("logit_bias", "space", "name", "card") if name not in description]
    if missing:
        raise ModelError(f"{path} is damaged: it does not say {', '.join(missing)}")
    model = DualEncoder(image, text, logit_bias=0.0 if description["logit_bias"] else None)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder / 'model.safetensors'} does not fit model.json: {error}") from error
    return SavedModel(model.eval(), str(description["space"]), str(description["name"]), description["card"])
