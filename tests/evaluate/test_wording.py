"""Which templates are asked for: all of CLIP's, or the one wording that a table of texts knows."""

from __future__ import annotations

import torch
from tests.train import tiny

from clipette.data.prompts import class_prompts
from clipette.evaluate.suite import SuiteSettings, evaluate
from clipette.evaluate.wording import fitting_templates, known_texts
from clipette.models.inference import TorchEncoder
from clipette.models.rebuild import table_text_tower


def with_table(wording: str, names: list[str]) -> TorchEncoder:
    """A student that carries its teacher's class texts in one wording."""
    model = tiny.student()
    texts = tuple(prompts[0] for prompts in class_prompts(names, wording))
    model.text = table_text_tower(texts, torch.eye(len(texts), model.dim))
    return TorchEncoder(model, name="table", device="cpu")


def test_a_text_tower_takes_all_templates_and_a_table_its_own_wording() -> None:
    names = ["cat", "dog"]
    free = tiny.teacher()
    assert known_texts(free) is None
    assert fitting_templates([free], names) == "openai80"
    for wording in ("single", "plain", "style"):
        assert fitting_templates([free, with_table(wording, names)], names) == wording
    assert fitting_templates([with_table("a {}", names)], names) == "a {}"
    # Two tables of different wordings, or another class: the encoder itself says what it lacks.
    both = [with_table("plain", names), with_table("style", names)]
    assert fitting_templates(both, names) == "single"
    assert fitting_templates([with_table("plain", names)], [*names, "emu"]) == "single"


def test_captions_that_a_table_does_not_hold_are_no_error_where_there_are_classes() -> None:
    data = tiny.dataset(12)
    student = with_table("single", list(data.class_names))
    found = evaluate(student, {"tiny": data}, settings=SuiteSettings(templates="single"))
    assert found.zero_shot["tiny"].top1.value >= 0
    assert found.retrieval == {}
    bare = tiny.student()
    bare.text = None
    image_only = TorchEncoder(bare, name="image only", space=student.space, device="cpu")
    borrowed = evaluate(image_only, {"tiny": data}, text_encoder=student, settings=SuiteSettings(templates="single"))
    assert borrowed.retrieval == {}
