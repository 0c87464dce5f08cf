"""Transformer towers with fewer heads and hidden units in each layer, as many as each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Attention, Block, ResPostBlock  # type: ignore[attr-defined]  # moves about
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from clipette.errors import ConfigError, ModelError
from clipette.models import slim
from clipette.models.core import Blueprint, ImageTower, TextTower

KINDS = ("pruned_image", "pruned_text")
KNOWN = "timm's VisionTransformer, open_clip's own VisionTransformer and TextTransformer, and small texts"


class SelfAttention(nn.Module):
    """Self-attention of any number of heads: x [B, N, W] → [B, N, W].

    heads · head_width need not be W: what timm's ``Attention`` and torch's ``nn.MultiheadAttention`` assume, in whose
    place it stands, with their weights. ``tupled``: answers as torch's does, (output, None).
    """

    def __init__(
        self,
        qkv: nn.Linear,
        proj: nn.Linear,
        *,
        heads: int,
        head_width: int,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        tupled: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.dropout, self.tupled = heads, head_width, dropout, tupled
        self.qkv = qkv
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_dropout)

    def forward(
        self,
        x: Tensor,
        *same: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> Any:
        """``same``: keys and values, which torch's attention is given apart; ``attn_mask`` [N, N], added or boolean."""
        rows, tokens, _ = x.shape
        parts = self.qkv(x).view(rows, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = self.q_norm(parts[0]), self.k_norm(parts[1]), parts[2]
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(q.dtype)
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=rate, is_causal=is_causal)
        out = self.proj_drop(self.proj(seen.transpose(1, 2).flatten(2)))
        return (out, None) if self.tupled else out


@dataclass(frozen=True)
class Layer:
    """One layer's prunable parts: heads, and the units between the MLP's first map ``up`` and its second ``down``."""

    attention: SelfAttention
    up: nn.Linear
    down: nn.Linear

    @property
    def heads(self) -> int:
        return self.attention.heads

    @property
    def hidden(self) -> int:
        return self.up.out_features

    @property
    def head_parameters(self) -> int:
        """How many parameters go with one head."""
        rows = _numel(self.attention.qkv.weight, self.attention.qkv.bias, self.attention.proj.weight)
        return rows // self.heads

    @property
    def unit_parameters(self) -> int:
        """How many parameters go with one hidden unit."""
        return _numel(self.up.weight, self.up.bias, self.down.weight) // self.hidden


@dataclass(frozen=True)
class Kept:
    """What one layer keeps: places of heads and hidden units, ascending, and the gates by which they are multiplied."""

    heads: Tensor
    hidden: Tensor
    head_gates: Tensor | None = None
    hidden_gates: Tensor | None = None


def open_layers(tower: ImageTower | TextTower) -> tuple[Layer, ...]:
    """The prunable layers of a transformer tower, first to last, in which ``SelfAttention`` now stands.

    The tower computes what it did, with the same parameters, though torch's attention names them otherwise
    (``in_proj_weight`` is ``qkv.weight`` now). Raises ``ConfigError``, in words and before anything is changed, for a
    tower that is no transformer that we know how to prune.
    """
    core = next((part for part in tower.modules() if isinstance(part, TimmViT | OpenClipViT | TextTransformer)), None)
    side = "image" if isinstance(tower, ImageTower) else "text"
    if core is None:
        raise ConfigError(
            f"masks prune the heads and hidden units of transformers ({KNOWN}); this {side} tower, a "
            f"{type(tower.trunk).__name__}, is none of them: leave {side} out of masks.towers"
        )
    blocks = _blocks(core, side)
    parts = [_parts(block, side) for block in blocks]
    for block, (attention, _, _) in zip(blocks, parts, strict=True):
        block.attn = attention
    return tuple(Layer(*each) for each in parts)


def _blocks(core: Any, side: str) -> list[Any]:
    if isinstance(core, TimmViT):
        recomputed, blocks = core.grad_checkpointing, list(core.blocks)
    else:
        recomputed, blocks = core.transformer.grad_checkpointing, list(core.transformer.resblocks)
        if not core.transformer.batch_first:
            raise ConfigError(f"masks: the {side} tower puts tokens before rows (batch_first: false): not supported")
    if recomputed:
        raise ConfigError(
            f"the {side} tower recomputes its layers in the backward pass (gradient checkpointing), where they would "
            "miss the masks: switch it off with set_grad_checkpointing(False)"
        )
    if isinstance(core, TextTransformer) and (core.use_pad_mask or core.cls_emb is not None):
        raise ConfigError(
            f"masks: the {side} tower has an attention mask for each head (CoCa's), which fewer heads would not fit: "
            f"leave {side} out of masks.towers"
        )
    return blocks


