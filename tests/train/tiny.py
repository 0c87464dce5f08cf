"""A student, its data and its teacher, small enough for milliseconds."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipette.data.dataset import Dataset
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.train.recipe import Recipe
from clipette.types import Sample

CLASSES = ("red", "green", "blue", "white")
COLOURS = ((220, 30, 30), (30, 200, 40), (40, 40, 220), (240, 240, 240))


@dataclass(frozen=True)
class Memory:
    """Encoded bytes in memory."""

    data: bytes
    location: str

    def read(self) -> bytes:
        return self.data


def picture(label: int, index: int, size: int = 40) -> bytes:
    random = np.random.default_rng([label, index])
    pixels = np.clip(np.array(COLOURS[label]) + random.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(count: int = 32, *, bad: Sequence[int] = ()) -> Dataset:
    """Noisy pictures of one colour each, with two captions; the numbers in ``bad`` cannot be read."""
    samples = []
    for i in range(count):
        label = i % len(CLASSES)
        data = b"no image" if i in bad else picture(label, i)
        name = CLASSES[label]
        captions = (f"a {name} picture number {i}", f"something {name} of kind {i}")
        samples.append(Sample(f"s{i:03d}", Memory(data, f"s{i:03d}.png"), captions, name, label))
    return Dataset("memory:colours", tuple(samples), CLASSES)


def spec(**changes: Any) -> ModelSpec:
    """timm's smallest residual network and a two-layer text transformer."""
    values: dict[str, Any] = {
        "dim": 16,
        "image": {"kind": "timm", "name": "test_resnet", "size": 32, "head": {"kind": "linear"}},
        "text": {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300},
    }
    return ModelSpec.model_validate_json(json.dumps({**values, **changes}))


def student(seed: int = 0, **changes: Any) -> DualEncoder:
    captions = [c for s in dataset().samples for c in s.captions]
    return build_model(spec(**changes), captions=captions, seed=seed)


def teacher(dim: int = 24, **changes: Any) -> TorchEncoder:
    """An untrained model of another width, in evaluation mode."""
    return TorchEncoder(student(seed=7, dim=dim, **changes), name="teacher", device="cpu")


@dataclass
class RecipeParts:
    loss: dict[str, Any] = field(default_factory=lambda: {"clip": 1})
    train: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        settings = {"steps": 6, "batch_size": 8, "save_every": 2, "evaluate_every": 3, "warmup": 0.0, **self.train}
        whole = {
            "name": "tiny",
            "student": spec().model_dump(mode="json"),
            "loss": self.loss,
            "train": settings,
            "views": {"count": 2},
            **self.rest,
        }
        return Recipe.model_validate_json(json.dumps(whole))


def equal_states(left: Path | DualEncoder, right: Path | DualEncoder) -> bool:
    from safetensors.torch import load_file

    a, b = (x.state_dict() if isinstance(x, DualEncoder) else load_file(x) for x in (left, right))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
