"""What CLIP-RD holds still is the student itself, without a gradient."""

from __future__ import annotations

import pytest
import torch

from clipette.losses import clip_rd


def units(seed: int, count: int = 5, width: int = 4) -> torch.Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=-1)


def test_the_student_itself_is_held_still() -> None:
    vectors = [units(seed) for seed in range(4)]
    gradients = []
    for named in (False, True):
        image, text = vectors[0].clone().requires_grad_(), vectors[1].clone().requires_grad_()
        scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
        held = {"held_image": vectors[0], "held_text": vectors[1], "held_scale": 5.0} if named else {}
        clip_rd(image, text, vectors[2], vectors[3], scale=scale, **held).backward()  # type: ignore[arg-type]
        gradients.append([image.grad, text.grad, scale.grad])
    for own, given in zip(*gradients, strict=True):
        assert own is not None
        assert torch.equal(own, given)


def test_images_that_relate_as_texts_do_cost_no_divergence() -> None:
    """Images equal to texts, for student and teacher: nothing is left of K, and C alone remains."""
    student, teacher = units(0), units(1)
    loss = clip_rd(student, student, teacher, teacher, scale=5.0, cross=1000.0)
    logits = 5.0 * student @ teacher.T
    own = torch.arange(5)
    contrast = torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)
    assert loss.item() == pytest.approx(contrast.item(), rel=1e-12)
