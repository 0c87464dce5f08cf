"""What a budget buys: the rules by which ``clipette distill --budget`` chooses student, losses and schedule.

Every number below is a rule of thumb with its reason beside it; docs/LOG.md holds the experiments. Nothing here runs a
model: ``train/planning.py`` measures, and asks these rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipette.errors import ConfigError

# ---------------------------------------------------------------- the budget

UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MOST = 1e9
_PART = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>[a-z]+)", re.IGNORECASE)
EXAMPLES = "10m, 2h, 0.1gmacs, or both: 10m,0.1gmacs"


@dataclass(frozen=True)
class Budget:
    """``seconds`` for pouring and training together; ``gmacs`` of the student's image tower, per image."""

    seconds: float | None = None
    gmacs: float | None = None


def parse_budget(text: str) -> Budget:
    """``10m``, ``90s``, ``1.5h``, ``0.1gmacs``, ``100mmacs``, or time and cost with a comma between.

    Raises ``ConfigError`` on anything else.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        unit = "" if match is None else match["unit"].lower().rstrip("s") or "s"
        if match is None or unit not in (*UNITS, "gmac", "mmac"):
            raise ConfigError(f"--budget {text!r}: '{part.strip()}' is neither a time nor a cost; write {EXAMPLES}")
        name = "gmacs" if unit in ("gmac", "mmac") else "seconds"
        value = float(match["number"]) * {"gmac": 1.0, "mmac": 1e-3}.get(unit, UNITS.get(unit, 1.0))
        if name in found or not 0 < value < MOST:
            raise ConfigError(
                f"--budget {text[:80]!r}: give one time and one cost at most, each above 0 and below 1e9: {EXAMPLES}"
            )
        found[name] = value
    return Budget(**found)


# ---------------------------------------------------------------- losses


# A teacher is trusted where its class texts are right on this share of what labels, learned from its own vectors, are.
# Measured at .26, .57, .61, .69 and .71, where its answers do harm beside labels, and at .88, where they help.
TRUST = 0.8


@dataclass(frozen=True)
class Worth:
    """Top-1 of a teacher's class texts (``answers``), and of what learned the ``labels`` from its own vectors."""

    answers: float
    labels: float


def trusts(worth: Worth | None) -> bool:
    """Whether a teacher's answers are worth learning where labels are known; not where too few are to tell."""
    return worth is not None and worth.answers >= TRUST * worth.labels


def losses_for(*, captions: bool, classes: bool, labels: float, trusted: bool = False) -> dict[str, Any]:
    """Our default sum, by what the data has. The teacher's texts stay as they are, the student lives in its space.

    ``captions``: every image has one; ``classes``: names of classes are known; ``labels``: the share of images whose
    class is; ``trusted``: the teacher's answers are nearly as right as labels make them (``trusts``).

    Captions: features first (``image_cosine 10`` carries most of what a student gets), the in-batch KL brings the
    teacher's order of captions, InfoNCE the captions themselves. Where some images have a label, what it says of them
    too (Flickr8k with 300 labelled pictures of Caltech101, dev: mean recall .414 for .436, top-1 .64 for .30).

    Labels: what people said of each image. Beside them the answers of a teacher that is right, and its order of the
    captions where there are some (rendered world, dev: .297; without that order .289, with InfoNCE too .269; the rule
    for captions .233). A teacher that errs is asked for the contrast of its vectors alone, for its answers hold a
    student at its errors (PACS, seen domains, dev: .43 with features and answers, .67 with labels too, .79 with labels
    and the contrast, .80 with InfoNCE on captions too).

    Class names without labels: features, and KL over the class texts, which PromptKD found best of its logit and
    feature losses. Without all, features alone.
    """
    if classes and labels == 1.0:
        if trusted:
            return {"class_text_ce": 1.0, "class_text_kl": 1.0, **({"in_batch_kl": 1.0} if captions else {})}
        contrast = {"class_text_ce": 1.0, "image_to_teacher": {"weight": 1.0, "temperature": 0.07}}
        return {**contrast, **({"clip": 1.0} if captions else {})}
    if captions:
        said = {"image_cosine": 10.0, "in_batch_kl": 1.0, "clip": 1.0}
        return {**said, **({"class_text_ce": 1.0} if classes and labels else {})}
    return {"image_cosine": 10.0, "class_text_kl": 1.0} if classes else {"image_cosine": 10.0}


