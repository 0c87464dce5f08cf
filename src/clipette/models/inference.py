"""A ``DualEncoder`` at work: the torch-free ``Encoder`` protocol over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from clipette.data.images import DecodeSettings
from clipette.errors import ConfigError
from clipette.memory import keep_freed_memory
from clipette.models.core import DualEncoder, weights_digest
from clipette.runtime import batches
from clipette.types import Encoded, Floats, ImageInput, Sample


def default_device(name: str | None = None) -> torch.device:
    """The asked device, or CUDA where there is one, or the CPU. Raises ``ConfigError`` for one that is not there."""
    keep_freed_memory()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Only a first tensor tells whether it works.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: {reason}; leave it out to take what is there (clipette doctor)") from None
    return device


class TorchEncoder:
    """``types.Encoder`` over a ``DualEncoder``, in evaluation mode and without gradients.

    ``precision``: ``fp32`` or ``bf16`` (autocast; meant for GPUs, slower on most CPUs).
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        name: str,
        space: str | None = None,
        device: str | None = None,
        precision: str = "fp32",
        settings: DecodeSettings | None = None,
    ) -> None:
        self.device = default_device(device)
        self.model = model.to(self.device).eval()
        self._name = name
        self._space = space or weights_digest(model)
        self.precision = precision
        self.settings = settings or DecodeSettings()

    @property
    def name(self) -> str:
        return self._name

    @property
    def space(self) -> str:
        return self._space

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def logit_scale(self) -> float:
        return float(self.model.scale.detach())

    @property
    def logit_bias(self) -> float:
        return float(self.model.bias.detach())

    @property
    def can_encode_text(self) -> bool:
        return self.model.text is not None

    @property
    def can_encode_images(self) -> bool:
        return self.model.image is not None

    @contextmanager
    def _mode(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        half = self.precision == "bf16"
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                yield
        finally:
            # Module by module: what was frozen in evaluation mode stays so.
            for module in training:
                module.training = True

    def encode_pixels(self, pixels: Floats) -> Floats:
        """Unit vectors [B, D] of already preprocessed pixels [B, 3, H, W]."""
        with self._mode():
            tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
            tensor = tensor.contiguous(memory_format=torch.channels_last)
            out: Floats = self.model.encode_image(tensor).cpu().numpy()
        return out

    def encode_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Floats:
        return batches.encode_images(
            images,
            self.encode_pixels,
            self.model.image_tower().preprocess,
            dim=self.dim,
            batch_size=batch_size,
            settings=self.settings,
        )

    def encode_samples(self, samples: Sequence[Sample], *, batch_size: int = 64, progress: bool = False) -> Encoded:
        return batches.encode_samples(
            samples,
            self.encode_pixels,
            self.model.image_tower().preprocess,
            name=self.name,
            dim=self.dim,
            batch_size=batch_size,
            settings=self.settings,
            progress=progress,
        )

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Floats:
        tower = self.model.text_tower()

        def encode(rows: Sequence[str]) -> Floats:
            with self._mode():
                tensors = {
                    name: torch.from_numpy(value).to(self.device) for name, value in tower.tokenizer(rows).items()
                }
                out: Floats = self.model.encode_text(tensors).cpu().numpy()
            return out

        return batches.encode_texts(texts, encode, dim=self.dim, batch_size=batch_size)
