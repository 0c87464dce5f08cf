"""Several processes pour one store: rank 0 plans and finishes, all of them work, an error of one is known to all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from clipette.errors import ClipetteError, StoreError

T = TypeVar("T")
# Shares differ in length (slow disks, bad luck): hours of waiting are no fault.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """The processes of one pour. ``handle`` is a gloo group (None for a single process)."""

    rank: int = 0
    size: int = 1
    handle: Any = None

    def first(self, work: Callable[[], T]) -> T:
        """Rank 0 does ``work``; all get its result. Its error is raised on every rank."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome, error = _attempt(work)
            if error is not None:
                self._broadcast([None, str(error)])
                raise error
        outcome = self._broadcast(outcome)
        if outcome[1] is not None:
            raise StoreError(f"rank 0 could not go on: {outcome[1]}")
        result: T = outcome[0]
        return result

    def all(self, work: Callable[[], T]) -> list[T]:
        """Every rank does ``work``; all get all results. An error of any rank is raised on every rank."""
        outcome, error = _attempt(work)
        outcomes: list[Any] = [outcome]
        if self.size > 1:
            outcomes = [None] * self.size
            dist.all_gather_object(outcomes, outcome, group=self.handle)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise StoreError(f"rank {rank} could not go on: {message}")
        return [result for result, _ in outcomes]

    def _broadcast(self, value: list[Any]) -> list[Any]:
        if self.size > 1:
            dist.broadcast_object_list(value, src=0, group=self.handle)
        return value


def _attempt(work: Callable[[], T]) -> tuple[list[Any], Exception | None]:
    try:
        return [work(), None], None
    except ClipetteError as error:
        return [None, str(error)], error
    except Exception as error:
        return [None, f"{type(error).__name__}: {error}"], error


@contextmanager
def group() -> Iterator[Group]:
    """The group of this pour: from a running process group, from ``torchrun``'s environment, or a single process."""
    running = dist.is_available() and dist.is_initialized()
    if not running and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    handle: Any
    if running:
        # Results are small objects on the CPU, whatever the training backend is.
        handle = dist.new_group(backend="gloo", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
        handle = dist.group.WORLD
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), handle)
    finally:
        if not running:
            dist.destroy_process_group()