# ---------------------------------------------------------------- the student's size

# A student that is not three times cheaper than its teacher is seldom worth what it loses.
CHEAPER = 3.0
# Sides in pixels, as shares of the teacher's: a smaller picture was the cheapest cut of all that were tried (cosine to
# T1 without training: .839 at 128 of 224 px, .877 at 144 px; leaving out any block costs more), and a larger picture
# lifts every student alike.
SHARES = (0.93, 0.86, 0.79, 0.71, 0.64, 0.57, 0.5, 0.43)
# Sides are multiples of this: what convolutions of stride 2 and patches of 16 divide without a rest.
SIDE = 16
SMALLEST_SIDE = 32
# Where the teacher's trunk cannot shrink by pixels (transformers, large CNNs), one of these, cheapest last: pretrained
# timm backbones with their GMACs at 224 px as timm states them.
LADDER: tuple[tuple[str, float], ...] = (
    ("convnext_tiny", 4.46),
    ("resnet18", 1.82),
    ("efficientnet_b0", 0.4),
    ("mobilenetv3_large_100", 0.23),
    ("mobilenetv3_small_100", 0.06),
)


@dataclass(frozen=True)
class Candidate:
    """An image tower that may become the student: ``inherits``: the teacher's own trunk, shown smaller pictures."""

    name: str
    side: int
    gmacs: float
    inherits: bool


def sides_below(side: int) -> tuple[int, ...]:
    """The sides that a student of a trunk of ``side`` px may have, largest first."""
    shrunk = (round(side * share / SIDE) * SIDE for share in SHARES)
    return tuple(dict.fromkeys(each for each in shrunk if SMALLEST_SIDE <= each < side))


def candidates(side: int, gmacs: float, *, shrinks: bool) -> list[Candidate]:
    """All students for a teacher of ``side`` px and ``gmacs``, most expensive first.

    ``shrinks``: the teacher's trunk takes pictures of any size, so that the student may be the same trunk with the
    same weights: after 3 epochs it was where an ImageNet start was not after 8 (dev .441 and .424).
    """
    found = [Candidate(name, 224, cost, False) for name, cost in LADDER if cost < gmacs]
    if shrinks:
        # A convolution's cost goes with the area.
        found += [Candidate("", each, gmacs * (each / side) ** 2, True) for each in sides_below(side)]
    return sorted(found, key=lambda each: -each.gmacs)


def affordable(found: Sequence[Candidate], budget: Budget, teacher_gmacs: float) -> list[Candidate]:
    """Those within the budget's GMACs, best first: the teacher's own shrunken trunk, then the dearest.

    Without GMACs, those three times cheaper than the teacher, or the cheapest of all where none is. Raises
    ``ConfigError`` where none is cheap enough.
    """
    limit = teacher_gmacs / CHEAPER if budget.gmacs is None else budget.gmacs
    kept = [each for each in found if each.gmacs <= limit]
    if not kept and budget.gmacs is None:
        kept = list(found[-1:])
    if not kept:
        least = f"the cheapest has {found[-1].gmacs:.3g}" if found else "its own trunk cannot be made smaller"
        raise ConfigError(
            f"--budget: no student of {limit:.3g} GMACs an image is known for this teacher of {teacher_gmacs:.3g} "
            f"({least}): give more, or name a --student"
        )
    return sorted(kept, key=lambda each: (not each.inherits, -each.gmacs))


# ---------------------------------------------------------------- the schedule

