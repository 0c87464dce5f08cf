"""Every loss against its slow twin: value, gradient, teacher untouched, half precision, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipette.losses import LOSSES
from reference.cases import CASES, TWINS, Case

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_loss_has_a_twin_and_cases() -> None:
    assert set(TWINS) == set(LOSSES)
    assert {case.name for case in CASES} == set(LOSSES)


@each_case
def test_value_is_the_twins(case: Case) -> None:
    loss = case.ours()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(case.twin(), rel=1e-9, abs=1e-10)


def slope(case: Case, name: str, tensor: Tensor, index: int, step: float = 1e-5) -> float:
    """Central difference of the twin by one number of one tensor."""
    values = []
    for sign in (1, -1):
        moved = tensor.clone()
        moved.view(-1)[index] += sign * step
        values.append(case.twin(**{name: moved}))
    return (values[0] - values[1]) / (2 * step)


@each_case
def test_gradient_is_the_twins(case: Case) -> None:
    free = {name: tensor.clone().requires_grad_() for name, tensor in case.student.items()}
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in case.student_numbers.items()}
    for tensor in numbers.values():
        tensor.requires_grad_()
    case.ours(**free, **numbers).backward()
    for name, tensor in {**free, **numbers}.items():
        source = tensor.detach()
        expected = [slope(case, name, source, index) for index in range(source.numel())]
        got = torch.zeros_like(source) if tensor.grad is None else tensor.grad
        assert got.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@each_case
def test_gradcheck(case: Case) -> None:
    names = [*case.student, *case.student_numbers]
    numbers = [torch.tensor(value, dtype=torch.float64) for value in case.student_numbers.values()]
    inputs = [tensor.clone().requires_grad_() for tensor in (*case.student.values(), *numbers)]
    call = lambda *values: case.ours(**dict(zip(names, values, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True, check_undefined_grad=False)


@each_case
def test_no_gradient_reaches_the_teacher(case: Case) -> None:
    free = {name: tensor.clone().requires_grad_() for name, tensor in case.student.items()}
    held = {name: tensor.clone().requires_grad_() for name, tensor in case.teacher.items()}
    for name, value in case.teacher_numbers.items():
        held[name] = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    case.ours(**free, **held).backward()
    assert all(tensor.grad is None for tensor in held.values())
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in free.values())


@each_case
def test_half_precision_inputs_are_computed_in_float32(case: Case) -> None:
    dtype = torch.float16 if case.options else torch.bfloat16
    half = {name: tensor.to(dtype) for name, tensor in {**case.student, **case.teacher}.items()}
    exact = case.ours(**{name: tensor.float() for name, tensor in half.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.ours(**half)
    assert loss.dtype == exact.dtype
    assert loss.dtype in (torch.float32, torch.float64)  # float64 only where a case's own numbers are
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)


ZERO_WHEN_EQUAL = ("cosine", "mse", "rkd_distance", "rkd_angle", "gram", "intra_modal_kl", "in_batch_kl", "dkd",
                   "gradient_distillation", "class_text_kl", "class_text_dkd",
                   "class_text_standardized_kl")  # fmt: skip


@pytest.mark.parametrize("name", ZERO_WHEN_EQUAL)
def test_a_student_equal_to_its_teacher_costs_nothing(name: str) -> None:
    case = next(case for case in CASES if case.name == name and all(len(t) > 1 for t in case.student.values()))
    copies = {key.replace("student", "teacher"): tensor for key, tensor in case.student.items()}
    scale = {"student_scale": 6.0} if "student_scale" in case.student_numbers else {}
    assert case.ours(**copies, **scale).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_float32_at_scale_100_is_finite(name: str) -> None:
    """A sharp teacher and a wrong student: the hardest logits that unit vectors give."""
    case = next(case for case in CASES if case.name == name and all(len(t) > 1 for t in case.student.values()))
    free = {key: tensor.float().requires_grad_() for key, tensor in case.student.items()}
    held = {key: tensor.float() for key, tensor in case.teacher.items()}
    scales = {key: 100.0 for key in (*case.student_numbers, *case.teacher_numbers) if key.endswith("scale")}
    loss = case.ours(**free, **held, **scales)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in free.values())


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_gradient_distillation_compares_what_autograd_finds(scale: float) -> None:
    """Its closed-form gradients are those of InfoNCE's two directions, times B over the scale."""
    case = next(case for case in CASES if case.name == "gradient_distillation" and case.label.startswith("B4"))
    labels = torch.arange(4)

    def pulls(image: Tensor, text: Tensor) -> list[Tensor]:
        image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
        found: list[Tensor] = []
        for anchor, candidate in ((image, text), (text, image)):
            loss = torch.nn.functional.cross_entropy(scale * anchor @ candidate.T, labels)
            found += [grad * 4 / scale for grad in torch.autograd.grad(loss, (anchor, candidate))]
        return found

    of_student, of_teacher = pulls(*case.student.values()), pulls(*case.teacher.values())
    expected = sum((s - t).square().sum().item() / 4 for s, t in zip(of_student, of_teacher, strict=True))
    assert case.ours(student_scale=scale, teacher_scale=scale).item() == pytest.approx(expected, rel=1e-9)
