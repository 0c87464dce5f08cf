"""Several processes as one: who am I, gather features, average gradients.

Accelerate chooses devices and starts processes; the arithmetic between them is ours, because Accelerate's ``gather``
carries no gradient and its wrapper would hide which gradients are summed and which are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes in this run; 1 without ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait for the others."""
    if world_size() > 1:
        dist.barrier()


def gather_rows(value: Tensor) -> Tensor:
    """The rows of all ranks in rank order: [b, ...] → [world · b, ...], without gradients; equal b on every rank."""
    if world_size() == 1:
        return value
    value = value.contiguous()
    pieces = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(pieces, value)
    return torch.cat(pieces)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks, in one message a type."""
    if world_size() == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    for p in wanted:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    groups: dict[torch.dtype, list[Tensor]] = {}
    for p in wanted:
        if p.grad is not None:
            groups.setdefault(p.grad.dtype, []).append(p.grad)
    for gradients in groups.values():
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def broadcast_state(module: torch.nn.Module) -> None:
    """Rank 0's parameters and buffers on every rank."""
    if world_size() == 1:
        return
    for value in module.state_dict().values():
        dist.broadcast(value, src=0)
