"""Learned masks over a student's heads and hidden units: which of its weights a smaller model inherits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clipette.errors import ConfigError
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.hard_concrete import kept_units, open_probability, sample_gates, settled_gates
from clipette.models.pruned import Kept, open_layers, prune

# Where masks start: P(z > 0) = 0.99993, so that of 7,000 hidden units all are kept, and still with a gradient. The
# release starts at 10, where P hardly has one.
START = 8.0
# TinyCLIP's release starts both of its multipliers here.
MULTIPLIER = 10.0
# A share this far from the target is worth a warning.
NEAR = 0.05

log = logging.getLogger(__name__)


def lagrangian(share: Tensor, target: float, multipliers: Tensor) -> Tensor:
    """λ₁ |p − t| + λ₂ (p − t)², descended in p and ascended in λ.

    p = ``share``, the expected share of parameters kept, t = ``target``, both in [0, 1]; ``multipliers`` [2] → a
    scalar >= 0. The gradient that reaches the multipliers has its sign turned, so that one optimiser does both, and
    they grow for as long as the constraint is missed.

    Paper: Wu et al. (TinyCLIP), ICCV 2023, arXiv:2309.12314, section 3.2, after Wang et al., EMNLP 2020. Deviation: the
    distance counts from both sides; the release counts only what is kept beyond the target, and the first term of the
    paper has a sign, which the multiplier must first unlearn.
    """
    gap = share - target
    # The value of λ with minus its gradient.
    rising = 2 * multipliers.detach() - multipliers
    return rising[0] * gap.abs() + rising[1] * gap.square()


class _Gate:
    """Multiplies what enters a linear map, by channel, while its tower is at work."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.value is None else (args[0] * self.value.to(args[0].dtype), *args[1:])


