"""One optimisation step's gradients, whatever the number of micro-batches and ranks.

GradCache (Gao et al., 2021, arXiv:2101.06983): encode every micro-batch without a graph, compute the loss over the
features of the whole global batch, take its gradient with respect to the features, then encode each micro-batch again
with a graph and push the cached gradient through it. With one micro-batch the first encoding keeps its graph and
nothing is computed twice.

Ranks: each gathers all features, so each computes the same loss and the same feature gradients; it pushes its own
rows' gradient, times the number of ranks, through its encoder. The later mean over ranks then sums encoder gradients
(each rank holds a part) and keeps the loss's own parameters as they are (each rank holds the whole).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.tasks.batch import Batch
from clipette.tasks.task import StepOutput, Task
from clipette.train.ranks import gather_rows, rank, world_size

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def _one_value_told() -> Iterator[None]:
    """What PyTorch says of a batch norm with one value, as a key of the recipe; no model need know of batches."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "batch normalisation has one value to normalise: set train.batch_size to 2 or more for each of "
            "train.micro_batches, or train.freeze_norms=true"
        ) from None


@_one_value_told()
def compute_gradients(
    task: Task, batch: Batch, *, micro_batches: int, precision: str = "fp32", seed: int = 0
) -> StepOutput:
    """Add the loss's gradients to the parameters' ``.grad`` and return the loss over the global batch.

    ``seed`` fixes dropout: each micro-batch is encoded twice under the same random numbers.
    """
    device = batch.targets["ids"].device
    parts = _split(batch, micro_batches)
    targets = _joined([{**part.targets, **_observed(task, part, device, precision)} for part in parts])
    if len(parts) == 1:
        with _random(seed, 0), _precision(device, precision):
            features = task.encode(parts[0])
        output, gradients = _loss_gradients(task, features, targets)
        _push(features, gradients)
        return output
    cached = []
    with torch.no_grad(), _quiet_norms(task.parts):
        for index, part in enumerate(parts):
            with _random(seed, index), _precision(device, precision):
                cached.append(task.encode(part))
    output, gradients = _loss_gradients(task, _joined(cached), targets)
    sizes = {name: [len(piece[name]) for piece in cached] for name in gradients}
    shares = {name: value.split(sizes[name]) for name, value in gradients.items()}
    for index, part in enumerate(parts):
        with _random(seed, index), _precision(device, precision):
            features = task.encode(part)
        _push(features, {name: pieces[index] for name, pieces in shares.items()})
    return output


def _split(batch: Batch, micro_batches: int) -> list[Batch]:
    size = -(-batch.size // micro_batches)
    return [batch.part(start, min(start + size, batch.size)) for start in range(0, batch.size, size)]


def _observed(task: Task, part: Batch, device: torch.device, precision: str) -> dict[str, Tensor]:
    with torch.no_grad(), _precision(device, precision):
        return task.observe(part)


def _joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _loss_gradients(
    task: Task, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> tuple[StepOutput, dict[str, Tensor]]:
    """The global loss; d loss / d feature for this rank's rows, times the number of ranks."""
    everywhere = {name: gather_rows(value.detach()).requires_grad_() for name, value in features.items()}
    output = task.loss(everywhere, {name: gather_rows(value) for name, value in targets.items()})
    output.loss.backward()
    gradients = {}
    for name, leaf in everywhere.items():
        rows = len(features[name])
        whole = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        gradients[name] = whole[rank() * rows : (rank() + 1) * rows] * world_size()
    return output, gradients


def _push(features: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    names = [name for name, value in features.items() if value.requires_grad]
    if names:
        torch.autograd.backward([features[name] for name in names], [gradients[name] for name in names])


def _precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def _random(seed: int, index: int) -> Iterator[None]:
    """The same dropout masks each time this micro-batch is encoded, different on every rank."""
    torch.manual_seed((seed * 1_000_003 + index * 8191 + rank()) % 2**63)
    yield


@contextmanager
def _quiet_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics but do not record them: the second encoding does, once."""
    norms = [m for m in module.modules() if isinstance(m, NORMS) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    saved = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, mean, variance in saved:
            norm.running_mean, norm.running_var = mean, variance
            norm.track_running_stats = True
