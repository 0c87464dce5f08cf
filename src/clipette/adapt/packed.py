"""Logits as unit vectors: what has no image–text space poured, evaluated and distilled like everything else.

v(z) = [z − z̄, √(R² − ‖z − z̄‖²)] / R and w_c = e_c give R · v(z) · w_c = z_c − z̄: the same probabilities, the same
order. A classifier of C classes is then an encoder of width C + 1 and scale R, whose texts are its class names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipette.data.prompts import class_prompts
from clipette.errors import ModelError, UnsupportedError
from clipette.models.core import Blueprint, DualEncoder, ImageTower
from clipette.models.inference import TorchEncoder
from clipette.models.rebuild import table_text_tower
from clipette.types import Encoded, Sample

# Far above the length of centred logits (100 · √C, or so), and small enough that half precision holds them.
RADIUS = 1e4
PACKED = "packed_logits"
NOTHING: Mapping[str, Any] = {}
WORDINGS = ("none", "single")


def pack(logits: Tensor) -> Tensor:
    """Unit vectors [B, C + 1] of logits [B, C].

    Raises:
        ModelError: centred logits longer than the radius.
    """
    centred = (logits - logits.mean(dim=-1, keepdim=True)).double()
    left = RADIUS**2 - centred.square().sum(dim=-1, keepdim=True)
    if bool((left < 0).any()):
        raise ModelError(f"logits of length {math.sqrt(RADIUS**2 - float(left.min())):.3g}: more than {RADIUS:g}")
    return (torch.cat([centred, left.sqrt()], dim=-1) / RADIUS).float()


class UnitTrunk(nn.Module):
    """The base's own unit vectors: pixels [B, 3, H, W] to [B, D]."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, D]."""
        return nn.functional.normalize(self.tower(pixels).float(), dim=-1)


class LogitHead(nn.Module):
    """``pack(logits_of(x))``. ``tensors``: what ``logits_of`` reads, so that it moves and is counted with the model."""

    def __init__(self, logits_of: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.logits_of = logits_of
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C + 1]."""
        with torch.autocast(x.device.type, enabled=False):
            return pack(self.logits_of(x.float()))


def is_packed(model: DualEncoder) -> bool:
    """Whether a model's vectors are logits."""
    return model.image is not None and model.image.blueprint.kind == PACKED


def packed_encoder(
    tower: ImageTower,
    trunk: nn.Module,
    head: LogitHead,
    classes: Sequence[str],
    *,
    told: Mapping[str, Any] = NOTHING,
) -> DualEncoder:
    """An encoder whose cosines with its class names, times its scale, are the logits that ``head`` packs.

    ``tower``: the base's, for its preprocessing. ``told``: what changes the trunk's output beside its weights.
    """
    inner = {"kind": tower.blueprint.kind, "arguments": dict(tower.blueprint.arguments)}
    width = len(classes) + 1
    image = ImageTower(
        trunk,
        head,
        preprocess=tower.preprocess,
        width=width,
        blueprint=Blueprint(PACKED, {"inner": inner, "told": dict(told)}, tower.blueprint.assets),
    )
    rows = torch.eye(len(classes), width)
    said = {text: row for row, name in enumerate(classes) for text in _texts(name)}
    text = table_text_tower(tuple(said), rows[torch.tensor(list(said.values()))])
    return DualEncoder(image, text, logit_scale=math.log(RADIUS))


def _texts(name: str) -> list[str]:
    return list(dict.fromkeys([name, *(class_prompts([name], wording)[0][0] for wording in WORDINGS)]))


class PackedClassifier:
    """``types.Classifier`` over an encoder that ``packed_encoder`` made: its logits, less each image's own mean."""

    def __init__(self, encoder: TorchEncoder, class_names: Sequence[str]) -> None:
        if encoder.dim != len(class_names) + 1:
            raise UnsupportedError(f"{encoder.name} is no classifier of {len(class_names)} classes")
        self._encoder = encoder
        self._names = tuple(class_names)

    @property
    def name(self) -> str:
        """As the encoder's."""
        return self._encoder.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the columns of the logits are."""
        return self._names

    def classify_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        """Logits [N, C] of what could be read."""
        found = self._encoder.encode_samples(samples, batch_size=batch_size, progress=progress)
        logits = np.asarray(found.vectors[:, :-1] * np.float32(self._encoder.logit_scale), dtype=np.float32)
        return Encoded(found.keys, logits, found.failures)