class TowerMasks(nn.Module):
    """One gate for each head and hidden unit of a tower, layer by layer: its heads, then its hidden units.

    From its making until ``harden`` every forward of ``tower`` is gated: z ⊙ what enters W_proj (a head's channels
    alike) and W_down. In training mode the gates are drawn anew for each forward; in evaluation they are those of the
    smaller model that would remain now. The tower itself is not a part of this module.

    Raises ``ConfigError`` for a tower that cannot be pruned (``models.pruned.open_layers``) or is frozen.
    """

    cost: Tensor

    def __init__(self, tower: ImageTower | TextTower, name: str) -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in tower.trunk.parameters()):
            raise ConfigError(
                f"masks: the {name} tower's trunk is frozen, and what is frozen is not pruned: give it train: all, or "
                f"leave {name} out of masks.towers"
            )
        layers = open_layers(tower)
        self.sizes = [size for layer in layers for size in (layer.heads, layer.hidden)]
        self.log_alpha = nn.Parameter(torch.full((sum(self.sizes),), START))
        costs = [
            torch.full((size,), float(each))
            for layer in layers
            for size, each in ((layer.heads, layer.head_parameters), (layer.hidden, layer.unit_parameters))
        ]
        # Parameters that go with each unit: the architecture's, so no part of a checkpoint.
        self.register_buffer("cost", torch.cat(costs), persistent=False)
        self._gates = [(layer, _Gate(), _Gate()) for layer in layers]
        self._handles: list[RemovableHandle] = []
        for layer, heads, hidden in self._gates:
            self._handles.append(layer.attention.proj.register_forward_pre_hook(heads))
            self._handles.append(layer.down.register_forward_pre_hook(hidden))
        self._handles.append(tower.register_forward_pre_hook(self._enter))
        self._handles.append(tower.register_forward_hook(self._leave, always_call=True))

    def kept_parameters(self) -> Tensor:
        """E[parameters kept] = Σ P(z > 0) · cost over heads and hidden units; a scalar with a gradient."""
        return (open_probability(self.log_alpha) * self.cost).sum()

    def harden(self, tower: ImageTower | TextTower) -> None:
        """Take the masks off ``tower`` and what they shut out of it; it computes what it did in evaluation mode."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        kept = [kept_units(group) for group in self._groups(self.log_alpha)]
        gates = self._groups(settled_gates(self.log_alpha.detach()))
        chosen = [gate[units] for gate, units in zip(gates, kept, strict=True)]
        prune(tower, [Kept(*kept[i : i + 2], *chosen[i : i + 2]) for i in range(0, len(kept), 2)])

    def _groups(self, values: Tensor) -> Sequence[Tensor]:
        groups: Sequence[Tensor] = values.split(self.sizes)
        return groups

    def _settled(self) -> Tensor:
        values = settled_gates(self.log_alpha)
        kept = [torch.zeros_like(group).index_fill(0, kept_units(group), 1.0) for group in self._groups(self.log_alpha)]
        return values * torch.cat(kept)

    def _enter(self, tower: nn.Module, args: tuple[Any, ...]) -> None:
        # The same gates for the whole forward, whose texts may go through the layers in groups of like length.
        drawn = sample_gates(self.log_alpha, torch.rand_like(self.log_alpha)) if tower.training else self._settled()
        groups = self._groups(drawn)
        for number, (layer, heads, hidden) in enumerate(self._gates):
            heads.value = groups[2 * number].repeat_interleave(layer.attention.head_width)
            hidden.value = groups[2 * number + 1]

    def _leave(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for _, heads, hidden in self._gates:
            heads.value = hidden.value = None


class Masks(nn.Module):
    """The masks of a student's towers and the constraint that brings them to ``keep``: a part of the task.

    At training step n the expected share of the parameters of all masked heads and hidden units together is pulled to

        t(n) = 1 − (1 − keep) · min(1, (n + 1) / warm-up steps)

    Parameters: log α of every unit, and the two multipliers of ``lagrangian``; the step is a buffer, so that all of it
    is checkpointed with the task. Biases that every unit shares, norms and embeddings are not counted, as they stay.

    Paper: Wu et al. (TinyCLIP), ICCV 2023, automatic inheritance. Deviations: the residual stream keeps its width and
    no layer is removed whole; the weights learn along with the masks until the end, where the release prunes after some
    steps and goes on: here that is another run, with ``init``.
    """

    step: Tensor

    def __init__(self, student: DualEncoder, towers: Sequence[str], *, keep: float) -> None:
        super().__init__()
        found = {name: _tower(student, name) for name in towers}
        self.towers = nn.ModuleDict({name: TowerMasks(tower, name) for name, tower in found.items()})
        self.keep = keep
        self.multipliers = nn.Parameter(torch.full((2,), MULTIPLIER))
        self.warm_steps = 1
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def schedule(self, warm_steps: int) -> None:
        """How many steps the target takes to come down."""
        self.warm_steps = max(1, warm_steps)

    @property
    def target(self) -> float:
        """The share to be kept at the present step."""
        return 1 - (1 - self.keep) * min(1.0, (int(self.step) + 1) / self.warm_steps)

    def share(self) -> Tensor:
        """The expected share of the maskable parameters that is kept."""
        each = self._each(lambda tower: tower.kept_parameters())
        whole = self._each(lambda tower: tower.cost.sum())
        return torch.stack(each).sum() / torch.stack(whole).sum()

    def forward(self) -> tuple[Tensor, Tensor]:
        """(what is added to the loss, the share); in training mode it counts as a step."""
        share = self.share()
        penalty = lagrangian(share, self.target, self.multipliers)
        if self.training:
            self.step.add_(1)
        return penalty, share

    def harden(self, student: DualEncoder) -> None:
        """Leave the smaller student that the masks have found, without masks; a target that was missed is logged."""
        share = float(self.share().detach())
        if abs(share - self.keep) > NEAR:
            log.warning(
                "masks: %.0f %% of what they cover is kept, not %.0f %%: they need some 10 / masks.lr steps to shut, "
                "and more where the losses hold against them; train for longer, or raise masks.lr",
                100 * share,
                100 * self.keep,
            )
        for name, masks in self.towers.items():
            assert isinstance(masks, TowerMasks)
            masks.harden(_tower(student, name))

    def _each(self, ask: Callable[[TowerMasks], Tensor]) -> list[Tensor]:
        return [ask(masks) for masks in self.towers.values() if isinstance(masks, TowerMasks)]


def _tower(student: DualEncoder, name: str) -> ImageTower | TextTower:
    tower: ImageTower | TextTower | None = student.image if name == "image" else student.text
    if tower is None:
        raise ConfigError(f"masks.towers names {name}, but the student has no {name} tower: leave it out")
    return tower
