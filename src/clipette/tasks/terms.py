"""Loss terms by name: which tensors each reads, and how it calls the losses room.

A recipe's ``loss`` is a weighted sum of these. Adding a term is one function here or in ``losses/`` and one line in
``TERMS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clipette.errors import ConfigError
from clipette.losses import contrastive, decoupled, ensembles, features, gradients, logits, relations

Tensors: TypeAlias = Mapping[str, Tensor]
Options: TypeAlias = Mapping[str, Any]


PAIRS = frozenset({"student_image", "student_text", "teacher_image", "teacher_text"})
CLASSES = frozenset({"student_image", "teacher_image", "student_classes", "teacher_classes"})
BOTH = frozenset({"image", "text"})

# Options that count things.
WHOLE = frozenset({"anchors", "top_k"})


@dataclass(frozen=True)
class Term:
    """One loss term.

    ``needs``: names of tensors among ``student_image``, ``student_text``, ``teacher_image``, ``teacher_text``,
    ``student_classes``, ``teacher_classes``, ``labels``. ``same_width``: sides (``image``, ``text``) whose student and
    teacher vectors are compared directly, so that an adapter is put between differing widths. ``fuses``: reads
    ``fused_image`` and ``fused_text``, a learned map of student and teacher vectors side by side. ``options``: what a
    recipe may set beside the weight, with defaults. ``joint``: reads all teachers at once, as ``teachers``.
    ``per_sample``: a mean over images against class texts, which ``classes.reweight`` weighs (``sample_weight`` [B]).
    """

    call: Callable[[Tensors, Options], Tensor]
    needs: frozenset[str]
    same_width: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    fuses: bool = False
    joint: bool = False
    per_sample: bool = False


def _scales(t: Tensors) -> dict[str, Tensor]:
    return {name: t[name] for name in ("student_scale", "teacher_scale", "student_bias", "teacher_bias")}


def _whose(t: Tensors) -> dict[str, Tensor]:
    """Whose picture and whose caption each row is: several captions of one picture are all right answers."""
    return {"ids": t["ids"], "text_ids": t["text_ids"]}


def _pairs(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return t["student_image"], t["student_text"], t["teacher_image"], t["teacher_text"]


def _classes(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return t["student_image"], t["teacher_image"], t["student_classes"], t["teacher_classes"]


def _weights(t: Tensors) -> Tensor | None:
    """[B] what each image weighs, where the recipe weighs classes; without, the losses are plain means."""
    return t.get("sample_weight")


def _clip(t: Tensors, o: Options) -> Tensor:
    return contrastive.clip_loss(t["student_image"], t["student_text"], scale=t["student_scale"], **_whose(t))


def _siglip(t: Tensors, o: Options) -> Tensor:
    return contrastive.siglip_loss(
        t["student_image"], t["student_text"], scale=t["student_scale"], bias=t["student_bias"], **_whose(t)
    )


def _image_to_teacher(t: Tensors, o: Options) -> Tensor:
    scale = 1.0 / o["temperature"]
    return contrastive.image_to_teacher(t["adapted_image"], t["teacher_image"], scale=scale, ids=t["ids"])


def _interactive(t: Tensors, o: Options) -> Tensor:
    return contrastive.interactive_contrastive(
        t["adapted_image"],
        t["adapted_text"],
        t["teacher_image"],
        t["teacher_text"],
        scale=t["student_scale"],
        **_whose(t),
    )


def _first(texts: Tensor, images: Tensor) -> Tensor:
    """One caption for each image: the first of several, which stand side by side."""
    return texts[:: len(texts) // len(images)]


def _gradient(t: Tensors, o: Options) -> Tensor:
    return gradients.gradient_distillation(
        t["adapted_image"],
        _first(t["adapted_text"], t["adapted_image"]),
        t["teacher_image"],
        _first(t["teacher_text"], t["teacher_image"]),
        student_scale=t["student_scale"],
        teacher_scale=t["teacher_scale"],
    )


def _clip_rd(t: Tensors, o: Options) -> Tensor:
    return relations.clip_rd(
        t["adapted_image"],
        _first(t["adapted_text"], t["adapted_image"]),
        t["teacher_image"],
        _first(t["teacher_text"], t["teacher_image"]),
        scale=t["student_scale"],
        vertical=o["vertical"],
        cross=o["cross"],
    )


def _fused(t: Tensors, o: Options) -> Tensor:
    return contrastive.clip_loss(t["fused_image"], t["fused_text"], scale=t["student_scale"], **_whose(t))


def _over_classes(loss: Callable[..., Tensor], options: Options, *, per_sample: bool = True) -> Term:
    """A loss over the class texts' logits, and nothing but its own options."""

    def call(t: Tensors, o: Options) -> Tensor:
        given = {name: o[name] for name in options} | ({"sample_weight": _weights(t)} if per_sample else {})
        return loss(*_classes(t), **_scales(t), **given)

    return Term(call, CLASSES, options=options, per_sample=per_sample)


