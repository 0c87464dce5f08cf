"""What one training step sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, all with the batch as first dimension.

    ``inputs``: what the student reads (``pixels`` [B, 3, H, W] or ``image_trunk`` [B, W]; ``text_trunk`` [B, W];
    ``teacher_pixels``). ``tokens``: the student's tokenized captions [B, L];
    ``teacher_tokens``: an online teacher's. ``targets``: what only the loss reads
    (``teacher_image`` [B, Dt], ``teacher_text`` [B, Dt], ``ids`` [B], ``labels`` [B], -1 where unknown).
    """

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_tokens: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.targets["ids"])

    def part(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop``: one micro-batch."""
        return Batch(
            {name: value[start:stop] for name, value in self.inputs.items()},
            {name: value[start:stop] for name, value in self.targets.items()},
            {name: value[start:stop] for name, value in self.tokens.items()},
            {name: value[start:stop] for name, value in self.teacher_tokens.items()},
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        if device.type == "cpu":
            return self

        def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=True) for name, value in values.items()}

        return Batch(moved(self.inputs), moved(self.targets), moved(self.tokens), moved(self.teacher_tokens))
