"""A recipe of ``clipette adapt``: one method on one base, from the shots to the seed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clipette.adapt.settings import LOOP, ON_FEATURES, MethodSettings, WiseFT
from clipette.config import StrictModel
from clipette.data.dataset import Classes
from clipette.train.recipe import ViewSettings
from clipette.train.settings import Seed, TrainSettings


class LabelSettings(StrictModel):
    """Where labels come from. ``pseudo`` (UPL): of each class the ``per_class`` images (or ``shots``) that the base's
    zero-shot classifier is most confident of, and of at least ``at_least``; the images' own labels are not read."""

    source: Literal["given", "pseudo"] = "given"
    per_class: int | None = Field(default=16, ge=1)
    at_least: float = Field(default=0.0, ge=0, le=1)


class AdaptRecipe(StrictModel):
    """A whole adaptation.

    ``method``: what learns. ``base``: a model's reference. ``classes``: all, base (the first half, rounded up) or
    novel; ``shots``: so many images a class. ``views``: what is seen of an image: ``count`` stored views by methods
    that read the base's own vectors, which are computed once; a fresh one each epoch by those that read pixels alone.
    ``templates``: of the class texts where the text side does not learn. ``train``: for methods that the loop trains;
    those on stored features have ``method.fit``.
    """

    name: str
    about: str = ""
    paper: str = ""
    method: MethodSettings
    base: str | None = None
    data: str | None = None
    dev: str | None = None
    classes: Classes = "all"
    shots: int | None = Field(default=None, ge=1)
    labels: LabelSettings = LabelSettings()
    views: ViewSettings = ViewSettings()
    templates: str = "single"
    seed: Seed = 0
    train: TrainSettings = TrainSettings()

    @property
    def chooses(self) -> bool:
        """Whether validation images change what is learned; where they do not, they are a curve to look at."""
        if isinstance(self.method, WiseFT) and len(self.method.shares) > 1:
            return True
        return self.train.keep == "best" if isinstance(self.method, LOOP) else isinstance(self.method, ON_FEATURES)

    @model_validator(mode="after")
    def _one_place_for_training(self) -> AdaptRecipe:
        # A run's own recipe.yaml states the defaults too; and every method reads images, of which some may fail.
        if self.train != TrainSettings(max_failures=self.train.max_failures) and not isinstance(self.method, LOOP):
            raise ValueError(
                f"train is for methods that the loop trains, and {self.method.kind} is none of them: remove it "
                "(what is fitted to stored features has method.fit)"
            )
        return self
