"""The methods of adaptation in YAML: one section ``method`` with a ``kind`` and that method's own settings."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from clipette.config import StrictModel

PHRASE = "a photo of a"


class ContextSettings(StrictModel):
    """Learned text tokens. ``start``: the phrase whose first ``tokens`` tokens they begin at, the rest of it staying
    as words; without, N(0, 0.02²)."""

    tokens: int = Field(default=4, ge=1)
    start: str | None = PHRASE


class CoOp(StrictModel):
    """CoOp: learned context ``tokens``, one for all classes or (``per_class``) one for each."""

    kind: Literal["coop"] = "coop"
    tokens: int = Field(default=16, ge=1)
    start: str | None = None
    position: Literal["end", "middle", "front"] = "end"
    per_class: bool = False

    @model_validator(mode="after")
    def _words_stay_at_the_end(self) -> CoOp:
        if self.start is not None and self.position != "end":
            raise ValueError(f"start '{self.start}' is a phrase before the class: position '{self.position}' has none")
        return self


class KgCoOp(ContextSettings):
    """KgCoOp: CoOp kept near the frozen class texts by ``weight``."""

    kind: Literal["kgcoop"] = "kgcoop"
    weight: float = Field(default=8.0, ge=0)


class CoCoOp(ContextSettings):
    """CoCoOp: a context that each image moves, by a network of width D / ``reduction``."""

    kind: Literal["cocoop"] = "cocoop"
    reduction: int = Field(default=16, ge=1)


class VPT(StrictModel):
    """VPT: ``tokens`` in each of the image tower's first ``depth`` layers: 1 is shallow, none means all (deep)."""

    kind: Literal["vpt"] = "vpt"
    tokens: int = Field(default=8, ge=1)
    depth: int | None = Field(default=None, ge=1)
    init: Literal["vpt", "normal"] = "vpt"


class MaPLe(ContextSettings):
    """MaPLe: text tokens in ``depth`` layers, and the visual ones made of them by learned maps."""

    kind: Literal["maple"] = "maple"
    tokens: int = Field(default=2, ge=1)
    depth: int = Field(default=9, ge=1)


class PromptSRC(ContextSettings):
    """PromptSRC: text and ``visual`` tokens in ``depth`` layers, held near the frozen model.

    Weights per unit of our terms, each a mean over classes or images: ``text`` and ``image`` of the L1 distance summed
    over the D dimensions (published: 25 and 10 of its mean, so 25 / D and 10 / D), ``logits`` of the KL (published: 1
    over a sum divided by images and classes, so 1 / C). None: the published ones.
    """

    kind: Literal["promptsrc"] = "promptsrc"
    visual: int = Field(default=4, ge=1)
    depth: int = Field(default=9, ge=1)
    text: float | None = Field(default=None, ge=0)
    image: float | None = Field(default=None, ge=0)
    logits: float | None = Field(default=None, ge=0)
    templates: str = "openai80"


class WiseFT(StrictModel):
    """WiSE-FT: the whole image tower fine-tuned against the class texts, then weights between old and new.

    ``shares``: of the new ones; several are chosen from on validation images.
    """

    kind: Literal["wise-ft"] = "wise-ft"
    shares: tuple[float, ...] = Field(default=(0.5,), min_length=1)


class Fit(StrictModel):
    """Changes to how a method on stored features is trained (``adapt.fitting.Harness``); what is not named stays."""

    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    lr: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)


class ClipAdapter(StrictModel):
    """CLIP-Adapter. ``ratios``: of the adapter's share; several are chosen from on validation images."""

    kind: Literal["clip-adapter"] = "clip-adapter"
    ratios: tuple[float, ...] = Field(default=(0.2,), min_length=1)
    reduction: int = Field(default=4, ge=1)
    fit: Fit = Fit()


class TipAdapter(StrictModel):
    """Tip-Adapter; ``train_keys``: -F. α and β are searched on validation images where there are some."""

    kind: Literal["tip-adapter"] = "tip-adapter"
    train_keys: bool = False
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=5.5, ge=0)
    fit: Fit = Fit()


class TaskRes(StrictModel):
    """TaskRes. ``scales``: α of the residual; several are chosen from on validation images."""

    kind: Literal["taskres"] = "taskres"
    scales: tuple[float, ...] = Field(default=(0.5,), min_length=1)
    fit: Fit = Fit()


class LinearProbe(StrictModel):
    """A linear probe, its strength ``c`` swept on validation images where there are some.

    ``text_start``: weights are added to the zero-shot classifier instead of starting from nothing.
    """

    kind: Literal["linear-probe"] = "linear-probe"
    c: float = Field(default=0.316, ge=0)
    text_start: bool = False


class TPT(ContextSettings):
    """TPT: at test time, each image tunes the context on ``views`` of itself. Nothing is trained beforehand.

    ``from_run``: a CoOp run whose context each image starts from, in place of the phrase.
    """

    kind: Literal["tpt"] = "tpt"
    views: int = Field(default=64, ge=1)
    share: float = Field(default=0.1, gt=0, le=1)
    steps: int = Field(default=1, ge=0)
    lr: float = Field(default=5e-3, gt=0)
    from_run: str | None = None


class ZeroShot(StrictModel):
    """The base as it is: the row that every table starts with."""

    kind: Literal["zero-shot"] = "zero-shot"


# Trained by the loop; fitted to stored features.
LOOP = (CoOp, KgCoOp, CoCoOp, VPT, MaPLe, PromptSRC, WiseFT)
ON_FEATURES = (ClipAdapter, TipAdapter, TaskRes, LinearProbe)
Loop: TypeAlias = CoOp | KgCoOp | CoCoOp | VPT | MaPLe | PromptSRC | WiseFT
OnFeatures: TypeAlias = ClipAdapter | TipAdapter | TaskRes | LinearProbe
MethodSettings = Annotated[
    CoOp
    | KgCoOp
    | CoCoOp
    | VPT
    | MaPLe
    | PromptSRC
    | WiseFT
    | ClipAdapter
    | TipAdapter
    | TaskRes
    | LinearProbe
    | TPT
    | ZeroShot,
    Field(discriminator="kind"),
]
