"""A student or a LiT pair in YAML: which image trunk, which text trunk, which heads, what is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from clipette.config import StrictModel

Train = Literal["all", "head", "none"]
Pixels = Annotated[int, Field(ge=1)]
Spread = Annotated[float, Field(gt=0)]


class HeadSpec(StrictModel):
    """The map from a trunk's width to the space: ``none | linear | mlp | residual | bn_mlp``.

    ``layers``: how many linear layers ``bn_mlp`` has, PromptKD's projector.
    """

    kind: Literal["none", "linear", "mlp", "residual", "bn_mlp"] = "linear"
    hidden: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: Literal[1, 2, 3] = 2

    @model_validator(mode="after")
    def _layers_of_a_projector(self) -> HeadSpec:
        if "layers" in self.model_fields_set and self.kind != "bn_mlp":
            raise ValueError(
                f"layers belongs to a head of kind bn_mlp, and this one is of kind {self.kind}: remove layers, or set "
                "kind: bn_mlp"
            )
        return self

    @model_serializer(mode="wrap")
    def _usual_layers_unsaid(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs and saved models of before there was the key go on, and older Clipettes read what needs no newer one.
        values: dict[str, Any] = dump(self)
        if self.layers == 2:
            values.pop("layers", None)
        return values


class PromptSpec(StrictModel):
    """Learned visual tokens of a transformer: ``count`` in each of the first ``depth`` layers (PromptKD: 8 in 9).

    They and the head are trained under ``train: head``, while the trunk stays frozen.
    """

    count: int = Field(default=8, ge=1)
    depth: int = Field(default=9, ge=1)
    init: Literal["normal", "vpt"] = "normal"


class TimmImage(StrictModel):
    """Any timm backbone with its arguments and weights file.

    ``weights``: a safetensors file, ``pretrained`` (timm's hub), or nothing (random). ``train``: the whole tower, its
    head only, or nothing. ``mean``, ``std`` and ``interpolation`` default to timm's own for the architecture.
    """

    kind: Literal["timm"] = "timm"
    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    size: Pixels | tuple[Pixels, Pixels] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    mode: Literal["crop", "squash", "pad"] = "crop"
    head: HeadSpec = HeadSpec()
    prompts: PromptSpec | None = None
    train: Train = "all"


class OpenClipPart(StrictModel):
    """One tower of an open_clip architecture or checkpoint: ``ViT-S-16``, ``RN50/openai``, a JSON config file."""

    kind: Literal["open_clip"] = "open_clip"
    name: str
    head: HeadSpec = HeadSpec(kind="none")
    prompts: PromptSpec | None = None
    train: Train = "all"


class HFText(StrictModel):
    """Any Hugging Face text encoder from a folder or hub id; ``layers`` keeps some of its layers only."""

    kind: Literal["hf"] = "hf"
    path: str
    layers: tuple[int, ...] | None = None
    pool: Literal["mean", "cls"] = "mean"
    context_length: int = Field(default=64, ge=1)
    weights: bool = True
    head: HeadSpec = HeadSpec()
    train: Train = "all"


class SmallText(StrictModel):
    """A small causal transformer trained from nothing.

    ``tokenizer``: ``clip`` (CLIP's BPE, 49,408 tokens) or ``words`` (learned from the training captions).
    """

    kind: Literal["small"] = "small"
    width: int = Field(default=256, ge=1)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    tokenizer: Literal["clip", "words"] = "clip"
    vocabulary: int = Field(default=8192, ge=1)
    context_length: int = Field(default=32, ge=1)
    head: HeadSpec = HeadSpec()
    train: Train = "all"


class TeacherText(StrictModel):
    """The teacher's own text tower: shared as it is, or some of its layers as a start (``layers``, Hugging Face only).

    With ``train: none`` (the default) the student lives in the teacher's space and its texts come from the store.
    """

    kind: Literal["teacher"] = "teacher"
    layers: tuple[int, ...] | None = None
    train: Train = "none"


class SavedPart(StrictModel):
    """One tower, with its weights, of a run directory or a folder that ``save_model`` wrote (a pruned model)."""

    kind: Literal["saved"] = "saved"
    path: str
    train: Train = "all"


ImageSpec = Annotated[TimmImage | OpenClipPart | SavedPart, Field(discriminator="kind")]
TextSpec = Annotated[HFText | SmallText | OpenClipPart | TeacherText | SavedPart, Field(discriminator="kind")]


class ModelSpec(StrictModel):
    """A model of two towers. ``dim`` is the width of their space; a teacher's space fixes it to the teacher's.

    ``logits``: ``clip`` (scale from 1/0.07, no bias) or ``siglip`` (scale 10, bias -10). ``text: null`` with
    ``space: teacher`` is an image-only student that lives among the teacher's stored class texts.
    """

    dim: int | None = Field(default=None, ge=1)
    space: Literal["own", "teacher"] = "own"
    image: ImageSpec
    text: TextSpec | None = None
    logits: Literal["clip", "siglip"] = "clip"
    # CLIP ends near 100, SigLIP near 120. Far above, float32 holds the best match of a row and nothing else.
    logit_scale: float | None = Field(default=None, gt=0, le=1e4)
