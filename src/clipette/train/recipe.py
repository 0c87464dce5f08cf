"""A recipe: one experiment in YAML, from the student's architecture to the seed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from clipette.config import StrictModel
from clipette.data.dataset import Classes
from clipette.data.views import ViewPolicy
from clipette.models.spec import ModelSpec
from clipette.tasks.balance import Balance
from clipette.tasks.reweight import Reweight
from clipette.train.settings import Seed, TrainSettings


class ViewSettings(StrictModel):
    """Augmented views. ``count``: how many the teacher pours for each image (0: the whole image only); without a
    teacher, or with one in the loop, each epoch draws its own view. ``student_only`` (with ``count: 0``): the student
    sees a view drawn each epoch while the teacher's word stays that on the whole image, for teachers that are only
    stored vectors; the views should be mild. The other fields are ``data.views.ViewPolicy``'s.
    """

    # Each is a forward run of the teacher for every image, and a row of its store.
    count: int = Field(default=4, ge=0, le=1000)
    student_only: bool = False
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def policy(self) -> ViewPolicy | None:
        """The law of the views, or none where only whole images are seen."""
        if self.count == 0 and not self.student_only:
            return None
        return ViewPolicy(**self.law())

    def law(self) -> dict[str, Any]:
        """``ViewPolicy``'s fields."""
        return self.model_dump(exclude={"count", "student_only"})

    @model_validator(mode="after")
    def _one_law(self) -> ViewSettings:
        if self.student_only and self.count > 0:
            raise ValueError(f"student_only is for whole images of the teacher: set count to 0, not {self.count}")
        return self


class ClassSettings(StrictModel):
    """Which classes a class-text loss reads: ``names``, a ``file`` (one a line), or the ``source``'s own
    (``data``: the training data's class names; ``teacher``: every text that a stored teacher holds). ``reweight``: what
    an image weighs in these losses by how many the data has of its class (``tasks/reweight.py``; DIST takes no part).
    """

    source: Literal["data", "teacher"] = "data"
    names: tuple[str, ...] = ()
    file: str | None = None
    templates: str = "single"
    reweight: Reweight = "none"


class SamplingSettings(StrictModel):
    """What batches bring together. ``balance``: rare classes more often, p ∝ n(class)^-balance (1: every class alike).
    ``neighbours``: groups of so many samples that the teacher finds alike, side by side in a batch: hard negatives.
    """

    balance: float = Field(default=0.0, ge=0, le=1)
    neighbours: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_order(self) -> SamplingSettings:
        if self.balance and self.neighbours:
            raise ValueError("balance and neighbours are two orders of the same samples: choose one")
        return self


class InheritSettings(StrictModel):
    """Weights that the student takes from its larger teacher before training (TinyCLIP, Wu et al., ICCV 2023).

    ``by``: ``leading`` channels, heads and hidden units, or those of the largest ``norm`` (transformers only); layers
    are taken at even strides. ``towers``: which; leave out ``text`` where the text tower has weights of its own.
    """

    by: Literal["leading", "norm"] = "leading"
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")


class MaskSettings(StrictModel):
    """Learned masks that leave a smaller student behind (TinyCLIP's automatic inheritance, Wu et al., ICCV 2023).

    ``keep``: the share of the parameters of the towers' heads and hidden units that remains, of both towers together.
    ``warmup``: the share of the run over which the target comes down to it from 1. ``lr``: of the masks and their
    multipliers; they need some 10 / lr steps to shut. What is kept is the student's own weights: let it start from its
    teacher's (``inherit``). Stages (75, 50, 25 %) are runs that start from the one before (``init``).
    """

    keep: float = Field(default=0.5, gt=0, le=1)
    towers: tuple[Literal["image", "text"], ...] = Field(default=("image", "text"), min_length=1)
    warmup: float = Field(default=0.5, ge=0, le=1)
    lr: float = Field(default=0.02, gt=0)


class AdaptFirst(StrictModel):
    """What the teacher learns before it is poured: PromptKD's first stage (Li et al., CVPR 2024, section 3.2).

    ``recipe``: of ``clipette adapt``; ``set``: its keys, as on the command line. ``data``: other images than the
    student's. ``classes`` and ``shots``: which of them; the student then sees all images, without their labels.
    """

    recipe: str = "promptsrc"
    data: str | None = None
    classes: Classes = "all"
    shots: int | None = Field(default=None, ge=1)
    set: tuple[str, ...] = ()


class Recipe(StrictModel):
    """A whole experiment.

    ``loss``: terms of ``tasks/terms.py`` with weights; ``balance``: a rule that multiplies them (``gradient``: equal
    pull at the student's vectors; ``uncertainty``: learned). ``also``: further teachers by name, each read by terms
    such as ``image_cosine@name``, or by the ensembles. ``init``: a run directory whose weights the student starts from.
    ``adapt``: make the teacher better in the domain first. ``inherit``: take a larger teacher's weights, cut to the
    student's size. ``masks``: learn which heads and hidden units to keep, and end with these alone.
    ``captions_per_image``: how many captions of an image are in one batch.
    ``trunk_views``: views kept of each image where its trunk is frozen.
    ``freeze_scale``: keep ``logit_scale`` (and bias) as it starts. ``figure``: the dev value that is watched
    (``mean_recall`` with captions, ``top1`` with classes).
    """

    name: str
    about: str = ""
    paper: str = ""
    student: ModelSpec
    loss: dict[str, float | dict[str, Any]]
    balance: Balance = "none"
    teacher: str | None = None
    also: dict[str, str] = Field(default_factory=dict)
    data: str | None = None
    dev: str | None = None
    views: ViewSettings = ViewSettings()
    classes: ClassSettings = ClassSettings()
    init: str | None = None
    adapt: AdaptFirst | None = None
    inherit: InheritSettings | None = None
    masks: MaskSettings | None = None
    sampling: SamplingSettings = SamplingSettings()
    freeze_scale: bool = False
    captions_per_image: int = Field(default=1, ge=1)
    trunk_views: int = Field(default=1, ge=1)
    scaled_decode: bool = False
    figure: str | None = None
    seed: Seed = 0
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _pruned_at_the_end(self) -> Recipe:
        if self.masks is not None and self.train.keep == "best":
            raise ValueError("masks reach their target late, and keep: best may choose a larger model: use keep: last")
        return self
