"""Convolutional towers that keep some channels inside their blocks: the same function, really smaller, built again."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from tests.export.kinds import student
from torch import Tensor, nn

from clipette.data.preprocess import Preprocess
from clipette.errors import ConfigError, ModelError
from clipette.evaluate.cost import tower_gmacs
from clipette.models.core import Blueprint, ImageTower
from clipette.models.heads import build_head
from clipette.models.inherit import inherit
from clipette.models.saved import load_model, save_model
from clipette.models.slim import Inner, open_inner, shape_channels, slim

SIDE = 32


def net(name: str, **values: Any) -> nn.Module:
    return timm.create_model(name, num_classes=0, **values)


SMALL = {"channels": (16, 16, 24, 24), "layers": (1, 2, 1, 1)}
TRUNKS: dict[str, tuple[Any, int]] = {
    # Name → (trunk, groups of inner channels).
    "mobilenet v2": (partial(net, "mobilenetv2_035", pad_type="same"), 16 + 2),
    "mobilenet v3": (partial(net, "mobilenetv3_small_050"), 10 + 1),
    "mobilenet v4": (partial(net, "mobilenetv4_conv_small_035"), 12),
    "efficientnet": (partial(net, "test_efficientnet"), 5),
    "resnet basic": (partial(net, "resnet18", **SMALL), 5),
    "resnet bottleneck": (partial(net, "resnet50", block_args={"attn_layer": "se"}, **SMALL), 10),
    "clip": (lambda: ModifiedResNet((1, 1, 1, 1), 24, 4, SIDE, 8), 8),
}


def tower_of(name: str, head: str = "residual") -> ImageTower:
    """A tower in float64 with statistics of its own; its blueprint is only looked at."""
    torch.manual_seed(0)
    trunk = TRUNKS[name][0]()
    preprocess = Preprocess((SIDE, SIDE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with torch.no_grad():
        width = trunk.eval()(torch.zeros(1, 3, SIDE, SIDE)).shape[1]
        for module in trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    assert value is not None
                    value.uniform_(0.5, 1.5)
                for value in (module.bias, module.running_mean):
                    assert value is not None
                    value.normal_(std=0.2)
    tower = ImageTower(
        trunk, build_head(head, width, 6, 10), preprocess=preprocess, width=6, blueprint=Blueprint("bare", {})
    )
    return tower.double().eval()


def seen(tower: ImageTower) -> Tensor:
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        out: Tensor = tower(pixels)
    return out


def every_other(groups: tuple[Inner, ...]) -> dict[str, Tensor]:
    return {inner.name: torch.arange(number % 2, inner.channels, 2) for number, inner in enumerate(groups)}


def silence(inner: Inner, kept: Tensor) -> None:
    """Take the readers' weights for all other channels away, and the eyes of squeeze-and-excitation from them."""
    gone = torch.ones(inner.channels, dtype=torch.bool)
    gone[kept] = False
    with torch.no_grad():
        for reader in inner.readers:
            reader.weight[:, gone] = 0
        for part in inner.between:
            maps = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
            if len(maps) > 1:
                maps[0].weight[:, gone] = 0


@pytest.mark.parametrize("name", TRUNKS)
def test_all_channels_are_the_same_tower(name: str) -> None:
    tower = tower_of(name)
    before, groups = seen(tower), open_inner(tower)
    assert len(groups) == TRUNKS[name][1]
    slim(tower, {inner.name: torch.arange(inner.channels) for inner in groups})
    torch.testing.assert_close(seen(tower), before, atol=0, rtol=0)


