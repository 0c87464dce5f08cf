"""A model of two small transformers, and coloured pictures of four classes: all that a method needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.train import tiny
from torch import Tensor

from clipette.adapt.learner import Frozen
from clipette.data.dataset import Dataset
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.saved import save_model
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.tasks.adapt import freeze

CLASSES = tiny.CLASSES
SPEC: dict[str, Any] = {
    "dim": 12,
    "image": {
        "kind": "timm",
        "name": "vit_tiny_patch16_224",
        "args": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8},
        "size": 16,
        "head": {"kind": "linear"},
    },
    "text": {
        "kind": "small",
        "width": 16,
        "layers": 3,
        "heads": 2,
        "tokenizer": "words",
        "vocabulary": 300,
        "context_length": 64,
    },
}


def model(seed: int = 0, **changes: Any) -> DualEncoder:
    captions = [f"a photo of a {name}." for name in (*CLASSES, "dog", "art painting")]
    spec = ModelSpec.model_validate_json(json.dumps({**SPEC, **changes}))
    return build_model(spec, captions=captions, seed=seed).eval()


def base(seed: int = 0, **changes: Any) -> TorchEncoder:
    return TorchEncoder(model(seed, **changes), name="base", device="cpu")


def frozen(seed: int = 0, **changes: Any) -> Frozen:
    return freeze(base(seed, **changes))


def write_base(folder: Path, seed: int = 0) -> str:
    """A run directory of the base; its reference."""
    save_model(model(seed), folder / "model", name="base")
    return str(folder)


def data(count: int = 24) -> Dataset:
    return tiny.dataset(count)


def pixels(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def vectors(count: int = 4, dim: int = 12, seed: int = 2) -> Tensor:
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)
