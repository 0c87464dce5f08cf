"""The methods of bench-methods: every shipped recipe's loss, our default by its rules, and what was tried beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from clipette.config import find_recipe, load_yaml
from clipette.train.budget import losses_for
from clipette.train.recipe import Recipe

# Published methods: a row each. The loss is the recipe's; what no frozen trunk allows is in WORLD.
PUBLISHED = (
    "clip",
    "unlabelled",
    "lightclip",
    "affinity",
    "contrastive",
    "clip-kd",
    "clip-kd-gradient",
    "clip-kd-fusion",
    "mobileclip",
    "rkd",
    "gram",
    "clip-rd",
    "promptkd-stage2",
    "ood",
    "dkd",
    "dist",
    "standardized",
)
# No teacher, and one term of ours: reported, but no published distillation method.
BASELINES = ("clip", "unlabelled")
_CONTRAST: Mapping[str, Any] = {"image_to_teacher": {"weight": 1, "temperature": 0.07}}
# Where the search for our default began, with captions and with classes.
START: Mapping[bool, Mapping[str, Any]] = {
    True: {"image_cosine": 10.0, "in_batch_kl": 1.0},
    False: {"image_cosine": 10.0, "class_text_kl": 1.0},
}
# What was tried from there: chosen by dev figures, then written into train/budget.py. A change of terms (None removes
# one), and options of the method. They run where ``--methods`` names them, or by the word ``candidates``.
CANDIDATES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "default+clip": ({"clip": 1}, {}),
    "default+clip+interactive": ({"clip": 1, "interactive": 1}, {}),
    "default+clip+relations": (
        {"clip": 1, "interactive": 1, "clip_rd": {"weight": 1, "vertical": 1, "cross": 1}},
        {},
    ),
    "default+clip+contrast": ({"clip": 1, **_CONTRAST}, {}),
    "default+contrast": (_CONTRAST, {}),
    "default+classes": ({"class_text_kl": 1}, {}),
    "default+pairs": ({"in_batch_kl": 1}, {}),
    "default+gram": ({"image_gram": 100}, {}),
    "default+affinity": ({"affinity": {"weight": 1, "scale": 50}}, {}),
    "default+gradient": ({}, {"balance": "gradient"}),
    "default+uncertainty": ({}, {"balance": "uncertainty"}),
    "default+hard": ({}, {"neighbours": 8}),
}
# The same for sets with labels alone; on captions these are the start. The features' weight of 10 holds a student at
# a teacher that errs, where labels know better.
LABELLED: Mapping[str, Mapping[str, Any]] = {
    "default+labels": {"class_text_ce": 1},
    "labels+features": {"class_text_ce": 1, "image_cosine": 1},
    "labels+few features": {"class_text_ce": 1, "image_cosine": 0.1},
    "labels+contrast": {"class_text_ce": 1, "class_text_kl": None, "image_cosine": None, **_CONTRAST},
    "labels+contrast+features": {"class_text_ce": 1, "class_text_kl": None, "image_cosine": 1, **_CONTRAST},
    "labels+contrast+answers": {"class_text_ce": 1, "image_cosine": None, **_CONTRAST},
    "labels+names+contrast": {"class_text_ce": 1, "clip": 1, "class_text_kl": None, "image_cosine": None, **_CONTRAST},
    "names+contrast+features": {"clip": 1, "class_text_kl": None, "image_cosine": 1, **_CONTRAST},
    "labels+contrast+gram": {
        "class_text_ce": 1,
        "class_text_kl": None,
        "image_gram": 100,
        "image_cosine": None,
        **_CONTRAST,
    },
}
# Captions and classes together, tried in the rendered world: what the teacher's answers over class texts, and the
# labels, are worth beside the captions.
_CAPTIONS: Mapping[str, Any] = losses_for(captions=True, classes=False, labels=0.0)
BOTH: Mapping[str, Mapping[str, Any]] = {
    "captions+answers": {**_CAPTIONS, "class_text_kl": 1},
    "captions+4 answers": {**_CAPTIONS, "class_text_kl": 4},
    "answers+features": {"class_text_kl": 1, "image_cosine": 1},
    "answers+pairs": {"class_text_kl": 1, "in_batch_kl": 1},
    "answers+pairs+clip": {"class_text_kl": 1, "in_batch_kl": 1, "clip": 1},
    "4 answers+pairs": {"class_text_kl": 4, "in_batch_kl": 1},
    "4 answers+pairs+clip": {"class_text_kl": 4, "in_batch_kl": 1, "clip": 1},
    "answers+pairs+features": {"class_text_kl": 1, "in_batch_kl": 1, "image_cosine": 1},
    "captions+10 answers": {**_CAPTIONS, "class_text_kl": 10},
    "captions+labels": {**_CAPTIONS, "class_text_ce": 1},
    "captions+labels+contrast": {**_CAPTIONS, "class_text_ce": 1, **_CONTRAST},
    "captions+labels+answers": {**_CAPTIONS, "class_text_ce": 1, "class_text_kl": 1},
    "labels+answers": {"class_text_ce": 1, "class_text_kl": 1},
    "labels+4 answers": {"class_text_ce": 1, "class_text_kl": 4},
    "labels+answers+pairs": {"class_text_ce": 1, "class_text_kl": 1, "in_batch_kl": 1},
    "labels+answers+pairs+clip": {"class_text_ce": 1, "class_text_kl": 1, "in_batch_kl": 1, "clip": 1},
    "labels+answers+contrast": {"class_text_ce": 1, "class_text_kl": 1, **_CONTRAST},
    "only labels+contrast": {"class_text_ce": 1, **_CONTRAST},
}
# In the rendered world, with a small ViT: PromptKD's visual prompts and MFD's masks, and what to compare them with.
WORLD = (
    *("promptkd", "clip-kd-masked", "clip", "default", "clip-kd", "promptkd-stage2"),
    # What reads the world's labels as the default does, and the strongest on real data.
    *("ood", "contrastive"),
)
KNOWN = ("default", *PUBLISHED)
TRIED = ("start", *CANDIDATES, *LABELLED, *BOTH)


@dataclass(frozen=True)
class DataFacts:
    """What is known of a training set, as ``losses_for`` asks. ``captions``: people wrote them."""

    captions: bool = False
    classes: bool = True
    labels: float = 1.0
    trusted: bool = False


CAPTIONED = DataFacts(captions=True, classes=False, labels=0.0)
LABELLED_SET, UNLABELLED = DataFacts(), DataFacts(labels=0.0)


@dataclass(frozen=True)
class Method:
    """A loss, and what goes with it. ``guides``: names of further teachers that it reads."""

    name: str
    loss: Mapping[str, Any]
    balance: str = "none"
    neighbours: int = 0
    guides: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """What an arm is kept by."""
        return {"loss": dict(self.loss), "balance": self.balance, "neighbours": self.neighbours, "guides": self.guides}


def find_method(name: str, known: DataFacts) -> Method:
    """The method of this name for data with human captions, or with classes (whose captions are made of their names).

    Our default goes by all that is ``known``; the recipes as they are published.
    """
    captions = known.captions
    if name == "default":
        return Method(name, losses_for(**asdict(known)))
    if name in BOTH:
        return Method(name, BOTH[name])
    if name in TRIED:
        change, options = CANDIDATES.get(name, ({} if captions else LABELLED.get(name, {}), {}))
        return Method(name, _readable({**START[captions], **change}, labels=bool(known.labels)), **options)
    loss = _readable(load_yaml(Recipe, find_recipe(name)).loss, labels=bool(known.labels))
    return Method(name, loss, guides=("second",) if name == "mobileclip" else ())


def _readable(loss: Mapping[str, Any], *, labels: bool) -> dict[str, Any]:
    """The loss without terms that a candidate took away, and without the one that reads labels where none are known."""
    return {name: term for name, term in loss.items() if term is not None and (labels or name != "class_text_ce")}


def kept_by(name: str, known: DataFacts) -> list[dict[str, Any]]:
    """What an arm is kept by: whether our default trusts a teacher is seen when it is trained, so both sums count."""
    return [find_method(name, replace(known, trusted=trusted)).to_dict() for trusted in (False, True)]


def group_of(name: str) -> str:
    """``default``, ``candidates``, ``baselines``, ``methods``: where a row stands in the summary."""
    if name == "default":
        return name
    return "candidates" if name in TRIED else "baselines" if name in BASELINES else "methods"
