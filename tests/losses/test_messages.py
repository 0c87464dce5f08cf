"""What cannot be computed is refused in words; what can be is never refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipette.errors import ConfigError, InternalError, ModelError
from clipette.losses import (
    LOSSES,
    Teacher,
    class_text_ce,
    class_text_kl,
    clip_loss,
    cosine,
    dkd,
    gradient_distillation,
    in_batch_ensemble,
    in_batch_kl,
    interactive_contrastive,
    mse,
    rkd_angle,
    siglip_loss,
)


def ones(rows: int, width: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.ones(rows, width), dim=-1)


SCALES = {"student_scale": 1.0, "teacher_scale": 1.0}


def test_widths_that_must_agree_are_named() -> None:
    with pytest.raises(ModelError, match=r"384 wide and the teacher's 512.*adapter or projector"):
        cosine(ones(2, 384), ones(2, 512))
    with pytest.raises(ModelError, match="adapter or projector"):
        mse(ones(2, 3), ones(2, 4))
    with pytest.raises(ModelError, match="width 3 cannot be compared with vectors of width 4"):
        interactive_contrastive(ones(2, 3), ones(2, 3), ones(2, 4), ones(2, 4), scale=1.0)
    with pytest.raises(ModelError, match="one width only"):
        gradient_distillation(ones(2, 3), ones(2, 3), ones(2, 4), ones(2, 4), **SCALES)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_counts_that_must_agree_are_named(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(InternalError, match=r"\(3, 4\).*\(2, 4\)"):
        loss(ones(3, 4), ones(2, 4), scale=1.0, bias=0.0)
    with pytest.raises(InternalError, match="do not number the 3 images and 2 texts"):
        loss(ones(3, 4), ones(2, 4), scale=1.0, bias=0.0, ids=torch.arange(3))
    with pytest.raises(InternalError, match="without ids"):
        loss(ones(3, 4), ones(3, 4), scale=1.0, bias=0.0, text_ids=torch.arange(3))


def test_teacher_and_student_must_see_the_same_batch() -> None:
    with pytest.raises(InternalError, match="same number of rows"):
        in_batch_kl(ones(3, 4), ones(3, 4), ones(2, 4), ones(3, 4), **SCALES)
    with pytest.raises(InternalError, match="same number of rows"):
        class_text_kl(ones(3, 4), ones(3, 4), ones(5, 4), ones(6, 4), **SCALES)
    with pytest.raises(InternalError, match="5 classes cannot be matched with logits of 6"):
        dkd(ones(3, 5), ones(3, 6))
    with pytest.raises(InternalError, match="labels do not number"):
        class_text_ce(ones(3, 4), ones(5, 4), torch.arange(2), scale=1.0)
    with pytest.raises(InternalError, match="sample weights do not number the 3 images"):
        class_text_kl(ones(3, 4), ones(3, 4), ones(5, 4), ones(5, 4), **SCALES, sample_weight=torch.ones(5))


def test_an_empty_batch_is_refused_rather_than_nan() -> None:
    with pytest.raises(InternalError, match="at least one"):
        cosine(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(InternalError):
        clip_loss(torch.ones(0, 3), torch.ones(0, 3), scale=1.0, ids=torch.arange(0))


def test_numbers_out_of_range_are_refused() -> None:
    four = [ones(2, 3)] * 4
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        in_batch_kl(*four, **SCALES, temperature=0.0)
    with pytest.raises(ConfigError, match="temperature"):
        class_text_kl(*four, **SCALES, temperature=float("nan"))
    with pytest.raises(ConfigError, match="top_k"):
        class_text_kl(*four, **SCALES, top_k=0)
    with pytest.raises(ConfigError, match="anchors"):
        rkd_angle(ones(2, 3), ones(2, 3), anchors=0)


def test_an_ensemble_needs_teachers_that_fit() -> None:
    with pytest.raises(ConfigError, match="at least one teacher"):
        in_batch_ensemble(ones(2, 3), ones(2, 3), [], student_scale=1.0)
    teacher = Teacher(ones(2, 3), ones(2, 3), scale=1.0, known=torch.tensor([True]))
    with pytest.raises(InternalError, match=r"known.*teacher 0.*2 images"):
        in_batch_ensemble(ones(2, 3), ones(2, 3), [teacher], student_scale=1.0)


def test_ensemble_teachers_receive_no_gradient() -> None:
    held = [ones(2, 3).requires_grad_(), ones(2, 3).requires_grad_(), torch.tensor(5.0, requires_grad=True)]
    student = torch.eye(2, 3).requires_grad_()
    in_batch_ensemble(student, ones(2, 3), [Teacher(held[0], held[1], held[2])], student_scale=1.0).backward()
    assert all(tensor.grad is None for tensor in held)
    assert student.grad is not None


def test_a_pair_no_teacher_knows_has_no_say() -> None:
    image, text = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    student = torch.eye(3).flip(0)
    masked = Teacher(image, text, scale=4.0, known=torch.tensor([True, True, False]))
    numbers = {"student_scale": 3.0, "subtract_entropy": True}
    nobody = Teacher(image, text, scale=4.0, known=torch.zeros(3, dtype=torch.bool))
    assert in_batch_ensemble(student, student, [nobody], **numbers).item() == 0
    both = in_batch_ensemble(student, student, [masked, nobody], **numbers)
    assert both.item() == pytest.approx(in_batch_ensemble(student, student, [masked], **numbers).item())


def test_every_loss_is_in_the_table_of_papers(project: Path) -> None:
    table = (project / "docs" / "PAPERS.md").read_text(encoding="utf-8")
    missing = [name for name in LOSSES if f"`{name}`" not in table]
    assert not missing, f"add a row to docs/PAPERS.md for {missing}"


def test_every_loss_says_what_it_computes() -> None:
    for name, loss in LOSSES.items():
        text = loss.__doc__ or ""
        short = name.startswith("class_text_") and "as ``class_text_kl``" in text
        for part in ("Shapes:", "Range:", "Raises:", "Paper:", "Deviation:"):
            assert short or part in text, f"{name} lacks {part}"
