"""The shape every model takes inside Clipette: an image tower, a text tower, a scale and a bias.

A tower is a *trunk* (somebody's backbone) and a *head* (the map into the shared space), so that a frozen trunk's
output can be computed once and its head trained alone. A tower knows how to be built again without its origin: its
``blueprint`` is a kind, JSON arguments and small asset files (a tokenizer, a configuration).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import UnsupportedError
from clipette.types import Tokenizer


@dataclass(frozen=True)
class Blueprint:
    """How to build an (untrained) tower again: ``BUILDERS[kind](arguments, assets)`` in ``models/rebuild.py``."""

    kind: str
    arguments: Mapping[str, Any]
    assets: Mapping[str, bytes] = field(default_factory=dict)


class ImageTower(nn.Module):
    """Pixels in, vectors out: ``head(trunk(pixels))``, not normalised.

    Shapes: pixels [B, 3, H, W], already by this tower's own ``preprocess``; result [B, width].
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Module, *, preprocess: Preprocess, width: int, blueprint: Blueprint
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.preprocess = preprocess
        self.width = width
        self.blueprint = blueprint

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(pixels))
        return out


class TextTower(nn.Module):
    """Tokens in, vectors out: ``head(trunk(tokens))``, not normalised.

    Shapes: each array of tokens [B, L], from this tower's own ``tokenizer``; result [B, width].
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Module, *, tokenizer: Tokenizer, width: int, blueprint: Blueprint
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.tokenizer = tokenizer
        self.width = width
        self.blueprint = blueprint

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.head(self.trunk(tokens))
        return out


class DualEncoder(nn.Module):
    """An image tower and a text tower in one space, with the scale (and bias) of their logits.

    logits = exp(``logit_scale``) · cos(image, text) + ``logit_bias``. Either tower may be missing.
    """

    def __init__(
        self,
        image: ImageTower | None,
        text: TextTower | None,
        *,
        logit_scale: float = math.log(1 / 0.07),
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        tower = self.image or self.text
        if tower is None:
            raise UnsupportedError("this model has neither an image tower nor a text tower")
        return int(tower.width)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), the factor on cosines."""
        return self.logit_scale.exp()

    @property
    def bias(self) -> Tensor:
        """What is added to scaled cosines: 0 without a learned bias."""
        return self.logit_bias if self.logit_bias is not None else torch.zeros_like(self.logit_scale)

    def image_tower(self) -> ImageTower:
        """The image tower. Raises ``UnsupportedError`` where there is none."""
        if self.image is None:
            raise UnsupportedError("this model has no image tower: it cannot encode images")
        return self.image

    def text_tower(self) -> TextTower:
        """The text tower. Raises ``UnsupportedError`` where there is none."""
        if self.text is None:
            raise UnsupportedError("this model has no text tower: it cannot encode text")
        return self.text

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D] in float32 of pixels [B, 3, H, W]."""
        return F.normalize(self.image_tower()(pixels).float(), dim=-1)

    def encode_text(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Unit vectors [B, D] in float32 of tokens [B, L]."""
        return F.normalize(self.text_tower()(tokens).float(), dim=-1)


def weights_digest(module: nn.Module) -> str:
    """32 hex digits over names, shapes, types and bytes of all parameters and buffers: equal weights, equal digest."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        state.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def set_trainable(module: nn.Module, flag: bool) -> None:
    """Freeze or release every parameter of ``module``."""
    for parameter in module.parameters():
        parameter.requires_grad_(flag)
