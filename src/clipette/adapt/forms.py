"""Adapters at work again over their base: each form builds a model of two towers that shares the base's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipette.adapt.adapter import Adapter
from clipette.adapt.clip_adapter import adapted
from clipette.adapt.cocoop import conditional_logits, shift
from clipette.adapt.context import ClassContext
from clipette.adapt.features import ClassTexts
from clipette.adapt.learner import Frozen
from clipette.adapt.linear_probe import FittedLinearProbe
from clipette.adapt.packed import LogitHead, UnitTrunk, packed_encoder
from clipette.adapt.test_time import TuningTrunk
from clipette.adapt.tip_adapter import cache_logits
from clipette.data.prompts import class_prompts
from clipette.errors import ConfigError, ModelError
from clipette.models.core import Blueprint, DualEncoder, ImageTower, TextTower
from clipette.models.prompted import prompted_image
from clipette.models.prompted_text import context_text, known_text
from clipette.models.prompts import DeepPrompts
from clipette.models.spec import PromptSpec
from clipette.models.text_prompts import PromptShape

Build = Callable[[Frozen, Adapter, tuple[str, ...]], DualEncoder]


def apply_adapter(frozen: Frozen, adapter: Adapter, classes: Sequence[str] = ()) -> DualEncoder:
    """The adapted model, in evaluation mode; the base stays as it is, and its weights are shared, not copied.

    ``classes``: what a classifier is to choose from, where it can name others than those it learned; by default those.

    Raises:
        ModelError: a form that this version does not know, tensors that do not fit it.
        ConfigError: classes that a closed classifier has not learned.
    """
    if adapter.form not in FORMS:
        raise ModelError(f"an adapter of form '{adapter.form}', which this Clipette does not know: upgrade it")
    moved = {name: value.to(frozen.device) for name, value in adapter.tensors.items()}
    here = Adapter(adapter.form, adapter.classes, adapter.templates, adapter.facts, moved)
    try:
        model = FORMS[adapter.form](frozen, here, tuple(classes) or adapter.classes)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"an adapter of form '{adapter.form}' does not fit this base: {error}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(frozen.device).eval()


def _joined(frozen: Frozen, image: ImageTower | None, text: TextTower | None) -> DualEncoder:
    """With the base's own scale and bias."""
    base = frozen.model
    bias = None if base.logit_bias is None else float(base.logit_bias)
    return DualEncoder(image, text, logit_scale=float(base.logit_scale), logit_bias=bias)