def _relation(side: str, loss: Callable[..., Tensor], options: Options) -> Term:
    """A loss of relations within one side: widths may differ, nothing is adapted."""

    def call(t: Tensors, o: Options) -> Tensor:
        return loss(t[f"student_{side}"], t[f"teacher_{side}"], **{name: o[name] for name in options})

    return Term(call, frozenset({f"student_{side}", f"teacher_{side}"}), options=options)


def _neighbours(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    scale = 1.0 / temperature
    return relations.intra_modal_kl(student, teacher, student_scale=scale, teacher_scale=scale)


def _angle(student: Tensor, teacher: Tensor, *, anchors: float) -> Tensor:
    return relations.rkd_angle(student, teacher, anchors=int(anchors))


def _teachers(t: Tensors, text: str) -> list[ensembles.Teacher]:
    """All teachers' shares of the batch; ``text``: ``text`` (the first caption of each image) or ``classes``."""
    found = []
    for mark in ("", *(name.removeprefix("teacher_image") for name in t if name.startswith("teacher_image@"))):
        image, texts = t[f"teacher_image{mark}"], t[f"teacher_{text}{mark}"]
        if text == "text":
            texts = _first(texts, image)
        found.append(ensembles.Teacher(image, texts, t[f"teacher_scale{mark}"], t[f"teacher_bias{mark}"]))
    return found


def _confident(teachers: list[ensembles.Teacher], sharpness: float) -> list[ensembles.Teacher]:
    """Each teacher weighted, image by image, by exp(-sharpness · the entropy of its distribution)."""
    if not sharpness:
        return teachers
    out = []
    for each in teachers:
        logits = each.scale * each.image @ each.text.T + each.bias
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        out.append(replace(each, weight=torch.exp(-sharpness * entropy)))
    return out


def _in_batch_ensemble(t: Tensors, o: Options) -> Tensor:
    text = _first(t["student_text"], t["student_image"])
    teachers = _confident(_teachers(t, "text"), o["confidence"])
    return ensembles.in_batch_ensemble(t["student_image"], text, teachers, student_scale=t["student_scale"])


def _class_text_ensemble(t: Tensors, o: Options) -> Tensor:
    return ensembles.class_text_ensemble(
        t["student_image"],
        t["student_classes"],
        _confident(_teachers(t, "classes"), o["confidence"]),
        student_scale=t["student_scale"],
        student_bias=t["student_bias"],
        sample_weight=_weights(t),
    )


def _labels_ce(t: Tensors, o: Options) -> Tensor:
    known = t["labels"] >= 0
    image = t["student_image"][known]
    if not len(image):
        return t["student_image"].sum() * 0.0
    weights = _weights(t)
    return logits.class_text_ce(
        image,
        t["student_classes"],
        t["labels"][known],
        scale=t["student_scale"],
        bias=t["student_bias"],
        sample_weight=None if weights is None else weights[known],
    )


TERMS: dict[str, Term] = {
    "clip": Term(_clip, frozenset({"student_image", "student_text"})),
    "siglip": Term(_siglip, frozenset({"student_image", "student_text"})),
    "image_cosine": Term(
        lambda t, o: features.cosine(t["adapted_image"], t["teacher_image"]),
        frozenset({"student_image", "teacher_image"}),
        frozenset({"image"}),
    ),
    "text_cosine": Term(
        lambda t, o: features.cosine(t["adapted_text"], t["teacher_text"]),
        frozenset({"student_text", "teacher_text"}),
        frozenset({"text"}),
    ),
    "image_mse": Term(
        lambda t, o: features.mse(t["adapted_image"], t["teacher_image"]),
        frozenset({"student_image", "teacher_image"}),
        frozenset({"image"}),
    ),
    "text_mse": Term(
        lambda t, o: features.mse(t["adapted_text"], t["teacher_text"]),
        frozenset({"student_text", "teacher_text"}),
        frozenset({"text"}),
    ),
    "image_to_teacher": Term(
        _image_to_teacher,
        frozenset({"student_image", "teacher_image"}),
        frozenset({"image"}),
        {"temperature": 0.07},
    ),
    "interactive": Term(_interactive, PAIRS, BOTH),
    "in_batch_kl": Term(
        lambda t, o: logits.in_batch_kl(*_pairs(t), **_scales(t), temperature=o["temperature"]),
        PAIRS,
        options={"temperature": 1.0},
    ),
    "in_batch_bce": Term(lambda t, o: logits.in_batch_bce(*_pairs(t), **_scales(t), subtract_entropy=True), PAIRS),
    "distill_clip": Term(
        lambda t, o: logits.distill_clip_loss(*_pairs(t), **_scales(t), subtract_entropy=False), PAIRS
    ),
    "affinity": Term(
        lambda t, o: logits.affinity_mimicking(*_pairs(t), student_scale=o["scale"], teacher_scale=o["scale"]),
        PAIRS,
        options={"scale": 50.0},
    ),
    "class_text_kl": _over_classes(logits.class_text_kl, {"temperature": 1.0, "top_k": None}),
    "class_text_bce": Term(
        lambda t, o: logits.class_text_bce(
            *_classes(t), **_scales(t), subtract_entropy=True, sample_weight=_weights(t)
        ),
        CLASSES,
        per_sample=True,
    ),
    # The teacher's top class stands for the label: it is known on unlabelled images too.
    "class_text_dkd": _over_classes(decoupled.class_text_dkd, {"alpha": 1.0, "beta": 8.0, "temperature": 1.0}),
    # Its second part correlates over the images of the batch: it has no term for each image to weigh.
    "class_text_dist": _over_classes(
        decoupled.class_text_dist, {"beta": 1.0, "gamma": 1.0, "temperature": 1.0}, per_sample=False
    ),
    "class_text_standardized_kl": _over_classes(decoupled.class_text_standardized_kl, {"temperature": 2.0}),
    "gradient": Term(_gradient, PAIRS, BOTH),
    "clip_rd": Term(_clip_rd, PAIRS, BOTH, {"vertical": 1.0, "cross": 1.0}),
    # confidence 0 is MobileCLIP's plain mean of the teachers' probabilities.
    "in_batch_ensemble": Term(_in_batch_ensemble, PAIRS, options={"confidence": 0.0}, joint=True),
    "class_text_ensemble": Term(
        _class_text_ensemble, CLASSES, options={"confidence": 0.0}, joint=True, per_sample=True
    ),
    "fused_clip": Term(_fused, PAIRS, fuses=True),
    **{
        f"{side}_{name}": _relation(side, loss, options)
        for side in ("image", "text")
        for name, loss, options in (
            ("distance", relations.rkd_distance, {}),
            ("angle", _angle, {"anchors": 32}),
            ("gram", relations.gram, {}),
            ("neighbours", _neighbours, {"temperature": 0.1}),
        )
    },
    "class_text_ce": Term(_labels_ce, frozenset({"student_image", "student_classes", "labels"}), per_sample=True),
}


@dataclass(frozen=True)
class WeightedTerm:
    """A term of a recipe: its name as written there, weight and options.

    ``image_cosine@second`` is the term ``image_cosine`` with the further teacher ``second`` in the place of the first.
    """

    name: str
    weight: float
    options: Mapping[str, Any]

    @property
    def term(self) -> Term:
        return TERMS[self.name.partition("@")[0]]

    @property
    def guide(self) -> str:
        """The further teacher's name; empty for the first."""
        return self.name.partition("@")[2]


def read_terms(loss: Mapping[str, float | Mapping[str, Any]]) -> tuple[WeightedTerm, ...]:
    """A recipe's ``loss`` section: ``{clip: 1, in_batch_kl: {weight: 1, temperature: 2}}``.

    Raises ``ConfigError`` on an unknown term or option, a value that the term cannot take, or an empty sum.
    """
    from difflib import get_close_matches

    out = []
    for name, value in loss.items():
        base, at, guide = name.partition("@")
        if base not in TERMS:
            near = get_close_matches(base, TERMS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known terms: {', '.join(TERMS)}"
            raise ConfigError(f"loss: unknown term '{base}'; {hint}")
        if at and not guide:
            raise ConfigError(f"loss.{name}: no teacher is named behind the @; write {base}, or {base}@NAME as in also")
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = _number(f"loss.{name}.weight", options.pop("weight", 1.0))
        known = TERMS[base].options
        for option, given in options.items():
            if option not in known:
                raise ConfigError(
                    f"loss.{name}: unknown option '{option}'; it takes weight" + "".join(f", {each}" for each in known)
                )
            _check_option(f"loss.{name}.{option}", given, known[option], whole=option in WHOLE)
        if weight < 0:
            raise ConfigError(f"loss.{name}.weight: {weight} is negative; 0 leaves the term out")
        if weight > 0:
            out.append(WeightedTerm(name, weight, {**known, **options}))
    if not out:
        raise ConfigError("loss: no term has a weight above 0")
    return tuple(out)


def _check_option(key: str, value: object, default: object, *, whole: bool) -> None:
    """Raises ``ConfigError`` where the option ``key`` cannot be ``value``."""
    if value is None:
        if default is not None:
            raise ConfigError(f"{key}: nothing is given; write a number, or leave it out for {default}")
        return
    number = _number(key, value)
    if whole and not isinstance(value, int):
        raise ConfigError(f"{key}: {value} is no whole number")
    # An option whose default is 0 may be 0; temperatures, scales and counts may not.
    if number < 0 or (number == 0 and default != 0):
        raise ConfigError(f"{key}: {value} must be {'at least' if default == 0 else 'above'} 0")


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key}: {value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{key}: expected a finite number, found {number}")
    return number


def needs_of(terms: tuple[WeightedTerm, ...], guide: str = "") -> frozenset[str]:
    """All tensors that the terms read: the student's, the data's, and those of one teacher (the first, by default)."""
    found: set[str] = set()
    for each in terms:
        meant = each.guide == guide or each.term.joint
        found |= {name for name in each.term.needs if meant or not (name.startswith("teacher_") or guide)}
    return frozenset(found)


def guides_of(terms: tuple[WeightedTerm, ...]) -> tuple[str, ...]:
    """The further teachers that the terms name, in order."""
    return tuple(dict.fromkeys(each.guide for each in terms if each.guide))
