"""What a run needs, resolved, and what makes it that run and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipette.data.dataset import Dataset
from clipette.data.views import ViewPolicy
from clipette.io import digest_json
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.spec import TeacherText
from clipette.store.reader import Store
from clipette.tasks.pour import PourPlan
from clipette.tasks.terms import needs_of, read_terms
from clipette.train.ranks import world_size
from clipette.train.recipe import Recipe
from clipette.types import Encoder


@dataclass(frozen=True)
class Companion:
    """A further teacher of a run: itself, and what it poured of the same views."""

    teacher: Encoder
    store: Store | None = None


@dataclass(frozen=True)
class Job:
    """All that a run needs, resolved.

    ``teacher``: the live teacher where there is one (its text tower may be shared, its forward run online), or stored
    embeddings; ``store``: what it poured. ``also``: further teachers by the names that the losses use. ``base``: the
    folder that the recipe's relative paths start from.
    """

    recipe: Recipe
    data: Dataset
    out: Path
    dev: Dataset | None = None
    teacher: Encoder | None = None
    store: Store | None = None
    online: bool = False
    also: Mapping[str, Companion] = field(default_factory=dict)
    base: Path = Path()
    device: str | None = None
    progress: bool = True


def identity_of(job: Job) -> str:
    """Digest of everything that changes the weights: recipe, data, teacher, processes."""
    recipe = job.recipe.model_dump(mode="json")
    for cosmetic in ("about", "paper", "name", "dev"):
        recipe.pop(cosmetic)
    if recipe["masks"] is None:
        # Runs of before there were masks go on.
        recipe.pop("masks")
    for late in ("gaussian", "warmup_factor"):
        if recipe["train"][late] is None:
            recipe["train"].pop(late)
    if recipe["adapt"] is None:
        recipe.pop("adapt")
    if recipe["classes"]["reweight"] == "none":
        # Runs of before there was the key go on.
        recipe["classes"].pop("reweight")
    # Dev data changes the weights only where it chooses them.
    dev = {"dev": job.dev.fingerprint()} if job.dev is not None and job.recipe.train.keep == "best" else {}
    return digest_json(
        {
            "recipe": recipe,
            "data": job.data.fingerprint(),
            "teacher": None if job.teacher is None else job.teacher.space,
            "store": None if job.store is None else dict(job.store.identity),
            "online": job.online,
            "ranks": world_size(),
            **dev,
            **{f"also {name}": each.teacher.space for name, each in job.also.items()},
        }
    )


def live_teacher(teacher: Encoder | None) -> DualEncoder | None:
    """The teacher's model, where it is one and not only stored."""
    return teacher.model if isinstance(teacher, TorchEncoder) else None


def pour_plan(recipe: Recipe, guide: str = "") -> PourPlan:
    """What the losses read of the teacher, or of the further teacher ``guide``: what is poured."""
    needs = needs_of(read_terms(recipe.loss), guide)
    images, shares = "teacher_image" in needs, not guide and shares_text(recipe)
    return PourPlan(
        images=images and recipe.views.count == 0,
        views=recipe.views.count if images else 0,
        captions="teacher_text" in needs or (shares and "student_text" in needs),
        policy=recipe.views.policy() or ViewPolicy(),
    )


def shares_text(recipe: Recipe) -> bool:
    """Whether the student's text side is its teacher's own, unchanged: then stored captions serve both."""
    text = recipe.student.text
    return isinstance(text, TeacherText) and text.train == "none" and text.layers is None