def _parts(block: Any, side: str) -> tuple[SelfAttention, nn.Linear, nn.Linear]:
    """The attention (ours already, or one that shares the weights of the block's) and the MLP's two maps."""
    if isinstance(block, ResidualAttentionBlock):
        attention = block.attn if isinstance(block.attn, SelfAttention) else _of_torch(block.attn)
        return attention, block.mlp.c_fc, block.mlp.c_proj
    timm = isinstance(block, Block | ResPostBlock)
    known = timm and type(block.mlp) is Mlp and type(block.attn) in (Attention, SelfAttention)
    # A norm over all heads or hidden units, or a gate beside them, would be another with fewer.
    if not known or _owners(block.attn) - {"qkv", "q_norm", "k_norm", "proj"} or _owners(block.mlp) - {"fc1", "fc2"}:
        inside = f" of {type(block.attn).__name__} and {type(block.mlp).__name__}" if timm else ""
        raise ConfigError(
            f"masks: the {side} tower's layers ({type(block).__name__}{inside}) have parts that we do not know how to "
            f"prune: leave {side} out of masks.towers"
        )
    attention = block.attn if isinstance(block.attn, SelfAttention) else _of_timm(block.attn)
    return attention, block.mlp.fc1, block.mlp.fc2


def _owners(module: nn.Module) -> set[str]:
    """The children of ``module`` that hold parameters."""
    return {name.partition(".")[0] for name, _ in module.named_parameters()}


def _of_timm(attention: Any) -> SelfAttention:
    return SelfAttention(
        attention.qkv,
        attention.proj,
        heads=attention.num_heads,
        head_width=attention.head_dim,
        q_norm=attention.q_norm,
        k_norm=attention.k_norm,
        dropout=attention.attn_drop.p,
        proj_dropout=attention.proj_drop.p,
    )


def _of_torch(attention: nn.MultiheadAttention) -> SelfAttention:
    width = attention.embed_dim
    # On "meta" nothing is drawn: the weights are the attention's own.
    qkv = nn.Linear(width, 3 * width, device="meta")
    qkv.weight, qkv.bias = attention.in_proj_weight, attention.in_proj_bias
    heads = attention.num_heads
    return SelfAttention(
        qkv, attention.out_proj, heads=heads, head_width=width // heads, dropout=attention.dropout, tupled=True
    )


def _numel(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)


def prune(tower: ImageTower | TextTower, kept: Sequence[Kept]) -> None:
    """Make ``tower`` smaller, in place: each layer keeps what ``kept`` says, and gates become part of the weights.

    W_proj and W_down lose the columns of what goes and have the others multiplied by their gates, so that the result
    computes what the whole tower did with those gates, 0 for what is gone. The blueprint builds the smaller tower.

    Raises ``ConfigError`` as ``open_layers``, and ``ModelError`` where ``kept`` is of another number of layers.
    """
    layers = open_layers(tower)
    if len(layers) != len(kept):
        raise ModelError(f"the tower has {len(layers)} layers, but what is kept is said of {len(kept)}")
    for layer, each in zip(layers, kept, strict=True):
        attention, width = layer.attention, layer.attention.head_width
        channels = (each.heads[:, None] * width + torch.arange(width, device=each.heads.device)).flatten()
        rows = torch.cat([channels + part * layer.heads * width for part in range(3)])
        gates = None if each.head_gates is None else each.head_gates.repeat_interleave(width)
        _cut(attention.qkv, rows=rows)
        _cut(attention.proj, columns=channels, gates=gates)
        attention.heads = len(each.heads)
        _cut(layer.up, rows=each.hidden)
        _cut(layer.down, columns=each.hidden, gates=each.hidden_gates)
    old = tower.blueprint
    inner = {"kind": old.kind, "arguments": dict(old.arguments)} if old.kind not in KINDS else old.arguments["inner"]
    sizes = {"heads": [layer.heads for layer in layers], "hidden": [layer.hidden for layer in layers]}
    kind = KINDS[0] if isinstance(tower, ImageTower) else KINDS[1]
    tower.blueprint = Blueprint(kind, {"inner": inner, **sizes}, old.assets)


def _cut(
    linear: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None, gates: Tensor | None = None
) -> None:
    """Keep some outputs (``rows``), or some inputs (``columns``), these multiplied by ``gates``."""
    weight, bias = linear.weight.detach(), linear.bias
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach()[rows.to(bias.device)].clone(), requires_grad=bias.requires_grad)
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    if gates is not None:
        weight = weight * gates.to(weight)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=linear.weight.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def shape_as(tower: ImageTower | TextTower, heads: Sequence[int], hidden: Sequence[int]) -> None:
    """Give ``tower`` the sizes of a pruned one, layer by layer; which weights it then holds means nothing.

    Raises ``ModelError`` where the tower is smaller, or has another number of layers.
    """
    layers = open_layers(tower)
    sizes = list(zip(heads, hidden, strict=False))
    fits = len(layers) == len(heads) == len(hidden) and all(
        1 <= wanted[0] <= layer.heads and 1 <= wanted[1] <= layer.hidden
        for layer, wanted in zip(layers, sizes, strict=True)
    )
    if not fits:
        raise ModelError(f"a tower of {len(layers)} layers cannot take the heads {heads} and hidden units {hidden}")
    prune(tower, [Kept(torch.arange(h), torch.arange(n)) for h, n in sizes])


def follow(tower: ImageTower | TextTower | None, saved: ImageTower | TextTower | None) -> None:
    """Give ``tower`` the sizes of ``saved`` where that was pruned, so that it can take its weights."""
    if tower is None or saved is None:
        return
    sizes = saved.blueprint.arguments
    if saved.blueprint.kind in KINDS:
        shape_as(tower, sizes["heads"], sizes["hidden"])
    elif saved.blueprint.kind == slim.KIND and isinstance(tower, ImageTower):
        slim.shape_channels(tower, sizes["channels"])
