"""Equality with open_clip's own losses on the same tensors."""

from __future__ import annotations

import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from torch import Tensor

from clipette.losses import clip_loss, distill_clip_loss, in_batch_kl, siglip_loss

SHAPES = [(1, 16), (7, 16), (64, 512)]
each_shape = pytest.mark.parametrize(("batch", "width"), SHAPES)


def units(batch: int, width: int, seed: int) -> Tensor:
    vectors = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def free(batch: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(1 / 0.07)
    return units(batch, width, 1).requires_grad_(), units(batch, width, 2).requires_grad_(), scale.requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@each_shape
def test_clip_loss(batch: int, width: int) -> None:
    image, text, scale = free(batch, width)
    assert_same(clip_loss(image, text, scale=scale), ClipLoss()(image, text, scale), (image, text, scale))


@each_shape
def test_clip_loss_with_all_ids_distinct(batch: int, width: int) -> None:
    image, text, scale = free(batch, width)
    ours = clip_loss(image, text, scale=scale, ids=torch.arange(batch) * 10)
    assert_same(ours, ClipLoss()(image, text, scale), (image, text, scale))


@each_shape
def test_siglip_loss(batch: int, width: int) -> None:
    image, text, scale = free(batch, width)
    bias = torch.tensor(-10.0, requires_grad=True)
    ours = siglip_loss(image, text, scale=scale, bias=bias)
    assert_same(ours, SigLipLoss()(image, text, scale, bias), (image, text, scale, bias))


@each_shape
def test_distill_clip_loss(batch: int, width: int) -> None:
    image, text, scale = free(batch, width)
    teacher = units(batch, width + 3, 3), units(batch, width + 3, 4)
    hard, soft = DistillClipLoss()(image, text, scale, *teacher, torch.tensor(100.0))
    ours = distill_clip_loss(image, text, *teacher, student_scale=scale, teacher_scale=100.0)
    assert_same(ours, soft, (image, text, scale))
    assert clip_loss(image, text, scale=scale).item() == pytest.approx(hard.item(), rel=1e-6, abs=1e-6)


@each_shape
def test_distill_clip_loss_is_in_batch_kl_and_the_teachers_entropy(batch: int, width: int) -> None:
    image, text, scale = free(batch, width)
    teacher = units(batch, width, 3), units(batch, width, 4)
    numbers = {"student_scale": scale, "teacher_scale": 30.0}
    kl = in_batch_kl(image, text, *teacher, **numbers)
    z = 30 * teacher[0] @ teacher[1].T
    entropies = [torch.distributions.Categorical(logits=rows).entropy().mean() for rows in (z, z.T)]
    whole = distill_clip_loss(image, text, *teacher, **numbers)
    assert whole.item() == pytest.approx(kl.item() + sum(entropies).item() / 2, rel=1e-5, abs=1e-6)
    less = distill_clip_loss(image, text, *teacher, **numbers, subtract_entropy=True)
    assert_same(less, kl, (image, text, scale))
