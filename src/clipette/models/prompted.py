"""An image tower that carries learned tokens of its own: PromptKD's student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipette.models.anatomy import layers_of, patch_size, token_width
from clipette.models.core import Blueprint, ImageTower
from clipette.models.inject import visual_prompts
from clipette.models.prompts import DeepPrompts
from clipette.models.spec import PromptSpec


class PromptedTower(nn.Module):
    """``tower`` with its learned tokens in place: pixels [B, 3, H, W] → [B, width]."""

    def __init__(self, tower: ImageTower, prompts: DeepPrompts) -> None:
        super().__init__()
        self.tower = tower
        self.prompts = prompts

    def forward(self, pixels: Tensor) -> Tensor:
        with visual_prompts(self.tower, self.prompts()):
            out: Tensor = self.tower(pixels)
        return out


def prompted_image(tower: ImageTower, spec: PromptSpec, *, seed: int = 0) -> ImageTower:
    """``tower`` with ``spec.count`` learned tokens in its first ``spec.depth`` layers (all of them, if it has fewer).

    PromptKD (CVPR 2024, section 3.3) learns such tokens and a projector, and leaves the rest of its student frozen.
    Raises ``ConfigError`` for a tower without tokens, such as a convolutional network.
    """
    depth = min(spec.depth, len(layers_of(tower)))
    patch = patch_size(tower) if spec.init == "vpt" else None
    prompts = DeepPrompts(depth, spec.count, token_width(tower), init=spec.init, patch=patch, seed=seed)
    inner = {"kind": tower.blueprint.kind, "arguments": dict(tower.blueprint.arguments)}
    blueprint = Blueprint("prompted_image", {"inner": inner, "prompts": spec.model_dump()}, tower.blueprint.assets)
    return ImageTower(
        PromptedTower(tower, prompts),
        torch.nn.Identity(),
        preprocess=tower.preprocess,
        width=tower.width,
        blueprint=blueprint,
    )
