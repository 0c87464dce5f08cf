"""VPT: learned tokens beside an image's patches; the texts stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.learner import Frozen, Reads, cross_entropy
from clipette.losses.numerics import unit
from clipette.models.anatomy import layers_of, patch_size, token_width
from clipette.models.inject import visual_prompts
from clipette.models.prompts import DeepPrompts


class VPT:
    """CE(scale · cos(f(x; P), w), label) over the tokens P alone, w the frozen class vectors, computed once.

    ``depth`` 1 is shallow; none is deep: fresh tokens at every layer, the last layer's dropped.

    Raises:
        ConfigError: an image tower without tokens (a convolutional network).

    Paper: Jia et al., Visual prompt tuning, ECCV 2022, eqs. 4-7. Deviation: the class texts stand for the paper's
    linear head, as in MaPLe's and PromptSRC's comparisons; so one image–text space remains.
    """

    reads: ClassVar[Reads] = "pixels"
    compares: ClassVar[bool] = False

    def __init__(
        self, how: settings.VPT, frozen: Frozen, classes: tuple[str, ...], *, templates: str = "single", seed: int = 0
    ) -> None:
        tower = frozen.model.image_tower()
        layers = len(layers_of(tower))
        patch = patch_size(tower) if how.init == "vpt" else None
        depth = layers if how.depth is None else min(how.depth, layers)
        self.module = DeepPrompts(depth, how.tokens, token_width(tower), init=how.init, patch=patch, seed=seed)
        self.frozen = frozen
        self.classes = classes
        self.templates = templates
        self.texts = frozen.class_vectors(classes, templates)

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """``image`` [B, D], of pixels."""
        tower = self.frozen.model.image_tower()
        with visual_prompts(tower, self.module()):
            return {"image": unit(tower(given))}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``."""
        return {"cross_entropy": cross_entropy(self.frozen.logits(features["image"], self.texts), targets)}

    def adapters(self) -> tuple[Adapter, ...]:
        """The tokens."""
        return (Adapter("prompts", self.classes, self.templates, {}, {"visual": self.module().detach()}),)
