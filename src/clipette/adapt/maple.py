"""MaPLe: text tokens in several layers, and visual ones that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.context import ClassContext, start_of
from clipette.adapt.learner import Frozen, Reads, cross_entropy
from clipette.errors import ConfigError
from clipette.losses.numerics import unit
from clipette.models.anatomy import layers_of, token_width
from clipette.models.inject import visual_prompts


class Coupled(nn.Module):
    """Text tokens P_0 … P_{K−1} [M, W_t], and one map W_k, b_k for each layer's visual ones."""

    def __init__(self, start: Tensor, depth: int, width: int, *, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        deeper = torch.empty(depth - 1, *start.shape).normal_(0.0, 0.02, generator=draws)
        self.context = nn.Parameter(start)
        self.deeper = nn.Parameter(deeper)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleList(nn.Linear(start.shape[1], width) for _ in range(depth))

    def visual(self) -> Tensor:
        """[K, M, W_v]: P̃_k = W_k · P_k + b_k.

        Paper: Khattak et al. (MaPLe), CVPR 2023, section 3.2.3. Deviation: none.
        """
        tokens = [self.context, *self.deeper]
        return torch.stack([layer(each) for layer, each in zip(self.maps, tokens, strict=True)])


def shared_depth(frozen: Frozen, depth: int) -> int:
    """``depth``, or as many layers as both towers have.

    Raises:
        ConfigError: a tower that takes no tokens inside, or none at all.
    """
    image, text = layers_of(frozen.model.image_tower()), layers_of(frozen.model.text_tower())
    if not text and depth > 1:
        raise ConfigError("this text encoder takes learned tokens at its input only: set method.depth to 1")
    return min(depth, len(image), len(text) or 1)


class MaPLe:
    """CE over the tokens of both towers, joined by maps; nothing else learns.

    Raises:
        ConfigError: towers that take no tokens (a convolutional network; BERT-like encoders beyond depth 1).

    Paper: Khattak et al., MaPLe: multi-modal prompt learning, CVPR 2023, eqs. 1-6; M = 2, depth 9. Deviation: each map
    has a start of its own, where the release clones one.
    """

    reads: ClassVar[Reads] = "pixels"
    compares: ClassVar[bool] = False

    def __init__(
        self, how: settings.MaPLe, frozen: Frozen, classes: tuple[str, ...], *, templates: str = "single", seed: int = 0
    ) -> None:
        depth = shared_depth(frozen, how.depth)
        start = start_of(frozen.model.text_tower(), how.tokens, how.start, seed=seed)
        width = token_width(frozen.model.image_tower())
        self.frozen = frozen
        self.classes = classes
        self.prompts = ClassContext.of(frozen, classes, how.tokens, rest=start.rest)
        self.module = Coupled(start.value, depth, width, seed=seed)

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """``image`` [B, D], of pixels."""
        tower = self.frozen.model.image_tower()
        with visual_prompts(tower, self.module.visual()):
            return {"image": unit(tower(given))}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``."""
        deeper = self.module.deeper if len(self.module.deeper) else None
        vectors = self.prompts.vectors(self.module.context, deeper)
        return {"cross_entropy": cross_entropy(self.frozen.logits(features["image"], vectors), targets)}

    @torch.no_grad()
    def adapters(self) -> tuple[Adapter, ...]:
        """The tokens of both sides: the maps have done their work, and would be a thousand times as large."""
        module = self.module
        tensors = {"context": module.context, "deeper": module.deeper, "visual": module.visual()}
        kept = {name: value.detach() for name, value in tensors.items() if len(value)}
        return (Adapter("prompts", self.classes, "single", self.prompts.facts(), kept),)
