"""Every term of a recipe runs on real tensors and has gradients; names, weights and options are checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipette.errors import ConfigError
from clipette.losses import contrastive, decoupled, features, gradients, logits, relations
from clipette.tasks.terms import TERMS, WHOLE, Term, needs_of, read_terms

SIDES = ("image", "text")
LEAVES = (
    "student_image",
    "student_text",
    "student_classes",
    *(f"{w}_{s}" for w in ("adapted", "fused") for s in SIDES),
)


def tensors(captions: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int, dim: int = 6) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator), dim=-1)

    rows = {
        "student_image": unit(5),
        "student_text": unit(5 * captions),
        "teacher_image": unit(5),
        "teacher_text": unit(5 * captions),
        "student_classes": unit(4),
        "teacher_classes": unit(4),
        "adapted_image": unit(5),
        "adapted_text": unit(5 * captions),
        "fused_image": unit(5),
        "fused_text": unit(5 * captions),
        "student_scale": torch.tensor(14.0),
        "student_bias": torch.tensor(-2.0),
        "teacher_scale": torch.tensor(30.0),
        "teacher_bias": torch.tensor(0.0),
        "ids": torch.arange(5),
        "text_ids": torch.arange(5).repeat_interleave(captions),
        "labels": torch.tensor([0, 3, -1, 1, 2]),
    }
    for name in (*LEAVES, "student_scale", "student_bias"):
        rows[name].requires_grad_()
    return rows


@pytest.mark.parametrize("name", TERMS)
def test_every_term_runs_and_has_finite_gradients(name: str) -> None:
    term, values = TERMS[name], tensors()
    given = {key: value for key, value in values.items() if _may_read(key, term)}
    loss = term.call(given, term.options)
    assert loss.ndim == 0
    assert bool(loss.isfinite())
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [values[key].grad for key in LEAVES if values[key].grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients if gradient is not None)


def _may_read(key: str, term: Term) -> bool:
    """A term sees what it says it needs, and nothing else."""
    if key.startswith("adapted_"):
        return key.removeprefix("adapted_") in term.same_width
    if key.startswith("fused_"):
        return term.fuses
    return key in term.needs or key.endswith(("_scale", "_bias", "ids"))


@pytest.mark.parametrize("name", [n for n, t in TERMS.items() if "student_text" in t.needs])
def test_terms_over_captions_take_several_an_image(name: str) -> None:
    values = tensors(captions=3)
    loss = TERMS[name].call(values, TERMS[name].options)
    assert bool(loss.isfinite())


def test_terms_pass_what_they_read_to_the_losses_room() -> None:
    """The right tensors in the right places: each value is recomputed by a direct call."""
    t = tensors()
    scales = {n: t[n] for n in ("student_scale", "teacher_scale", "student_bias", "teacher_bias")}
    pairs = (t["student_image"], t["student_text"], t["teacher_image"], t["teacher_text"])
    classes = (t["student_image"], t["teacher_image"], t["student_classes"], t["teacher_classes"])
    known = t["labels"] >= 0
    expected: dict[str, Tensor] = {
        "clip": contrastive.clip_loss(*pairs[:2], scale=t["student_scale"]),
        "siglip": contrastive.siglip_loss(*pairs[:2], scale=t["student_scale"], bias=t["student_bias"]),
        "image_cosine": features.cosine(t["adapted_image"], t["teacher_image"]),
        "text_cosine": features.cosine(t["adapted_text"], t["teacher_text"]),
        "image_mse": features.mse(t["adapted_image"], t["teacher_image"]),
        "text_mse": features.mse(t["adapted_text"], t["teacher_text"]),
        "image_to_teacher": contrastive.image_to_teacher(t["adapted_image"], t["teacher_image"], scale=1 / 0.07),
        "in_batch_kl": logits.in_batch_kl(*pairs, **scales, temperature=1.0),
        "class_text_kl": logits.class_text_kl(*classes, **scales, temperature=1.0),
        "class_text_dkd": decoupled.class_text_dkd(*classes, **scales),
        "class_text_dist": decoupled.class_text_dist(*classes, **scales),
        "class_text_standardized_kl": decoupled.class_text_standardized_kl(*classes, **scales, temperature=2.0),
        "gradient": gradients.gradient_distillation(
            t["adapted_image"],
            t["adapted_text"],
            *pairs[2:],
            student_scale=t["student_scale"],
            teacher_scale=t["teacher_scale"],
        ),
        "fused_clip": contrastive.clip_loss(t["fused_image"], t["fused_text"], scale=t["student_scale"]),
        "image_distance": relations.rkd_distance(t["student_image"], t["teacher_image"]),
        "text_angle": relations.rkd_angle(t["student_text"], t["teacher_text"], anchors=32),
        "text_gram": relations.gram(t["student_text"], t["teacher_text"]),
        "image_neighbours": relations.intra_modal_kl(
            t["student_image"], t["teacher_image"], student_scale=10.0, teacher_scale=10.0
        ),
        "class_text_ce": logits.class_text_ce(
            t["student_image"][known],
            t["student_classes"],
            t["labels"][known],
            scale=t["student_scale"],
            bias=t["student_bias"],
        ),
    }
    for name, value in expected.items():
        found = TERMS[name].call(t, TERMS[name].options)
        torch.testing.assert_close(found, value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in_batch_kl", {"temperature": 3.0}),
        ("class_text_kl", {"temperature": 3.0}),
        ("class_text_kl", {"top_k": 2}),
        ("affinity", {"scale": 10.0}),
        ("image_to_teacher", {"temperature": 1.0}),
        ("class_text_dkd", {"beta": 1.0}),
        ("class_text_dist", {"gamma": 3.0}),
        ("class_text_standardized_kl", {"temperature": 1.0}),
        ("image_angle", {"anchors": 2}),
        ("text_neighbours", {"temperature": 1.0}),
    ],
)
def test_options_matter(name: str, options: dict[str, Any]) -> None:
    values, (changed,) = tensors(), read_terms({name: {"weight": 1, **options}})
    plain = TERMS[name].call(values, TERMS[name].options)
    other = TERMS[name].call(values, changed.options)
    assert abs(float(plain.detach() - other.detach())) > 1e-5


def test_labels_that_are_unknown_do_not_count() -> None:
    values = tensors()
    whole = TERMS["class_text_ce"].call(values, {})
    values["student_image"].data[2] = 0.0
    torch.testing.assert_close(TERMS["class_text_ce"].call(values, {}), whole)
    values["labels"] = torch.full((5,), -1)
    none = TERMS["class_text_ce"].call(values, {})
    none.backward()  # type: ignore[no-untyped-call]
    assert float(none.detach()) == 0


def test_a_loss_section_is_read_with_weights_and_options() -> None:
    terms = read_terms({"clip": 1, "in_batch_kl": {"weight": 2.5, "temperature": 4}, "affinity": {}, "image_mse": 0})
    assert [(t.name, t.weight) for t in terms] == [("clip", 1.0), ("in_batch_kl", 2.5), ("affinity", 1.0)]
    assert terms[1].options == {"temperature": 4}
    assert terms[2].options == {"scale": 50.0}
    assert needs_of(terms) == {"student_image", "student_text", "teacher_image", "teacher_text"}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"clipp": 1}, "unknown term 'clipp'; did you mean 'clip'"),
        ({"zzz": 1}, "unknown term 'zzz'; known terms: clip, siglip"),
        ({"in_batch_kl": {"temprature": 1}}, r"loss\.in_batch_kl: unknown option 'temprature'; it takes weight, temp"),
        ({"clip": {"temperature": 1}}, r"loss\.clip: unknown option 'temperature'; it takes weight$"),
        ({"clip": -1}, r"loss\.clip\.weight: -1.0 is negative; 0 leaves the term out"),
        ({"clip": 0}, "no term has a weight above 0"),
        ({}, "no term has a weight above 0"),
        ({"clip": {"weight": "much"}}, r"loss\.clip\.weight: 'much' is no number"),
        ({"clip": {"weight": None}}, r"loss\.clip\.weight: None is no number"),
        ({"clip": {"weight": math.inf}}, r"loss\.clip\.weight: expected a finite number, found inf"),
        ({"clip": {"weight": 10**400}}, r"loss\.clip\.weight: expected a finite number"),
        ({"in_batch_kl": {"temperature": "hot"}}, r"loss\.in_batch_kl\.temperature: 'hot' is no number"),
        ({"in_batch_kl": {"temperature": 0}}, r"loss\.in_batch_kl\.temperature: 0 must be above 0"),
        ({"in_batch_kl": {"temperature": None}}, r"loss\.in_batch_kl\.temperature: nothing is given; .* out for 1\.0"),
        ({"in_batch_kl": {"temperature": math.nan}}, r"loss\.in_batch_kl\.temperature: expected a finite number"),
        ({"in_batch_ensemble": {"confidence": -1}}, r"loss\.in_batch_ensemble\.confidence: -1 must be at least 0"),
        ({"class_text_kl": {"top_k": 0}}, r"loss\.class_text_kl\.top_k: 0 must be above 0"),
        ({"class_text_kl": {"top_k": 2.5}}, r"loss\.class_text_kl\.top_k: 2\.5 is no whole number"),
        ({"image_angle": {"anchors": None}}, r"loss\.image_angle\.anchors: nothing is given"),
        ({"image_angle": {"anchors": 0.5}}, r"loss\.image_angle\.anchors: 0\.5 is no whole number"),
        ({"image_cosine@": 1}, r"loss\.image_cosine@: no teacher is named behind the @; write image_cosine, or"),
    ],
)
def test_a_wrong_loss_section_is_refused_in_words(loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_terms(loss)


def test_nothing_stands_for_all_where_it_is_the_default() -> None:
    assert read_terms({"class_text_kl": {"top_k": None}})[0].options["top_k"] is None
    assert read_terms({"in_batch_ensemble": {"confidence": 0}})[0].options["confidence"] == 0


def test_every_option_that_counts_is_known_to_count() -> None:
    whole = {name for term in TERMS.values() for name, value in term.options.items() if not isinstance(value, float)}
    assert whole == WHOLE
