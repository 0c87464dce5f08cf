"""CoCoOp: a context that each image moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipette.adapt import settings
from clipette.adapt.adapter import Adapter
from clipette.adapt.context import ClassContext, start_of
from clipette.adapt.learner import Frozen, Reads, cross_entropy

# Texts encoded at once: an image has as many as there are classes.
ROWS = 1024


def shift(image: Tensor, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor]) -> Tensor:
    """π(f) = W₂ · ReLU(W₁ · f + b₁) + b₂: unit image vectors [B, D] to shifts [B, W] of every token alike.

    ``down``: (W₁ [H, D], b₁ [H]); ``up``: (W₂ [W, H], b₂ [W]). Paper: Zhou et al. (CoCoOp), CVPR 2022, section 3.2.
    """
    return torch.relu(image @ down[0].T + down[1]) @ up[0].T + up[1]


def conditional_logits(prompts: ClassContext, image: Tensor, context: Tensor, moved: Tensor) -> Tensor:
    """[B, C] of unit vectors [B, D]: image b's class vectors are those under context [M, W] + moved[b] [B, W].

    Paper: CoCoOp, eq. 3. Deviation: none.
    """
    classes = len(prompts.tokens.places)
    step = max(1, ROWS // classes)
    out = []
    for start in range(0, len(image), step):
        rows = slice(start, start + step)
        vectors = prompts.vectors((context + moved[rows, None])[:, None])
        # In half precision each logit would move by up to 0.4 at a scale of 100.
        with torch.autocast(image.device.type, enabled=False):
            cosines = torch.einsum("bd,bcd->bc", image[rows].to(vectors), vectors)
        model = prompts.frozen.model
        out.append(cosines * model.scale.detach() + model.bias.detach())
    return torch.cat(out)


class MetaNet(nn.Module):
    """The context [M, W], and the two layers that move it."""

    def __init__(self, start: Tensor, dim: int, reduction: int, *, seed: int) -> None:
        super().__init__()
        self.context = nn.Parameter(start)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.Linear(dim, max(1, dim // reduction))
            self.up = nn.Linear(max(1, dim // reduction), start.shape[1])

    def moved(self, image: Tensor) -> Tensor:
        """[B, W] of unit vectors [B, D]."""
        return shift(image, (self.down.weight, self.down.bias), (self.up.weight, self.up.bias))


class CoCoOp:
    """CE over logits of class vectors that each image has for itself: v_m(x) = v_m + π(f(x)).

    No image–text space remains: the result is a classifier, for the classes it learned and any others.
    Each image encodes every class text anew, with gradients: batches of one, as the paper has them.

    Raises ``ConfigError`` as CoOp. Paper: Zhou et al., Conditional prompt learning, CVPR 2022, eq. 3.
    """

    reads: ClassVar[Reads] = "vectors"
    compares: ClassVar[bool] = False

    def __init__(
        self,
        how: settings.CoCoOp,
        frozen: Frozen,
        classes: tuple[str, ...],
        *,
        templates: str = "single",
        seed: int = 0,
    ) -> None:
        start = start_of(frozen.model.text_tower(), how.tokens, how.start, seed=seed)
        self.classes = classes
        self.prompts = ClassContext.of(frozen, classes, how.tokens, rest=start.rest)
        self.module = MetaNet(start.value, frozen.model.dim, how.reduction, seed=seed)

    def features(self, given: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, C]."""
        return {"logits": conditional_logits(self.prompts, given, self.module.context, self.module.moved(given))}

    def terms(self, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``cross_entropy``."""
        return {"cross_entropy": cross_entropy(features["logits"], targets)}

    def adapters(self) -> tuple[Adapter, ...]:
        """The context and the two layers."""
        tensors = {name: value.detach() for name, value in self.module.state_dict().items()}
        return (Adapter("conditional", self.classes, "single", self.prompts.facts(), tensors),)
