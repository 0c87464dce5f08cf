"""Checkpoints as safetensors and JSON: no pickle, written whole or not at all, the newest whole one found again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipette.errors import ModelError
from clipette.io import fsync_folder, write_atomic, write_json
from clipette.models.saved import state_bytes
from clipette.train.optim import Average


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, ``<parameter index>.<name>``."""
    out = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                out[f"{index}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``flatten_optimizer``; the groups' settings are the recipe's, not the checkpoint's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        # In the parameter's own memory order (channels last): fused kernels walk through both without looking.
        kept = torch.empty_like(like).copy_(value) if value.shape == like.shape and value.ndim else value
        state.setdefault(int(index), {})[key] = kept
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    modules: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    facts: Mapping[str, Any],
) -> None:
    """Write ``folder/step-N`` beside the others, then forget those before it."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_atomic(temporary / "modules.safetensors", state_bytes(modules.state_dict()))
    write_atomic(temporary / "optimizer.safetensors", state_bytes(flatten_optimizer(optimizer)))
    if average is not None:
        write_atomic(temporary / "average.safetensors", state_bytes(average.state))
    count = average.count if average is not None else 0
    write_json(temporary / "state.json", {"step": step, "average_count": count, **facts})
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    fsync_folder(folder)
    for other in folder.iterdir():
        if other.name != final.name and other.name.lstrip(".").startswith("step-"):
            shutil.rmtree(other, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or nothing."""
    if not folder.is_dir():
        return None
    found = sorted(p for p in folder.iterdir() if p.name.startswith("step-") and (p / "state.json").is_file())
    return found[-1] if found else None


def load_checkpoint(
    path: Path, *, modules: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> dict[str, Any]:
    """Put a checkpoint's tensors in place and return its ``state.json``. Raises ``ModelError`` where it is damaged."""
    state = read_state(path)
    try:
        modules.load_state_dict(load_file(path / "modules.safetensors"))
        restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
        if average is not None:
            average.load(load_file(path / "average.safetensors"), int(state["average_count"]))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise _unfit(path, error) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's ``state.json``. Raises ``ModelError`` where it is damaged."""
    try:
        state = json.loads((path / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError("state.json is no JSON object")
    except (OSError, ValueError) as error:
        raise _unfit(path, error) from error
    return state


def _unfit(path: Path, error: Exception) -> ModelError:
    return ModelError(f"checkpoint {path} does not fit this recipe or is damaged: {error}; delete it to start again")
