"""A task, its feed and its gradients; run as a module it is one of two gloo processes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tests.train import tiny
from torch import nn

from clipette.tasks.feed import Feed, FeedPlan
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.outputs import Draw
from clipette.tasks.terms import read_terms
from clipette.train.loop import set_mode
from clipette.train.ranks import average_gradients
from clipette.train.step import compute_gradients
from clipette.types import View

LOSS = {"clip": 1, "image_cosine": 2, "in_batch_kl": 1}


def make_task(*, dropout: float = 0.0) -> Objective:
    model = tiny.student()
    if dropout:
        assert model.image is not None
        model.image.head = nn.Sequential(nn.Dropout(dropout), model.image.head)
    return Objective(model, read_terms(LOSS), teacher=TeacherFacts(24, 20.0))


class Outputs:
    """Fixed random vectors: what a store would say."""

    has_texts = True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = nn.functional.normalize(torch.randn(64, 24, generator=generator), dim=-1).numpy()
        self.words = nn.functional.normalize(torch.randn(128, 24, generator=generator), dim=-1).numpy()

    def content(self, position: int) -> str:
        return ""

    def draw(self, positions: Any, epoch: int) -> Any:
        return Draw([View()] * len(positions), np.zeros(len(positions), np.int64), self.images[positions])

    def views_of(self, position: int) -> list[View]:
        return [View()]

    def texts(self, captions: Any) -> Any:
        return self.words[captions]


def make_feed(task: Objective, rank: int = 0, world: int = 1) -> Feed:
    tower, text = task.student.image_tower(), task.student.text_tower()
    plan = FeedPlan(
        batch_size=16,
        seed=1,
        preprocess=tower.preprocess,
        texts=True,
        teacher_texts=True,
        teacher_images=True,
        tokenizer=text.tokenizer,
    )
    return Feed(tiny.dataset().samples, plan, Outputs(), rank=rank, world=world)


def gradients_of(task: Objective, micro_batches: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    set_mode(task.parts, freeze_norms=world > 1)
    feed = make_feed(task, rank, world)
    compute_gradients(task, feed.batch(0), micro_batches=micro_batches, seed=5)
    average_gradients(task.parts.parameters())
    feed.close()
    return {n: p.grad.clone() for n, p in task.parts.named_parameters() if p.grad is not None}


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        found = gradients_of(make_task(), 2, rank, world)
        if rank == 0:
            save_file(found, f"{folder}/gradients.safetensors")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), 2, sys.argv[2])
