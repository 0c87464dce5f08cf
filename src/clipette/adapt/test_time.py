"""TPT in a model: pixels in, logits out, a prompt tuned for each image on the way and forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipette.adapt.context import ClassContext
from clipette.adapt.tpt import TPTSettings, tune_prompt
from clipette.data.views import ViewPolicy, draw_view
from clipette.losses.numerics import unit

# torchvision's RandomResizedCrop and flip, as TPT's release has them.
POLICY = ViewPolicy(scale=(0.08, 1.0), flip=0.5)


def cut_views(pixels: Tensor, count: int) -> Tensor:
    """[count, 3, H, W] of one image [3, H, W]: itself, then crops of it at its size, the same for every image."""
    height, width = pixels.shape[-2:]
    out = [pixels]
    for number in range(1, count):
        view = draw_view(POLICY, (width, height), 0, "tpt", number)
        left, top, right, bottom = view.box
        cut = pixels[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        sized = F.interpolate(cut[None], (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
        out.append(sized.flip(-1) if view.flip else sized)
    return torch.stack(out)


class TuningTrunk(nn.Module):
    """Logits [B, C] of pixels [B, 3, H, W], each image under a prompt of its own that starts from ``context``.

    Paper: Shu et al. (TPT), NeurIPS 2022, section 3.2. Deviation: views are cut from the preprocessed image, not from
    the file: those of a large photograph are softer.
    """

    context: Tensor

    def __init__(self, prompts: ClassContext, context: Tensor, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.tower = prompts.frozen.model.image_tower()
        self.register_buffer("context", context)
        # In a list: the base is a part of the model once, as its tower.
        self._prompts = [prompts]
        self.settings = TPTSettings(**settings)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C]."""
        # Encoders run without gradients, and in inference mode none can be had: leave it for the prompt's own.
        with torch.inference_mode(False):
            return torch.stack([self._one(each.clone()) for each in pixels])

    def _one(self, pixels: Tensor) -> Tensor:
        prompts = self._prompts[0]
        with torch.no_grad():
            images = unit(self.tower(cut_views(pixels, self.settings.views)))

        def logits_of(context: Tensor) -> Tensor:
            return prompts.frozen.logits(images, prompts.vectors(context))

        tuned = tune_prompt(logits_of, self.context.clone(), self.settings)
        with torch.no_grad():
            return prompts.frozen.logits(images[:1], prompts.vectors(tuned))[0]