def _zero_shot(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    return _joined(frozen, frozen.model.image, frozen.model.text)


def _prompts(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    image, text, tensors = frozen.model.image, frozen.model.text, adapter.tensors
    if "visual" in tensors and tensors["visual"].numel():
        depth, count, _ = tensors["visual"].shape
        image = prompted_image(frozen.model.image_tower(), PromptSpec(count=count, depth=depth))
        prompts = next(module for module in image.modules() if isinstance(module, DeepPrompts))
        with torch.no_grad():
            prompts.tokens.copy_(tensors["visual"])
    if "context" in tensors:
        shape = PromptShape(**adapter.facts["shape"])
        deeper = tensors.get("deeper")
        text = context_text(frozen.model.text_tower(), tensors["context"], shape, deeper=deeper)
    return _joined(frozen, image, text)


def _class_vectors(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    # Under its own templates a class that it has not learned is the base's, as it was.
    texts = [text for prompts in class_prompts(adapter.classes, adapter.templates) for text in prompts]
    text = known_text(frozen.model.text_tower(), texts, adapter.tensors["vectors"], wording=adapter.templates)
    return _joined(frozen, frozen.model.image, text)


class MixedHead(nn.Module):
    """CLIP-Adapter behind an image tower: [B, D] to [B, D], at the length it had."""

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor, ratio: float) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """The network has no biases: of raw vectors it gives the direction that it gives of unit ones."""
        return adapted(x, self.down, self.up, self.ratio)


def _image_head(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    tower = frozen.model.image_tower()
    head = MixedHead(adapter.tensors["down"], adapter.tensors["up"], float(adapter.facts["ratio"]))
    inner = {"kind": tower.blueprint.kind, "arguments": dict(tower.blueprint.arguments)}
    blueprint = Blueprint("mixed_image", {"inner": inner}, tower.blueprint.assets)
    image = ImageTower(tower, head, preprocess=tower.preprocess, width=tower.width, blueprint=blueprint)
    return _joined(frozen, image, frozen.model.text)


def _weights(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    image = copy.deepcopy(frozen.model.image_tower())
    image.load_state_dict(dict(adapter.tensors))
    return _joined(frozen, image, frozen.model.text)


# ---------------------------------------------------------------- classifiers


def _on_vectors(frozen: Frozen, logits_of: Callable[[Tensor], Tensor], adapter: Adapter, classes: Any) -> DualEncoder:
    """A classifier over the base's own unit vectors."""
    tower = frozen.model.image_tower()
    return packed_encoder(tower, UnitTrunk(tower), LogitHead(logits_of, adapter.tensors), classes)


def _conditional(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    shape, kept = PromptShape(**adapter.facts["shape"]), adapter.tensors
    prompts = ClassContext.of(frozen, classes, shape.count, position=shape.position, rest=shape.rest)
    down, up = (kept["down.weight"], kept["down.bias"]), (kept["up.weight"], kept["up.bias"])

    def logits_of(image: Tensor) -> Tensor:
        return conditional_logits(prompts, image, kept["context"], shift(image, down, up))

    named = {name.replace(".", "_"): value for name, value in kept.items()}
    return _on_vectors(frozen, logits_of, Adapter("", (), "", {}, named), classes)


def _cache(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    base = ClassTexts(
        frozen.class_vectors(classes, adapter.templates), float(frozen.model.scale), float(frozen.model.bias)
    )
    places = {name: row for row, name in enumerate(classes)}
    # Shots of classes that nobody asks for have no vote; classes without shots have their texts alone.
    learned = adapter.tensors["labels"].tolist()
    if min(learned, default=0) < 0:
        raise ModelError("an adapter of form 'cache' has a label below 0: it is damaged, adapt again")
    rows = torch.tensor([places.get(adapter.classes[label], -1) for label in learned])
    kept = (rows >= 0).to(frozen.device)
    keys, labels = adapter.tensors["keys"][kept], rows.to(frozen.device)[kept]
    alpha, beta = float(adapter.facts["alpha"]), float(adapter.facts["beta"])
    logits_of = partial(cache_logits, base, keys=keys, labels=labels, alpha=alpha, beta=beta)
    return _on_vectors(frozen, logits_of, adapter, classes)


def _linear(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    unknown = [name for name in classes if name not in adapter.classes]
    if unknown and not adapter.facts["text_start"]:
        raise ConfigError(
            f"the linear probe has not learned class '{unknown[0]}'"
            f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}: it knows its {len(adapter.classes)} "
            "only (with method.text_start: true it would name others by their texts)"
        )
    base = None
    if adapter.facts["text_start"]:
        vectors = frozen.class_vectors(classes, adapter.templates)
        base = ClassTexts(vectors, float(frozen.model.scale), float(frozen.model.bias))
    # A class that it has not learned adds nothing to its text.
    known = [name for name in classes if name in adapter.classes]
    into = torch.tensor([classes.index(name) for name in known], dtype=torch.int64, device=frozen.device)
    rows = torch.tensor([adapter.classes.index(name) for name in known], dtype=torch.int64, device=frozen.device)
    weight = adapter.tensors["weight"].new_zeros(len(classes), adapter.tensors["weight"].shape[1])
    weight = weight.index_copy(0, into, adapter.tensors["weight"][rows])
    bias = adapter.tensors["bias"].new_zeros(len(classes)).index_copy(0, into, adapter.tensors["bias"][rows])
    return _on_vectors(frozen, FittedLinearProbe(weight, bias, 0.0, base).logits, adapter, classes)


def _tuned(frozen: Frozen, adapter: Adapter, classes: tuple[str, ...]) -> DualEncoder:
    shape, tower = PromptShape(**adapter.facts["shape"]), frozen.model.image_tower()
    prompts = ClassContext.of(frozen, classes, shape.count, position=shape.position, rest=shape.rest)
    trunk = TuningTrunk(prompts, adapter.tensors["context"], adapter.facts["settings"])
    told = {**adapter.facts, "classes": list(classes)}
    return packed_encoder(tower, trunk, LogitHead(lambda logits: logits, {}), classes, told=told)


FORMS: dict[str, Build] = {
    "zero-shot": _zero_shot,
    "prompts": _prompts,
    "class-vectors": _class_vectors,
    "image-head": _image_head,
    "weights": _weights,
    "conditional": _conditional,
    "cache": _cache,
    "linear": _linear,
    "tuned": _tuned,
}
# Those that are classifiers: no single image-text space remains.
CLASSIFIERS = frozenset({"conditional", "cache", "linear", "tuned"})


def keeps_images(adapter: Adapter) -> bool:
    """Whether the base's image trunk works as before under it, so that what it says can be kept."""
    return adapter.form not in ("weights", "tuned") and "visual" not in adapter.tensors


def wording_of(adapter: Adapter) -> str:
    """The templates that an adapted model's classes are named by: a classifier's are bare names."""
    return "none" if adapter.form in CLASSIFIERS else adapter.templates
