"""Pairs of a larger and a smaller model of one family, small and random: what weight inheritance is tested on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models.efficientnet import _gen_test_efficientnet
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from clipette.models.text import SmallTextTrunk

Build = Callable[..., nn.Module]


def vit(width: int, depth: int, size: int = 32, **values: Any) -> nn.Module:
    values = {"patch_size": 8, "num_heads": width // 8, **values}
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=size, embed_dim=width, depth=depth, num_classes=0, **values
    )


def resnet(name: str, channels: int, layers: tuple[int, ...], **values: Any) -> nn.Module:
    widths = (channels, channels, 2 * channels, 2 * channels)
    return timm.create_model(name, num_classes=0, channels=widths, layers=layers, **values)


def clip_image(width: int, layers: int, space: int = 12, size: int = 16) -> nn.Module:
    return VisionTransformer(size, 8, width, layers, width // 8, 2.0, ls_init_value=0.1, output_dim=space)


def clip_text(width: int, layers: int, space: int | None = 12, **values: Any) -> nn.Module:
    values = {"context_length": 10, "pool_type": "eos", **values}
    kind = "linear" if space else "none"
    return TextTransformer(
        vocab_size=40, width=width, heads=width // 8, layers=layers, output_dim=space, proj_type=kind, **values
    )


def small_text(width: int, layers: int, context_length: int = 10) -> nn.Module:
    values = {"context_length": context_length, "heads": width // 8, "eos_id": 2, "pad_id": 0}
    return SmallTextTrunk(vocabulary=40, width=width, layers=layers, **values)


def bert(width: int, layers: int, **values: Any) -> nn.Module:
    sizes = {"num_attention_heads": width // 8, "intermediate_size": 2 * width, "max_position_embeddings": 16}
    values = {"vocab_size": 40, "num_hidden_layers": layers, **sizes, **values}
    return BertModel(BertConfig(hidden_size=width, **values), add_pooling_layer=False)


def net(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=0)


# Name → a larger and a smaller model.
SE = {"block_args": {"attn_layer": "se"}}
FAMILIES: dict[str, tuple[Build, Build]] = {
    "timm vit": (partial(vit, 32, 4), partial(vit, 16, 2)),
    "timm vit, attention pool": (
        partial(vit, 32, 3, global_pool="map", class_token=False, reg_tokens=2),
        partial(vit, 16, 2, global_pool="map", class_token=False, reg_tokens=2),
    ),
    "timm vit, gated": (
        partial(vit, 32, 2, mlp_layer=timm.layers.GluMlp, init_values=0.1, qk_norm=True),
        partial(vit, 16, 2, mlp_layer=timm.layers.GluMlp, init_values=0.1, qk_norm=True),
    ),
    "resnet basic": (partial(resnet, "resnet18", 12, (3, 2, 1, 2)), partial(resnet, "resnet18", 8, (2, 1, 1, 2))),
    "resnet bottleneck": (
        partial(resnet, "resnet50", 12, (1, 3, 1, 2), **SE),
        partial(resnet, "resnet50", 8, (1, 2, 1, 1), **SE),
    ),
    "resnext": (
        partial(resnet, "resnet50", 16, (1, 2, 1, 1), cardinality=4, base_width=16),
        partial(resnet, "resnet50", 16, (1, 2, 1, 1), cardinality=2, base_width=16),
    ),
    "deep stem": (partial(net, "test_resnet"), partial(resnet, "test_resnet", 16, (1, 1, 1, 1), stem_width=8)),
    "mobilenet v2": (partial(net, "mobilenetv2_050"), partial(net, "mobilenetv2_035")),
    "mobilenet v3": (partial(net, "mobilenetv3_small_100"), partial(net, "mobilenetv3_small_075")),
    "mobilenet v4": (partial(net, "mobilenetv4_conv_small_050"), partial(net, "mobilenetv4_conv_small_035")),
    "efficientnet": (
        partial(_gen_test_efficientnet, "test_efficientnet", 2.0, num_classes=0),
        partial(_gen_test_efficientnet, "test_efficientnet", num_classes=0),
    ),
    "open_clip image": (partial(clip_image, 32, 3), partial(clip_image, 16, 2, 8)),
    "open_clip text": (partial(clip_text, 32, 3), partial(clip_text, 16, 2, 8)),
    "small text": (partial(small_text, 32, 3), partial(small_text, 16, 2, 8)),
    "bert": (partial(bert, 32, 4), partial(bert, 16, 2)),
}
TRANSFORMERS = [name for name in FAMILIES if any(kind in name for kind in ("vit", "open_clip", "small", "bert"))]


def random(build: Build, seed: int = 0) -> Any:
    """A model in double precision, every tensor of it random: running statistics, norms and scales too."""
    torch.manual_seed(seed)
    model = build().double().eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.is_floating_point():
            value.normal_(0, 1.0 if value.ndim < 2 else 0.5 / value[0].numel() ** 0.5)
    return model


def run(model: Any) -> Tensor:
    torch.manual_seed(9)
    pixels, ids = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randint(3, 40, (3, 8))
    ids[:, -1] = 2
    with torch.no_grad():
        if isinstance(model, BertModel):
            return model(input_ids=ids).last_hidden_state
        if isinstance(model, SmallTextTrunk):
            return model({"input_ids": ids})
        if isinstance(model, TextTransformer):
            return model(torch.nn.functional.pad(ids, (0, model.context_length - 8)))
        return model(pixels[:, :, :16, :16] if isinstance(model, VisionTransformer) else pixels)


def names_of(module: nn.Module) -> set[str]:
    return set(module.state_dict())
