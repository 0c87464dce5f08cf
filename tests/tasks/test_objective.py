"""The weighted sum: adapters only where widths differ, classes of either side, a teacher in the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tasks.tiny import Letters, tiny_model
from torch import Tensor

from clipette.errors import ConfigError
from clipette.models.core import DualEncoder
from clipette.tasks.batch import Batch
from clipette.tasks.objective import Objective, TeacherFacts
from clipette.tasks.terms import TERMS, read_terms


def tokens_of(texts: list[str]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in Letters()(texts).items()}


def batch(dim: int = 8, rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(rows, 3, 16, 16, generator=generator)
    targets = {
        "teacher_image": F.normalize(torch.randn(rows, dim, generator=generator), dim=-1),
        "teacher_text": F.normalize(torch.randn(rows, dim, generator=generator), dim=-1),
        "ids": torch.arange(rows),
        "text_ids": torch.arange(rows),
        "labels": torch.arange(rows) % 3,
    }
    tokens = tokens_of([f"caption {n}" for n in range(rows)])
    return Batch({"pixels": pixels, "teacher_pixels": pixels}, targets, tokens, tokens)


def objective(loss: dict[str, Any], dim: int = 8, **options: Any) -> Objective:
    classes = F.normalize(torch.randn(3, dim, generator=torch.Generator().manual_seed(2)), dim=-1)
    facts = TeacherFacts(dim, 30.0, -1.0, classes)
    tokens = tokens_of(["red", "green", "blue"])
    return Objective(tiny_model(8), read_terms(loss), **{"teacher": facts, "class_tokens": tokens, **options})


def descend(task: Objective, given: Batch) -> Any:
    output = task.loss(task.encode(given), {**given.targets, **task.observe(given)})
    output.loss.backward()  # type: ignore[no-untyped-call]
    return output


@pytest.mark.parametrize("dim", [8, 12])
@pytest.mark.parametrize("name", TERMS)
def test_every_term_reaches_the_student_with_finite_gradients(name: str, dim: int) -> None:
    task = objective({name: 1}, dim)
    output = descend(task, batch(dim))
    assert bool(output.loss.isfinite())
    gradients = [p.grad for p in task.student.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0
    adapters = {f"adapter_{side}" for side in TERMS[name].same_width} if dim != 8 else set()
    fusions = {"fusion_image", "fusion_text"} if TERMS[name].fuses else set()
    assert set(task.parts) == {"student"} | adapters | fusions
    for adapter in adapters | fusions:
        assert float(task.parts[adapter].weight.grad.abs().max()) > 0  # type: ignore[union-attr,operator]


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    given = batch()
    whole = descend(objective({"clip": 0.5, "image_cosine": 3}), given)
    alone = {name: descend(objective({name: 1}), given) for name in ("clip", "image_cosine")}
    assert whole.raw == pytest.approx({name: float(output.loss.detach()) for name, output in alone.items()})
    assert whole.terms == pytest.approx(
        {"clip": 0.5 * whole.raw["clip"], "image_cosine": 3 * whole.raw["image_cosine"]}
    )
    assert float(whole.loss.detach()) == pytest.approx(sum(whole.terms.values()))


def test_adapters_are_drawn_from_the_seed_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model, terms, facts = tiny_model(8), read_terms({"image_mse": 1, "text_mse": 1}), TeacherFacts(12, 1.0)
    torch.manual_seed(5)
    tasks = [Objective(model, terms, teacher=facts, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    weights = [task.parts["adapter_image"].weight for task in tasks]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]


def test_an_adapted_cosine_equals_its_plain_twin() -> None:
    task, given = objective({"image_cosine": 1}, 12), batch(12)
    output = task.loss(task.encode(given), given.targets)
    image = F.normalize(task.student.image_tower()(given.inputs["pixels"]), dim=-1)
    adapted = task.parts["adapter_image"](image)
    expected = (1 - F.cosine_similarity(adapted, given.targets["teacher_image"])).mean()
    torch.testing.assert_close(output.loss, expected)


def test_class_texts_are_the_students_own_where_it_has_them_and_the_teachers_otherwise() -> None:
    given = batch()
    own = objective({"class_text_kl": 1})
    descend(own, given)
    assert own.student.text_tower().head.weight.grad is not None  # type: ignore[union-attr]
    shared = objective({"class_text_kl": 1}, class_tokens=None)
    descend(shared, given)
    assert all(p.grad is None for p in shared.student.text_tower().parameters())


def test_image_only_terms_never_run_the_text_tower() -> None:
    student = tiny_model(8, text=False)
    task = Objective(student, read_terms({"image_cosine": 1}), teacher=TeacherFacts(8, 1.0))
    assert task.encode(batch()).keys() == {"student_image"}


def test_cached_trunks_and_fixed_texts_take_the_place_of_towers() -> None:
    task, given = objective({"clip": 1}), batch()
    live = task.encode(given)
    student = task.student
    with torch.no_grad():
        inputs = {
            "image_trunk": student.image_tower().trunk(given.inputs["pixels"]),
            "text_trunk": student.text_tower().trunk(given.tokens),
        }
    cached = task.encode(Batch(inputs, given.targets))
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value)
    fixed = task.encode(Batch({**inputs, "text_fixed": given.targets["teacher_text"]}, given.targets))
    assert torch.equal(fixed["student_text"], given.targets["teacher_text"])


def test_an_online_teacher_is_observed_but_neither_trained_nor_saved() -> None:
    teacher: DualEncoder = tiny_model(8, seed=3)
    task = objective({"image_cosine": 1, "text_cosine": 1}, teacher_model=teacher)
    given = batch()
    seen = task.observe(given)
    torch.testing.assert_close(seen["teacher_image"], teacher.encode_image(given.inputs["teacher_pixels"]))
    torch.testing.assert_close(seen["teacher_text"], teacher.encode_text(given.teacher_tokens))
    assert all(name.startswith("student.") for name in task.parts.state_dict())
    assert objective({"image_cosine": 1}).observe(given) == {}


def test_what_has_no_teacher_or_no_class_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss terms image_cosine need a teacher: name one, or remove them"):
        Objective(tiny_model(8), read_terms({"clip": 1, "image_cosine": 1}))
    task = objective({"class_text_kl": 1}, teacher=TeacherFacts(8, 1.0))
    with pytest.raises(ConfigError, match="needs the teacher's class vectors"):
        task.loss(task.encode(batch()), batch().targets)


def test_the_scale_is_the_students_and_gets_a_gradient_wherever_it_stands() -> None:
    for start in (1.0, 4.6051702, 7.0):
        task = objective({"clip": 1})
        with torch.no_grad():
            task.student.logit_scale.fill_(start)
        descend(task, batch())
        assert task.student.logit_scale.grad is not None
        assert float(task.student.logit_scale.grad) != 0
