"""Visual prompts: learned tokens beside an image's patches, at the input or anew at each of the first layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.anatomy import ImagePlaces, image_places
from clipette.models.core import ImageTower

PreHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]

RECOMPUTED = (
    "the {side} tower recomputes its layers in the backward pass (gradient checkpointing), where they would miss the "
    "learned tokens: switch it off with set_grad_checkpointing(False)"
)


@contextmanager
def visual_prompts(tower: ImageTower, prompts: Tensor) -> Iterator[None]:
    """Inside the ``with``, ``tower(pixels)`` sees learned tokens behind its class token and patches.

    z_0 = norm_pre([E, P_0]),  [z_i, _] = L_i([z_{i−1}, P_i]) for i < depth,  [z_i, s_i] = L_i([z_{i−1}, s_{i−1}])
    after; the vector is the tower's own pooling of z alone.

    The first layer's tokens enter behind the position embeddings, of which they have none, and before the norm that
    some towers (CLIP) have there; the next ``depth`` − 1 layers' enter raw, in place of what the layer before made of
    its own. The last layer's are dropped, so that no pooling (class token, average, attention) sees them.

    Shapes: prompts [depth, M, W] with W = ``token_width(tower)``, in any floating type: they are cast to the tokens'.
    depth 1 is VPT-shallow; M = 0 changes nothing. Gradients reach ``prompts``, whoever is frozen. The tower is left as
    it was, also by an exception. Within each other, the inner prompts stand behind the outer.

    Raises:
        ConfigError: no vision transformer that we know, one with gradient checkpointing whose recomputation would miss
            the tokens, or prompts of another shape.

    Paper: Jia et al. (VPT), ECCV 2022, eqs. 4-7; MaPLe, PromptSRC and PromptKD's "independent" prompts.
    Deviation: VPT sets its tokens between the class token and the patches. To attention the order is nothing.
    """
    places = image_places(tower)
    _check(places, prompts)
    with ExitStack() as hooks:
        for handle in _hooks(places, prompts):
            hooks.callback(handle.remove)
        yield


def _check(places: ImagePlaces, prompts: Tensor) -> None:
    """Raises ``ConfigError`` where ``prompts`` cannot enter the tower."""
    if prompts.ndim != 3 or len(prompts) == 0:
        raise ConfigError(f"visual prompts are [depth, count, width] with depth >= 1, got {list(prompts.shape)}")
    if prompts.shape[2] != places.width:
        raise ConfigError(f"the visual prompts are {prompts.shape[2]} wide, the tower's tokens {places.width}")
    if len(prompts) > len(places.layers):
        raise ConfigError(f"visual prompts for {len(prompts)} layers, but the image tower has {len(places.layers)}")
    if places.recomputed:
        raise ConfigError(RECOMPUTED.format(side="image"))


def spliced(hidden: Tensor, start: int, tokens: Tensor, *, over: int) -> Tensor:
    """``tokens`` [M, W] or [R, M, W] in ``hidden`` [R, N, W] from ``start`` on, instead of ``over`` tokens there."""
    # Not len(): a graph that is traced would take the batch for a constant.
    rows = tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
    return torch.cat([hidden[:, :start], rows, hidden[:, start + over :]], dim=1)


def replacing(start: Callable[[], int], tokens: Tensor) -> PreHook:
    """A layer's pre-hook that puts ``tokens`` [M, W] in the place of as many tokens of its input."""
    return lambda module, args: (
        spliced(args[0], start(), tokens, over=tokens.shape[-2]),
        *args[1:],
    )


def _hooks(places: ImagePlaces, prompts: Tensor) -> list[Any]:
    # Where this pass's prompts begin: known once the image is embedded, and other prompts may come behind them.
    start = 0

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal start
        start = args[0].shape[1]
        return (spliced(args[0], start, prompts[0], over=0), *args[1:])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return spliced(output, start, prompts[0, :0], over=prompts.shape[1])

    handles = [places.entry.register_forward_pre_hook(enter)]
    for layer, tokens in zip(places.layers[1:], prompts[1:], strict=False):
        handles.append(layer.register_forward_pre_hook(replacing(lambda: start, tokens)))
    # In front of the hooks that are there: the inner of two nested prompts leaves first.
    handles.append(places.layers[-1].register_forward_hook(leave, prepend=True))
    return handles
