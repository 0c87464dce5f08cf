"""A student with learned visual tokens: built from a recipe, trained in its tokens and head alone, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipette.errors import ConfigError
from clipette.models.core import DualEncoder
from clipette.models.saved import load_model, save_model
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model

VIT = {
    "kind": "timm",
    "name": "vit_tiny_patch16_224",
    "args": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8},
    "size": 16,
    "prompts": {"count": 4, "depth": 2},
    "head": {"kind": "bn_mlp", "hidden": 12},
    "train": "head",
}


def build(**image: Any) -> DualEncoder:
    return build_model(ModelSpec.model_validate({"dim": 8, "image": {**VIT, **image}}), seed=3)


def test_only_the_tokens_and_the_head_learn() -> None:
    model = build()
    learning = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("image")}
    assert "image.trunk.trunk.prompts.tokens" in learning
    assert all(name.startswith(("image.head.", "image.trunk.trunk.prompts.")) for name in learning)
    model.encode_image(torch.randn(4, 3, 16, 16)).sum().backward()  # type: ignore[no-untyped-call]
    tokens = dict(model.named_parameters())["image.trunk.trunk.prompts.tokens"]
    assert tokens.shape == (2, 4, 16)
    assert tokens.grad is not None
    assert all(float(tokens.grad[layer].abs().max()) > 0 for layer in range(2))
    whole = build(train="all")
    assert all(p.requires_grad for p in whole.parameters())


def test_the_tokens_matter_and_are_saved_with_the_model(tmp_path: Path) -> None:
    model, other = build().eval(), build(prompts={"count": 4, "depth": 2, "init": "vpt"}).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    said = model.encode_image(pixels)
    assert not torch.allclose(said, other.encode_image(pixels))
    save_model(model, tmp_path / "m", name="prompted")
    again = load_model(tmp_path / "m").model.eval()
    torch.testing.assert_close(again.encode_image(pixels), said, atol=0, rtol=0)


def test_more_layers_than_there_are_means_all_of_them() -> None:
    tokens = dict(build(prompts={"count": 1, "depth": 99}).named_parameters())["image.trunk.trunk.prompts.tokens"]
    assert tokens.shape == (3, 1, 16)


def test_what_has_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens"):
        build(name="test_resnet", args={}, size=32)
    text = {"kind": "open_clip", "name": "ViT-B-32", "prompts": {"count": 2}}
    with pytest.raises(ConfigError, match="put prompts under image"):
        build_model(ModelSpec.model_validate({"dim": 512, "image": VIT, "text": text}))
