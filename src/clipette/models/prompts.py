"""Learned tokens as a module, for whoever owns and trains them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError


class DeepPrompts(nn.Module):
    """Learned tokens of one tower: ``forward()`` gives them as [depth, count, width].

    ``init``: ``normal`` draws N(0, 0.02²) (CoOp, MaPLe, PromptSRC, PromptKD); ``vpt`` draws U(−v, v) with
    v = √(6 / (3 · p_h · p_w + width)) over the ``patch`` (p_h, p_w) in pixels (VPT). ``first`` [count, width] is the
    first layer's initial value instead, such as ``phrase_embeddings(text_tower, "a photo of a")``. ``seed`` draws.

    Raises:
        ConfigError: no layer, a negative count, an unknown ``init``, ``vpt`` without ``patch``, ``first`` of another
            shape.
    """

    def __init__(
        self,
        depth: int,
        count: int,
        width: int,
        *,
        init: Literal["normal", "vpt"] = "normal",
        patch: tuple[int, int] | None = None,
        first: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1 or count < 0 or width < 1:
            raise ConfigError(f"prompts need depth >= 1, count >= 0 and a width, got {depth}, {count} and {width}")
        value = torch.empty(depth, count, width)
        draws = torch.Generator().manual_seed(seed)
        if init == "normal":
            value.normal_(0.0, 0.02, generator=draws)
        elif init == "vpt":
            if patch is None:
                raise ConfigError("init: vpt depends on the patch size: give patch, from patch_size(tower)")
            bound = math.sqrt(6.0 / (3 * patch[0] * patch[1] + width))
            value.uniform_(-bound, bound, generator=draws)
        else:
            raise ConfigError(f"unknown init '{init}' of prompts: choose normal or vpt")
        if first is not None:
            if first.shape != value.shape[1:]:
                raise ConfigError(
                    f"the first layer's prompts are [{count}, {width}], but their initial value is {list(first.shape)}"
                )
            value[0] = first.detach()
        self.tokens = nn.Parameter(value)

    def forward(self) -> Tensor:
        """[depth, count, width]."""
        return self.tokens