@pytest.mark.parametrize("name", TRUNKS)
def test_channels_that_nobody_reads_are_not_missed(name: str) -> None:
    tower = tower_of(name)
    groups = open_inner(tower)
    kept = every_other(groups)
    for inner in groups:
        silence(inner, kept[inner.name])
    before, size, cost = seen(tower), sum(p.numel() for p in tower.parameters()), tower_gmacs(tower.float())
    tower.double()
    slim(tower, kept)
    torch.testing.assert_close(seen(tower), before, atol=1e-9, rtol=1e-9)
    assert sum(p.numel() for p in tower.parameters()) < 0.9 * size
    assert tower_gmacs(tower.float()) < 0.95 * cost
    assert tower.blueprint.arguments["channels"] == {name: len(places) for name, places in kept.items()}
    # Once more, on the result: the inner blueprint stays the first, and names stay.
    again = open_inner(tower)
    assert [inner.name for inner in again] == [inner.name for inner in groups]
    slim(tower, {again[0].name: torch.arange(1)})
    assert tower.blueprint.arguments["inner"] == {"kind": "bare", "arguments": {}}
    assert tower.blueprint.arguments["channels"][again[0].name] == 1
    assert len(tower.blueprint.arguments["channels"]) == len(groups)


@pytest.mark.parametrize("head", ["linear", "mlp", "residual", "none"])
def test_the_heads_that_read_the_last_convolution(head: str) -> None:
    tower = tower_of("mobilenet v2")
    tower.head = build_head(head, 1280, 1280 if head == "none" else 6, 10).double()
    names = [inner.name for inner in open_inner(tower)]
    assert ("trunk.conv_head" in names) == (head != "none")


def test_frozen_weights_stay_frozen_and_gradients_flow() -> None:
    tower = tower_of("mobilenet v2").requires_grad_(False)
    tower.head.requires_grad_(True)
    slim(tower, every_other(open_inner(tower)))
    assert not any(p.requires_grad for p in tower.trunk.parameters())
    assert all(p.requires_grad for p in tower.head.parameters())
    tower.requires_grad_(True).train()
    tower(torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in tower.trunk.parameters())


def test_a_slim_model_is_saved_built_again_and_inherited(tmp_path: Path) -> None:
    model = student(image={"name": "mobilenetv3_small_050"})
    image = model.image_tower()
    slim(image, every_other(open_inner(image)))
    save_model(model, tmp_path / "m", name="slim")
    again = load_model(tmp_path / "m").model
    assert again.state_dict().keys() == model.state_dict().keys()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), atol=0, rtol=0)
    twin = copy.deepcopy(image)
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter)
    report = inherit(twin, image)
    assert report.cut == report.initialised == ()
    torch.testing.assert_close(twin.eval()(pixels), image(pixels), atol=0, rtol=0)
    text = (tmp_path / "m" / "model.json").read_text().replace('conv_pw": ', 'conv_pw": 99')
    (tmp_path / "m" / "model.json").write_text(text)
    with pytest.raises(ModelError, match="channels and cannot keep 99"):
        load_model(tmp_path / "m")


def test_what_is_not_there_is_refused_in_words() -> None:
    tower = tower_of("mobilenet v2")
    with pytest.raises(ModelError, match=r"no inner channels 'blocks': it has trunk\.conv_stem"):
        slim(tower, {"blocks": torch.arange(2)})
    with pytest.raises(ModelError, match=r"'trunk\.conv_stem' would be left without a channel"):
        slim(tower, {"trunk.conv_stem": torch.arange(0)})
    with pytest.raises(ModelError, match="no inner channels"):
        shape_channels(tower, {"trunk.conv_stm": 8})
    with pytest.raises(ModelError, match="cannot keep 0"):
        shape_channels(tower, {"trunk.conv_stem": 0})
    for other in (net("vit_tiny_patch16_224", img_size=SIDE, patch_size=8), net("resnext26ts")):
        tower.trunk = other
        with pytest.raises(ConfigError, match="has no blocks with channels of their own"):
            open_inner(tower)


def test_a_block_of_grouped_or_blurred_convolutions_is_left_out() -> None:
    tower = tower_of("resnet bottleneck")
    tower.trunk = net("resnet50", cardinality=2, base_width=32, **SMALL)
    # The grouped convolution mixes channels of its group, on both sides.
    with pytest.raises(ConfigError, match="has no blocks"):
        open_inner(tower)
    tower.trunk = net("resnet50", aa_layer=timm.layers.BlurPool2d, **SMALL)
    blurred = sum(isinstance(getattr(m, "aa", None), timm.layers.BlurPool2d) for m in tower.trunk.modules())
    assert blurred > 0
    assert len(open_inner(tower)) == 10 - blurred
