"""Visual prompts against plain twins: each family's own parts run one by one, with the tokens put in by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from tests.models.prompt_towers import IMAGES, LAYERS, SIZE, WIDTH, hooks_of, image_tower, open_clip_vit, timm_vit
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.models.anatomy import layers_of, patch_size, token_width
from clipette.models.core import ImageTower, set_trainable
from clipette.models.inject import visual_prompts
from clipette.models.prompts import DeepPrompts


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(depth: int, count: int, seed: int = 2) -> Tensor:
    return torch.randn(depth, count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def beside(x: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([x, torch.stack([prompt] * len(x))], dim=1)


def through(x: Tensor, prompts: Tensor, before: Any, layers: Any) -> tuple[Tensor, int]:
    """Embedded tokens through norm and layers with prompts behind them: all tokens, and how many are the image's."""
    own = x.shape[1]
    x = before(beside(x, prompts[0]))
    for i, layer in enumerate(layers):
        if 0 < i < len(prompts):
            x = beside(x[:, :own], prompts[i])
        x = layer(x)
    return x, own


def timm_twin(vit: Any, image: Tensor, prompts: Tensor) -> Tensor:
    x, own = through(vit._pos_embed(vit.patch_embed(image)), prompts, vit.norm_pre, vit.blocks)
    x = vit.norm(x)
    patches = x[:, vit.num_prefix_tokens : own]
    if vit.global_pool == "token":
        return vit.fc_norm(x[:, 0])
    pooled = vit.attn_pool(patches) if vit.global_pool == "map" else patches.mean(dim=1)
    return vit.fc_norm(pooled)


def open_clip_twin(vit: Any, image: Tensor, prompts: Tensor) -> Tensor:
    x = vit.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([torch.stack([vit.class_embedding[None]] * len(x)), x], dim=1) + vit.positional_embedding
    x, own = through(x, prompts, vit.ln_pre, vit.transformer.resblocks)
    if vit.attn_pool is not None:
        pooled = vit.ln_post(vit.attn_pool(x[:, :own]))[:, 0]
    elif vit.pool_type == "avg":
        pooled = vit.ln_post(x[:, 1:own].mean(dim=1))
    else:
        pooled = vit.ln_post(x)[:, 0]
    return pooled @ vit.proj


def twin(trunk: Any, image: Tensor, prompts: Tensor) -> Tensor:
    from transformers import CLIPVisionModel

    if isinstance(trunk, ImageTower):
        return trunk.head(twin(trunk.trunk, image, prompts))
    if isinstance(trunk, timm.models.VisionTransformer):
        return timm_twin(trunk, image, prompts)
    if hasattr(trunk, "transformer"):
        return open_clip_twin(trunk, image, prompts)
    if hasattr(trunk, "trunk"):
        return trunk.head(timm_twin(trunk.trunk, image, prompts))
    model = trunk.model
    layers = [lambda x, layer=layer: layer(x, None) for layer in model.encoder.layers]
    if isinstance(model, CLIPVisionModel):
        x, _ = through(model.embeddings(image), prompts, model.pre_layrnorm, layers)
        return model.post_layernorm(x[:, 0])
    x, own = through(model.embeddings(image), prompts, nn.Identity(), layers)
    return model.head(model.post_layernorm(x)[:, :own])


@pytest.mark.parametrize("name", IMAGES)
def test_prompted_towers_equal_their_twins(name: str) -> None:
    tower = IMAGES[name]()
    assert (token_width(tower), len(layers_of(tower)), patch_size(tower)) == (WIDTH, LAYERS, (16, 16))
    image = pixels()
    plain = tower(image)
    for depth in (1, 2, LAYERS):
        prompts = tokens(depth, 4)
        with visual_prompts(tower, prompts):
            found = tower(image)
        torch.testing.assert_close(found, twin(tower, image, prompts), rtol=1e-10, atol=1e-10)
        assert (found - plain).abs().max() > 1e-3
    assert hooks_of(tower) == 0
    assert torch.equal(tower(image), plain)


@pytest.mark.parametrize("name", IMAGES)
def test_no_tokens_change_nothing(name: str) -> None:
    tower = IMAGES[name]()
    for depth in (1, LAYERS):
        with visual_prompts(tower, tokens(depth, 0)):
            prompted = tower(pixels())
        assert torch.equal(prompted, tower(pixels()))


@pytest.mark.parametrize("name", IMAGES)
def test_gradients_are_finite_differences_and_reach_every_layer(name: str) -> None:
    tower = IMAGES[name]()
    set_trainable(tower, False)
    prompts = tokens(LAYERS, 2).requires_grad_()
    image, step = pixels(), 1e-6

    def loss(values: Tensor) -> Tensor:
        with visual_prompts(tower, values):
            return tower(image).sin().sum()

    (found,) = torch.autograd.grad(loss(prompts), prompts)
    assert (found.flatten(1).abs().amax(dim=1) > 1e-6).all()
    for entry in ((0, 0, 3), (1, 1, 5), (LAYERS - 1, 0, 7)):
        ahead, behind = prompts.detach().clone(), prompts.detach().clone()
        ahead[entry] += step
        behind[entry] -= step
        expected = (loss(ahead) - loss(behind)) / (2 * step)
        torch.testing.assert_close(found[entry], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["timm average", "open_clip class token", "transformers siglip"])
