"""Where learned tokens enter a tower: the one place that knows the insides of other libraries' transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.core import ImageTower, TextTower
from clipette.models.open_clip_models import OpenClipText
from clipette.models.text import HFTextTrunk, SmallTextTrunk, encode_until_end, text_end
from clipette.models.transformers_models import PooledImage, PooledText


@dataclass(frozen=True)
class ImagePlaces:
    """A vision transformer's doors.

    ``entry``: the module whose input [B, N, W] is the embedded image with its positions: the norm before the first
    layer, or the first layer. ``patch``: (height, width) in pixels. ``recomputed``: its layers run a second time in the
    backward pass (gradient checkpointing), with whatever hooks they have by then.
    """

    entry: nn.Module
    layers: tuple[nn.Module, ...]
    width: int
    patch: tuple[int, int]
    recomputed: bool


@dataclass(frozen=True)
class TextPlaces:
    """A text transformer's doors.

    ``embedding``: ids [R, L] → [R, L, W], before positions. ``layers``: empty where learned tokens cannot be renewed
    inside. ``run``: (tokens, length) → vectors [R, D] with the rows in their order; no text is longer than ``length``.
    ``pooled_at``: ids [R, L] → the place [R] whose state becomes the vector, where the ids decide it.
    """

    embedding: nn.Module
    layers: tuple[nn.Module, ...]
    run: Callable[[Mapping[str, Tensor], int], Tensor]
    pooled_at: Callable[[Tensor], Tensor] | None = None
    recomputed: bool = False

    @property
    def width(self) -> int:
        """Of the embedded tokens; ALBERT-like encoders are wider inside."""
        return int(self.table.shape[1])

    @property
    def table(self) -> Tensor:
        """The embedding's weight [V, W]."""
        return self.embedding.get_parameter("weight")


def image_places(tower: ImageTower) -> ImagePlaces:
    """The doors of an image tower. Raises ``ConfigError`` where it is no vision transformer that we know."""
    return _image_places(tower)


def text_places(tower: TextTower) -> TextPlaces:
    """The doors of a text tower. Raises ``ConfigError`` where it is no text transformer that we know."""
    return _text_places(tower)


def token_width(tower: ImageTower | TextTower) -> int:
    """The width W of the tokens inside, which learned tokens must have. Raises ``ConfigError`` as ``layers_of``."""
    return image_places(tower).width if isinstance(tower, ImageTower) else text_places(tower).width


def layers_of(tower: ImageTower | TextTower) -> tuple[nn.Module, ...]:
    """The layers at which learned tokens can be renewed, first to last; none in BERT-like text encoders.

    Raises:
        ConfigError: the tower is no transformer that we know.
    """
    return image_places(tower).layers if isinstance(tower, ImageTower) else text_places(tower).layers


def patch_size(tower: ImageTower) -> tuple[int, int]:
    """(height, width) of a patch in pixels, for VPT's initial values. Raises ``ConfigError`` as ``layers_of``."""
    return image_places(tower).patch


def _image_places(trunk: Any) -> ImagePlaces:
    if isinstance(trunk, ImageTower | TimmModel):  # a tower under a head of our own, or of open_clip's
        return _image_places(trunk.trunk)
    if isinstance(trunk, TimmViT):
        patch = _pair(trunk.patch_embed.patch_size)
        # Where there is no norm before the first layer, an identity stands in its place.
        return ImagePlaces(trunk.norm_pre, tuple(trunk.blocks), trunk.embed_dim, patch, trunk.grad_checkpointing)
    if isinstance(trunk, OpenClipViT):
        inner = trunk.transformer
        patch = _pair(trunk.patch_size)
        return ImagePlaces(trunk.ln_pre, tuple(inner.resblocks), inner.width, patch, inner.grad_checkpointing)
    if isinstance(trunk, PooledImage):
        return _transformers_image(trunk.model)
    raise _no_vision_transformer(trunk)


def _transformers_image(model: Any) -> ImagePlaces:
    from transformers import CLIPVisionModel, SiglipVisionModel

    if not isinstance(model, CLIPVisionModel | SiglipVisionModel):
        raise _no_vision_transformer(model)
    layers = tuple(model.encoder.layers)
    entry = model.pre_layrnorm if isinstance(model, CLIPVisionModel) else layers[0]
    # transformers checkpoints a layer's forward, not its call: its hooks stay outside and run once.
    return ImagePlaces(entry, layers, model.config.hidden_size, _pair(model.config.patch_size), recomputed=False)


def _no_vision_transformer(trunk: object) -> ConfigError:
    return ConfigError(
        "visual prompts are tokens of a vision transformer (timm's and open_clip's VisionTransformer, transformers' "
        f"CLIP and SigLIP); this image tower is a {type(trunk).__name__}, which has no tokens that we know to prompt"
    )


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _text_places(trunk: Any) -> TextPlaces:
    if isinstance(trunk, TextTower):
        inner = _text_places(trunk.trunk)
        head: nn.Module = trunk.head
        return replace(inner, run=lambda tokens, length: head(inner.run(tokens, length)))
    if isinstance(trunk, SmallTextTrunk):
        return _open_clip_text(trunk.transformer)
    if isinstance(trunk, OpenClipText) and isinstance(trunk.model, TextTransformer):
        return _open_clip_text(trunk.model)
    if isinstance(trunk, OpenClipText) and isinstance(trunk.model, HFTextEncoder):
        embedding = trunk.model.transformer.get_input_embeddings()
        return TextPlaces(embedding, (), lambda tokens, length: trunk(tokens))
    if isinstance(trunk, PooledText):
        return _transformers_text(trunk)
    if isinstance(trunk, HFTextTrunk):
        return _encoder(trunk)
    raise ConfigError(
        "text prompts need a text transformer (open_clip's, transformers' CLIP or SigLIP, a BERT-like encoder); this "
        f"text tower is a {type(trunk).__name__}, which embeds no words"
    )


def _open_clip_text(transformer: Any) -> TextPlaces:
    stack = transformer.transformer
    return TextPlaces(
        transformer.token_embedding,
        tuple(stack.resblocks),
        lambda tokens, length: encode_until_end(transformer, tokens["input_ids"], length=length),
        text_end(transformer),
        recomputed=stack.grad_checkpointing,
    )


def _transformers_text(trunk: PooledText) -> TextPlaces:
    from transformers import CLIPTextModel, SiglipTextModel

    model: Any = trunk.model
    layers: tuple[nn.Module, ...] = ()
    if isinstance(model, CLIPTextModel | SiglipTextModel):
        layers = tuple(model.encoder.layers)

    def clip_end(ids: Tensor) -> Tensor:
        # transformers' own rule: an old configuration's 2 means the largest id.
        end = int(model.config.eos_token_id)
        return ids.argmax(dim=1) if end == 2 else torch.eq(ids, end).int().argmax(dim=1)

    pooled_at = clip_end if isinstance(model, CLIPTextModel) else None
    return TextPlaces(model.get_input_embeddings(), layers, lambda tokens, length: trunk(tokens), pooled_at)


def _encoder(trunk: HFTextTrunk) -> TextPlaces:
    encoder: Any = trunk.encoder
    embedding: nn.Module = encoder.get_input_embeddings()

    def run(tokens: Mapping[str, Tensor], length: int) -> Tensor:
        # The trunk sorts its rows by length: embedded here, each row takes its own context along.
        others = {name: value for name, value in tokens.items() if name != "input_ids"}
        out: Tensor = trunk({**others, "inputs_embeds": embedding(tokens["input_ids"])})
        return out

    return TextPlaces(embedding, (), run)