# Of the time, what is left for building, saving and the last evaluation.
RESERVE = 0.07
# Pouring a view costs a forward of the teacher: of the time at most this share, or the student gets too few steps.
POUR_SHARE = 0.4
# Four views an image, of which an epoch sees one: what all students of docs/RESULTS.md had.
MOST_VIEWS = 4
# From its teacher's weights the dev figure is nearly flat after 3 epochs (.430, .437, .441); from ImageNet's after 8.
LEAST_EPOCHS = {True: 3.0, False: 8.0}
# More than this many epochs brought nothing, or overfitted (docs/LOG.md): the rest of the time is given back.
MOST_EPOCHS = {True: 10.0, False: 40.0}
# Without a time: a run that ends in reasonable time and whose curve is flat.
USUAL_EPOCHS = {True: 6.0, False: 16.0}
# A head on a frozen trunk trains in seconds: these epochs over kept features (more overfit 6,000 images).
HEAD_EPOCHS = 8.0
BATCH = 128


def views_for(seconds: float | None, images: int, seconds_a_view: float) -> int:
    """How many views of each image the teacher pours: four, or as many as its share of the time allows.

    Raises ``ConfigError`` where even one takes longer than that share.
    """
    if seconds is None:
        return MOST_VIEWS
    views = int(POUR_SHARE * seconds / (images * seconds_a_view))
    if views < 1:
        needed = images * seconds_a_view / POUR_SHARE
        raise ConfigError(
            f"--budget: pouring {images} images through this teacher takes about {images * seconds_a_view:.1f} s, more "
            f"than {POUR_SHARE:.0%} of the time: give {math.ceil(needed / 60)}m or more, fewer images (`?limit=`), or "
            "pour before (`clipette pour`) and name the --store"
        )
    return min(MOST_VIEWS, views)


@dataclass(frozen=True)
class Schedule:
    """How long: ``steps`` of ``batch`` images, ``epochs`` as that makes; ``frozen``: the head alone learns."""

    steps: int
    batch: int
    epochs: float
    frozen: bool = False


def batch_for(images: int) -> int:
    """128, or what leaves a small set four steps an epoch, and two at least: in-batch losses want company.

    Raises ``ConfigError`` for a single image: neither they nor batch normalisation can do with one.
    """
    if images < 2:
        raise ConfigError(f"--data holds {images} image: a student needs two at least, and hundreds to learn anything")
    return max(2, min(BATCH, images // 4))


def schedule_for(seconds: float | None, seconds_a_step: float, images: int, *, inherits: bool) -> Schedule | None:
    """The steps that fit ``seconds``; None where they are too few for this student: take a smaller one.

    Without a time, ``USUAL_EPOCHS``.
    """
    batch = batch_for(images)
    each = max(1, images // batch)
    if seconds is None:
        steps = round(USUAL_EPOCHS[inherits] * each)
    else:
        steps = int(seconds / seconds_a_step)
        if steps < LEAST_EPOCHS[inherits] * each:
            return None
        steps = min(steps, round(MOST_EPOCHS[inherits] * each))
    steps = max(1, steps)
    return Schedule(steps, batch, steps / each)


def head_schedule(images: int) -> Schedule:
    """Where the time is too short to train any trunk: the trunk runs once, the head learns from what it said."""
    batch = batch_for(images)
    each = max(1, images // batch)
    steps = max(1, round(HEAD_EPOCHS * each))
    return Schedule(steps, batch, steps / each, frozen=True)


def optimizer_for(*, inherits: bool, frozen: bool) -> dict[str, Any]:
    """AdamW. Inherited weights are near their end already: 3e-4; others 5e-4 and their heads 1e-3 (docs/RESULTS.md)."""
    if frozen:
        return {"lr": 1e-3, "weight_decay": 0.05}
    if inherits:
        return {"lr": 3e-4, "head_lr": 3e-4, "weight_decay": 0.05}
    return {"lr": 5e-4, "head_lr": 1e-3, "weight_decay": 0.05}
