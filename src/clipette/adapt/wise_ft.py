"""WiSE-FT: the weights between a zero-shot model and its fine-tuned self."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipette.errors import ConfigError, ModelError

# The share of the fine-tuned weights, 0 to 1, as the paper draws its curves.
SHARES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Mixed:
    """The ``share`` α that validation chose, the mixed ``state``, and the ``curve``: (α, score) in order."""

    share: float
    state: dict[str, Tensor]
    curve: tuple[tuple[float, float], ...]


@torch.no_grad()
def wise_ft(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
    """The state dict between two of one architecture.

    θ = (1 − α) · θ₀ + α · θ₁

    ``before`` θ₀ and ``after`` θ₁: state dicts with equal names and shapes, parameters and buffers alike; ``share`` α
    in 0..1, 0 gives θ₀'s bytes and 1 θ₁'s. Half precision is mixed in float32 and keeps its type. What is not floating
    point (counters, position ids) is θ₀'s at α = 0 and else θ₁'s. New tensors: neither state is touched.

    Raises:
        ConfigError: a share outside 0..1.
        ModelError: names, shapes or types differ; the message names the first.

    Paper: Wortsman et al. (WiSE-FT), CVPR 2022, eq. 1, α = 0.5. Deviation: none.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"WiSE-FT's share {share} of the fine-tuned weights must lie in 0..1")
    _check(before, after)
    return {name: _between(value, after[name], share) for name, value in before.items()}


def choose_share(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    score_of: Callable[[Mapping[str, Tensor]], float],
    shares: Sequence[float] = SHARES,
) -> Mixed:
    """Mix at each share and keep the best by ``score_of(state)``, a figure of **validation** images; ties: the smaller.

    Raises:
        ConfigError, ModelError: as ``wise_ft``; no share.
    """
    if not shares:
        raise ConfigError("WiSE-FT: name at least one share")
    curve = [(float(share), float(score_of(wise_ft(before, after, share)))) for share in sorted(shares)]
    best = max(curve, key=lambda point: (point[1], -point[0]))[0]
    return Mixed(best, wise_ft(before, after, best), tuple(curve))


def _between(before: Tensor, after: Tensor, share: float) -> Tensor:
    if not before.is_floating_point():
        return (before if share == 0 else after).clone()
    wide = torch.promote_types(before.dtype, torch.float32)
    # At 0 and 1 lerp gives its ends exactly.
    return torch.lerp(before.to(wide), after.to(before.device, wide), share).to(before.dtype)


def _check(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for one, other, whose in ((before, after, "fine-tuned"), (after, before, "zero-shot")):
        missing = [name for name in one if name not in other]
        if missing:
            raise ModelError(
                f"WiSE-FT mixes two states of one architecture: the {whose} one has no '{missing[0]}'"
                f"{f' ({len(missing)} names in all)' if len(missing) > 1 else ''}; fine-tune the same model"
            )
    for name, value in before.items():
        if value.shape != after[name].shape or value.dtype != after[name].dtype:
            raise ModelError(
                f"WiSE-FT mixes two states of one architecture: '{name}' is {_described(value)} in the zero-shot one "
                f"and {_described(after[name])} in the fine-tuned one"
            )


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
