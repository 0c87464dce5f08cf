"""What one training step sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of one step: B rows of images, and k·B rows of captions, image by image.

    ``inputs``: what the student reads (``pixels`` [B, 3, H, W] or ``image_trunk`` [B, W]; ``text_trunk`` [B, W];
    ``teacher_pixels``). ``tokens``: the student's tokenized captions [B, L];
    ``teacher_tokens``: an online teacher's. ``targets``: what only the loss reads
    (``teacher_image`` [B, Dt], ``teacher_text`` [k·B, Dt], ``ids`` [B] and ``text_ids`` [k·B]: whose picture it is,
    ``labels`` [B], -1 where unknown).
    """

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_tokens: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.targets["ids"])

    def part(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` with their captions: one micro-batch."""

        def cut(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            # Captions have k rows for each image.
            out = {}
            for name, value in values.items():
                each = len(value) // self.size
                out[name] = value[start * each : stop * each]
            return out

        return Batch(cut(self.inputs), cut(self.targets), cut(self.tokens), cut(self.teacher_tokens))

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        if device.type == "cpu":
            return self

        def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=True) for name, value in values.items()}

        return Batch(moved(self.inputs), moved(self.targets), moved(self.tokens), moved(self.teacher_tokens))
