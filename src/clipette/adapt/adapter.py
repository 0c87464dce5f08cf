"""What an adaptation leaves: a few tensors and facts that name their base model by its weights' digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from clipette.errors import ModelError
from clipette.io import digest, write_atomic, write_json
from clipette.models.saved import state_bytes

FORMAT = 1
FACTS, TENSORS = "adapter.json", "adapter.safetensors"


@dataclass(frozen=True)
class Adapter:
    """``form``: how ``adapt/forms.py`` puts it to work; ``facts``: JSON; ``tensors``: what was learned.

    ``classes``: those it was trained on. ``templates``: the wording of class texts that it is evaluated with.
    """

    form: str
    classes: tuple[str, ...]
    templates: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read back. ``reference``: where its base was found; ``weights``: the base's digest."""

    adapter: Adapter
    name: str
    reference: str
    weights: str
    card: Mapping[str, Any]


def save_adapter(
    adapter: Adapter, folder: Path, *, name: str, reference: str, weights: str, card: Mapping[str, Any]
) -> None:
    """Write ``adapter.json`` and ``adapter.safetensors``: equal adapters give equal bytes."""
    tensors = state_bytes(adapter.tensors)
    write_atomic(folder / TENSORS, tensors)
    write_json(
        folder / FACTS,
        {
            "format": FORMAT,
            "name": name,
            "base": {"reference": reference, "weights": weights},
            "tensors": digest(tensors),
            "form": adapter.form,
            "classes": list(adapter.classes),
            "templates": adapter.templates,
            "facts": dict(adapter.facts),
            "card": dict(card),
        },
    )


def adapter_folder(folder: Path) -> Path | None:
    """The folder itself, or a run directory's ``model/``, where it holds an adapter."""
    return next((each for each in (folder, folder / "model") if (each / FACTS).is_file()), None)


def load_adapter(folder: Path) -> SavedAdapter:
    """Read what ``save_adapter`` wrote. Raises ``ModelError`` where it is missing, damaged or of a newer format."""
    found = adapter_folder(folder)
    if found is None:
        raise ModelError(f"{folder} holds no adapter: {FACTS} is missing (has the run finished?)")
    path = found / FACTS
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ModelError(f"{path} has format {said['format']}, this Clipette reads {FORMAT}: upgrade it")
        data = (found / TENSORS).read_bytes()
        # Earlier adapters do not say.
        if said.get("tensors", digest(data)) != digest(data):
            raise ModelError(f"{found / TENSORS} is not what was written with {FACTS}: copy both again, or adapt again")
        tensors = load(data)
        adapter = Adapter(
            str(said["form"]), tuple(map(str, said["classes"])), str(said["templates"]), said["facts"], tensors
        )
        base = said["base"]
        return SavedAdapter(adapter, str(said["name"]), str(base["reference"]), str(base["weights"]), said["card"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{found}: the adapter is damaged ({type(error).__name__}: {error}): adapt again") from error


def check_base(saved: SavedAdapter, weights: str, folder: Path) -> None:
    """Raises ``ModelError`` where the base's weights are not those that the adapter was trained over."""
    if saved.weights != weights:
        raise ModelError(
            f"{folder} adapts another model: it was trained over weights {saved.weights[:12]} (found then as "
            f"'{saved.reference}'), this base has {weights[:12]}: name the right one, adapter:{folder}?base=REFERENCE"
        )