def test_nested_prompts_stand_side_by_side(name: str) -> None:
    tower = IMAGES[name]()
    one, two, image = tokens(2, 3), tokens(2, 2, seed=5), pixels()
    with visual_prompts(tower, one):
        alone = tower(image)
        with visual_prompts(tower, two):
            both = tower(image)
        after = tower(image)
    torch.testing.assert_close(both, twin(tower, image, torch.cat([one, two], dim=1)), rtol=1e-10, atol=1e-10)
    assert torch.equal(alone, after)
    # Of different depth: to attention the order is nothing, and each renews its own.
    deeper, found = tokens(3, 2, seed=5), []
    for outer, inner in ((one, deeper), (deeper, one)):
        with visual_prompts(tower, outer), visual_prompts(tower, inner):
            found.append(tower(image))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    assert (found[0] - both).abs().max() > 1e-4


def test_a_pass_of_another_size_finds_its_own_places() -> None:
    tower = IMAGES["timm any size"]()
    prompts, large = tokens(2, 3), torch.randn(1, 3, 48, 32, dtype=torch.float64)
    with visual_prompts(tower, prompts):
        found = [tower(pixels()), tower(large), tower(pixels())]
    torch.testing.assert_close(found[1], twin(tower, large, prompts), rtol=1e-10, atol=1e-10)
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["timm class token", "open_clip class token", "transformers clip"])
def test_nothing_stays_behind_an_exception(name: str) -> None:
    tower = IMAGES[name]()
    before, state = tower(pixels()), copy.deepcopy(tower.state_dict())

    def fails() -> None:
        with visual_prompts(tower, tokens(2, 3)):
            tower(pixels())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with pytest.raises((RuntimeError, ValueError, AssertionError)), visual_prompts(tower, tokens(2, 3)):
        tower(pixels()[:, :2])
    assert hooks_of(tower) == 0
    assert torch.equal(tower(pixels()), before)
    assert all(torch.equal(value, state[key]) for key, value in tower.state_dict().items())


@pytest.mark.parametrize("name", IMAGES)
def test_any_batch_and_any_type(name: str) -> None:
    tower = IMAGES[name]().float()
    prompts, image = tokens(2, 3), pixels(5).float()
    with visual_prompts(tower, prompts), torch.no_grad():
        together = tower(image)
        assert together.dtype == torch.float32
        torch.testing.assert_close(torch.cat([tower(row[None]) for row in image]), together, rtol=1e-4, atol=1e-5)
    learned = prompts.float().requires_grad_()
    with visual_prompts(tower, learned), torch.autocast("cpu", torch.bfloat16):
        mixed = tower(image)
    mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), together, rtol=0.2, atol=0.2)
    assert learned.grad is not None
    assert (learned.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_transformers_checkpointing_recomputes_with_the_tokens() -> None:
    tower = IMAGES["transformers clip"]()
    set_trainable(tower, False)
    tower.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            tower.trunk.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[union-attr,operator]
        prompts = tokens(2, 3).requires_grad_()
        with visual_prompts(tower, prompts):
            out = tower(pixels())
        out.sin().sum().backward()
        gradients.append(prompts.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_refusals() -> None:
    tower = IMAGES["open_clip class token"]()
    shapes: list[tuple[Tensor, str]] = [
        (tokens(1, 2)[0], r"\[depth, count, width\] with depth >= 1, got \[2, 16\]"),
        (tokens(0, 2), r"depth >= 1, got \[0, 2, 16\]"),
        (tokens(1, 2)[..., :8], "the visual prompts are 8 wide, the tower's tokens 16"),
        (tokens(4, 2), "visual prompts for 4 layers, but the image tower has 3"),
    ]
    for prompts, message in shapes:
        with pytest.raises(ConfigError, match=message), visual_prompts(tower, prompts):
            pass
    assert hooks_of(tower) == 0
    for name in ("test_resnet", "test_convnext"):
        convolution = image_tower(timm.create_model(name, num_classes=0))
        with pytest.raises(ConfigError, match="has no tokens that we know to prompt"):
            layers_of(convolution)
    for vit in (timm_vit(), open_clip_vit()):
        vit.set_grad_checkpointing(True)
        with pytest.raises(ConfigError, match="gradient checkpointing"), visual_prompts(image_tower(vit), tokens(1, 2)):
            pass


def test_initial_values() -> None:
    normal = DeepPrompts(3, 50, 64, seed=1)()
    value = normal.detach()
    assert normal.shape == (3, 50, 64)
    assert isinstance(normal, nn.Parameter)
    assert 0.0195 < float(value.std()) < 0.0205
    assert torch.equal(normal, DeepPrompts(3, 50, 64, seed=1)())
    assert not torch.equal(normal, DeepPrompts(3, 50, 64, seed=2)())
    bound = math.sqrt(6 / (3 * 16 * 14 + 64))
    uniform = DeepPrompts(3, 50, 64, init="vpt", patch=(16, 14))().detach()
    assert 0.99 * bound < float(uniform.max()) <= bound
    assert -bound <= float(uniform.min()) < -0.99 * bound
    first = torch.randn(50, 64)
    begun = DeepPrompts(3, 50, 64, seed=1, first=first)()
    assert torch.equal(begun[0], first)
    assert torch.equal(begun[1:], normal[1:])


def test_refused_initial_values() -> None:
    with pytest.raises(ConfigError, match="depth >= 1"):
        DeepPrompts(0, 2, 8)
    with pytest.raises(ConfigError, match="give patch, from patch_size"):
        DeepPrompts(1, 2, 8, init="vpt")
    with pytest.raises(ConfigError, match="unknown init 'zeros' of prompts: choose normal or vpt"):
        DeepPrompts(1, 2, 8, init="zeros")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"prompts are \[2, 8\], but their initial value is \[3, 8\]"):
        DeepPrompts(1, 2, 8, first=torch.zeros(3, 8))
