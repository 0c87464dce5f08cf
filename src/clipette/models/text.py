"""Text trunks: Hugging Face encoders (whole or some of their layers), small transformers, tables of stored texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipette.errors import ConfigError

POOLINGS = ("mean", "cls")
# Texts of like length are encoded together: at most so many groups, and none of fewer rows than a matrix product likes.
GROUPS, GROUP_ROWS = 4, 32


def encode_by_length(encode: Callable[[Tensor, int], Tensor], lengths: Tensor) -> Tensor:
    """``encode(rows, length)`` over groups of rows of like length, put back in order: [B] lengths → [B, width].

    A batch of captions is as wide as its longest, which is two to three times its mean: most of a text tower's work is
    padding. ``encode`` must give each row the same vector at any ``length`` that holds it, whoever stands beside it.
    """
    groups = max(1, min(GROUPS, len(lengths) // GROUP_ROWS))
    longest = int(lengths.max()) if len(lengths) else 0
    if groups == 1:
        return encode(torch.arange(len(lengths), device=lengths.device), longest)
    order = lengths.argsort(stable=True)
    pieces = order.tensor_split(groups)
    # One look at the device for all groups; every group's last row is its longest.
    ends = lengths[torch.stack([rows[-1] for rows in pieces])].tolist()
    return torch.cat([encode(rows, int(end)) for rows, end in zip(pieces, ends, strict=True)])[order.argsort()]


class HFTextTrunk(nn.Module):
    """A BERT-like encoder and its pooling: tokens [B, L] → [B, hidden].

    ``mean`` averages the last hidden states over the attention mask (sentence-transformers' rule); ``cls`` takes the
    first token.
    """

    def __init__(self, encoder: nn.Module, pool: str) -> None:
        super().__init__()
        if pool not in POOLINGS:
            raise ConfigError(f"unknown text pooling '{pool}': choose one of {', '.join(POOLINGS)}")
        self.encoder = encoder
        self.pool = pool

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        mask = tokens["attention_mask"]
        lengths = mask.sum(dim=1)
        # Padding on the left would move with the width.
        if len(mask) == 0 or bool((mask[:, :1] == 0).any()):
            return self.pooled(tokens)
        return encode_by_length(
            lambda rows, length: self.pooled({name: value[rows, :length] for name, value in tokens.items()}), lengths
        )

    def pooled(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """All rows at the width of the batch: what ``forward`` does to each group."""
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        if self.pool == "cls":
            return hidden[:, 0]
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


def keep_layers(encoder: Any, layers: Sequence[int] | None) -> None:
    """Keep only these layers of a BERT-like encoder, in this order (weight inheritance by layer, as TinyCLIP's manual
    mode). ``None`` keeps all. Raises ``ConfigError`` on a layer that does not exist."""
    if layers is None:
        return
    try:
        stack = encoder.encoder.layer
    except AttributeError:
        kind = type(encoder).__name__
        raise ConfigError(
            f"text layers {list(layers)}: only BERT-like encoders have layers to choose from, not {kind}"
        ) from None
    wrong = [i for i in layers if not 0 <= i < len(stack)]
    if wrong or not layers:
        raise ConfigError(f"text layers {list(layers)} do not exist: the encoder has layers 0 to {len(stack) - 1}")
    encoder.encoder.layer = nn.ModuleList([stack[i] for i in layers])
    encoder.config.num_hidden_layers = len(layers)


def encoder_config_bytes(encoder: Any) -> bytes:
    """The encoder's configuration as JSON, for a blueprint's assets."""
    # Where it was loaded from is no part of what it is, and differs at every load.
    values = {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(values, sort_keys=True, default=str).encode()


def text_end(transformer: TextTransformer) -> Callable[[Tensor], Tensor] | None:
    """ids [B, L] → the place [B] whose state becomes the vector; None where the ids do not decide it."""
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "argmax": lambda ids: ids.argmax(dim=1),
        "eos": lambda ids: (ids == transformer.eos_id).int().argmax(dim=1),
    }
    # A class token (CoCa's) stands behind the text and is pooled whatever pool_type says.
    return pools.get(transformer.pool_type) if transformer.cls_emb is None else None


def reads_until_end(transformer: TextTransformer) -> bool:
    """Whether what stands behind a text's end cannot change its vector: a causal mask, and pooled at the end."""
    return text_end(transformer) is not None and transformer.attn_mask is not None and not transformer.use_pad_mask


def encode_until_end(transformer: TextTransformer, ids: Tensor, *, length: int | None = None) -> Tensor:
    """``transformer(ids)`` without the columns behind the texts' ends: [B, L] → [B, width].

    Under a causal mask what stands behind a text's end cannot change its vector, and captions of ten words in a context
    of 77 spend most of their time there. Texts of like length go together; with ``length`` all stay in their order,
    and no text is longer. Towers that are not causal, or pool elsewhere, see all columns.
    """
    ends = text_end(transformer)
    out: Tensor
    if ends is None or not reads_until_end(transformer):
        out = transformer(ids)
        return out

    def encode(rows: Tensor | slice, length: int) -> Tensor:
        mask = transformer.attn_mask[:length, :length]
        part: Tensor = torch.func.functional_call(transformer, {"attn_mask": mask}, (ids[rows, :length],))
        return part

    return encode(slice(None), length) if length is not None else encode_by_length(encode, ends(ids) + 1)


class SmallTextTrunk(nn.Module):
    """open_clip's causal text transformer, pooled at its end-of-text token: tokens [B, L] → [B, width]."""

    def __init__(
        self, *, vocabulary: int, context_length: int, width: int, layers: int, heads: int, eos_id: int, pad_id: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"text width {width} is not divisible by its {heads} heads")
        self.transformer = TextTransformer(
            context_length=context_length,
            vocab_size=vocabulary,
            width=width,
            heads=heads,
            layers=layers,
            output_dim=None,
            pool_type="eos",
            eos_id=eos_id,
            pad_id=pad_id,
            proj_type="none",
        )

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return encode_until_end(self.transformer, tokens["input_ids"])


class TableTextTrunk(nn.Module):
    """Stored text vectors by row: tokens [B, 1] → [B, D]. Not trained."""

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors.float())

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return self.vectors[tokens["row"][:, 0]]
