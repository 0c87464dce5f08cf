"""Towers that keep some heads and hidden units: the same function, really smaller, saved and built again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.models import inherit_models as models
from tests.models.encoders import write_bert
from tests.train import tiny
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import ConfigError, ModelError
from clipette.models.core import Blueprint, ImageTower, TextTower
from clipette.models.pruned import Kept, Layer, open_layers, prune, shape_as
from clipette.models.saved import load_model, save_model

VIT = {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32, "head": {"kind": "linear"}}
ARGS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}
TOWERS = {
    "timm": models.FAMILIES["timm vit"][1],
    "timm, norms of q and k, scales": partial(models.vit, 32, 2, qk_norm=True, init_values=0.1),
    "timm, attention pool": models.FAMILIES["timm vit, attention pool"][0],
    "timm, post norm": partial(models.vit, 32, 2, block_fn=timm.models.vision_transformer.ResPostBlock),
    "open_clip image": models.FAMILIES["open_clip image"][0],
    "open_clip text": models.FAMILIES["open_clip text"][0],
    "open_clip text, not causal": partial(models.clip_text, 32, 2, no_causal_mask=True),
    "small text": models.FAMILIES["small text"][0],
}


def tower_of(trunk: nn.Module) -> Any:
    """A tower around a bare trunk; its blueprint is only looked at."""
    blueprint = Blueprint("bare", {})
    if isinstance(trunk, models.SmallTextTrunk | models.TextTransformer):
        return TextTower(trunk, nn.Identity(), tokenizer=None, width=1, blueprint=blueprint)  # type: ignore[arg-type]
    preprocess = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ImageTower(trunk, nn.Identity(), preprocess=preprocess, width=1, blueprint=blueprint)


def some(layer: Layer, seed: int) -> Kept:
    """Every other head and hidden unit, with gates."""
    draw = torch.Generator().manual_seed(seed)
    heads, hidden = torch.arange(seed % 2, layer.heads, 2), torch.arange(1, layer.hidden, 2)
    gates = [torch.rand(len(units), generator=draw, dtype=torch.float64) for units in (heads, hidden)]
    return Kept(heads, hidden, *gates)


def gated(trunk: nn.Module, layers: tuple[Layer, ...], kept: list[Kept]) -> Tensor:
    """What the whole trunk says with the gates where they belong, by hooks."""
    handles = []
    for layer, each in zip(layers, kept, strict=True):
        heads, hidden = torch.zeros(layer.heads).double(), torch.zeros(layer.hidden).double()
        assert each.head_gates is not None
        assert each.hidden_gates is not None
        heads[each.heads], hidden[each.hidden] = each.head_gates, each.hidden_gates
        channels = heads.repeat_interleave(layer.attention.head_width)
        for linear, gates in ((layer.attention.proj, channels), (layer.down, hidden)):
            handles.append(linear.register_forward_pre_hook(lambda m, args, gates=gates: (args[0] * gates,)))
    out = models.run(trunk)
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("name", TOWERS)
def test_our_attention_in_its_place_computes_the_same(name: str) -> None:
    trunk = models.random(TOWERS[name])
    before, parameters = models.run(trunk), {id(p) for p in trunk.parameters()}
    layers = open_layers(tower_of(trunk))
    torch.testing.assert_close(models.run(trunk), before, atol=1e-9, rtol=1e-9)
    assert {id(p) for p in trunk.parameters()} == parameters
    # Opened again, all is as it was.
    assert open_layers(tower_of(trunk)) == layers


@pytest.mark.parametrize("name", TOWERS)
def test_a_pruned_tower_computes_what_the_gated_one_did(name: str) -> None:
    trunk = models.random(TOWERS[name])
    tower = tower_of(trunk)
    layers = open_layers(tower)
    kept = [some(layer, seed) for seed, layer in enumerate(layers)]
    wanted, size = gated(trunk, layers, kept), sum(p.numel() for p in trunk.parameters())
    gone = sum(
        (layer.heads - len(each.heads)) * layer.head_parameters
        + (layer.hidden - len(each.hidden)) * layer.unit_parameters
        for layer, each in zip(layers, kept, strict=True)
    )
    prune(tower, kept)
    torch.testing.assert_close(models.run(trunk), wanted, atol=1e-9, rtol=1e-9)
    assert sum(p.numel() for p in trunk.parameters()) == size - gone
    assert gone > 0
    sizes = tower.blueprint.arguments
    assert sizes["heads"] == [len(each.heads) for each in kept]
    assert sizes["hidden"] == [len(each.hidden) for each in kept]
    # Once more, on the result: the inner blueprint stays the first.
    prune(tower, [some(layer, 0) for layer in open_layers(tower)])
    assert tower.blueprint.arguments["inner"] == {"kind": "bare", "arguments": {}}


def test_frozen_weights_stay_frozen() -> None:
    trunk = models.random(TOWERS["timm"]).requires_grad_(False)
    tower = tower_of(trunk)
    prune(tower, [some(layer, 0) for layer in open_layers(tower)])
    assert not any(p.requires_grad for p in trunk.parameters())


@pytest.mark.parametrize("side", ["image", "text", "both"])
def test_a_pruned_model_is_saved_and_built_again(tmp_path: Path, side: str) -> None:
    model = tiny.student(image={**VIT, "args": ARGS}).double().eval()
    for each in [model.image, model.text] if side == "both" else [getattr(model, side)]:
        prune(each, [some(layer, number) for number, layer in enumerate(open_layers(each))])
    model = model.float()
    save_model(model, tmp_path / "m", name="pruned")
    again = load_model(tmp_path / "m").model
    assert again.state_dict().keys() == model.state_dict().keys()
    pixels, ids = torch.randn(2, 3, 32, 32), {"input_ids": torch.tensor([[1, 5, 6, 2], [1, 4, 2, 0]])}
    torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), atol=0, rtol=0)
    torch.testing.assert_close(again.encode_text(ids), model.encode_text(ids), atol=0, rtol=0)
    text = (tmp_path / "m" / "model.json").read_text().replace('"hidden": [', '"hidden": [9999, ')
    (tmp_path / "m" / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"a tower of . layers cannot take the heads"):
        load_model(tmp_path / "m")


def test_a_tower_takes_no_sizes_that_it_has_not() -> None:
    tower = tower_of(models.random(TOWERS["timm"]))
    for heads, hidden in (([1], [1]), ([9, 1], [1, 1]), ([1, 1], [1, 0])):
        with pytest.raises(ModelError, match="a tower of 2 layers cannot take"):
            shape_as(tower, heads, hidden)
    with pytest.raises(ModelError, match="has 2 layers, but what is kept is said of 1"):
        prune(tower, [some(open_layers(tower)[0], 0)])


REFUSED = {
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=0), "a ResNet, is none of them"),
    "gated mlp": (models.FAMILIES["timm vit, gated"][1], "GluMlp"),
    "norm over heads": (partial(models.vit, 16, 1, scale_attn_norm=True), "do not know how to prune"),
    "parallel": (
        partial(models.vit, 16, 1, block_fn=timm.models.vision_transformer.ParallelScalingBlock),
        "ParallelScalingBlock",
    ),
    "custom open_clip": (partial(models.clip_text, 16, 1, scale_heads=True), "CustomResidualAttentionBlock"),
    "CoCa": (partial(models.clip_text, 16, 1, embed_cls=True), "an attention mask for each head"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_cannot_prune_is_refused_in_words_and_left_alone(name: str) -> None:
    build, words = REFUSED[name]
    trunk = build()
    names = list(trunk.state_dict())
    with pytest.raises(ConfigError, match=words):
        open_layers(tower_of(trunk))
    assert list(trunk.state_dict()) == names


def test_checkpointed_layers_and_bert_are_refused(tmp_path: Path) -> None:
    trunk: Any = TOWERS["timm"]()
    trunk.set_grad_checkpointing(True)
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        open_layers(tower_of(trunk))
    text = {"kind": "hf", "path": str(write_bert(tmp_path / "bert")), "context_length": 16}
    with pytest.raises(ConfigError, match=r"this text tower, a HFTextTrunk, is none of them: leave text out"):
        open_layers(tiny.student(text=text).text_tower())
