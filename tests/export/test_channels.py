"""Which channels go: what they are worth against leaving them out, what they cost, and the start that comes of it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.export.kinds import student
from tests.export.pictures import captioned, noise
from tests.models.test_slim import SIDE, every_other, silence, tower_of
from torch import Tensor, nn

from clipette.errors import ConfigError
from clipette.evaluate.cost import tower_gmacs
from clipette.export.allocation import STEP, Macs, allocate
from clipette.export.channels import fewer_channels
from clipette.export.evidence import Order, gather, order_by_norm, order_of, refit, see_again
from clipette.export.prune import prune
from clipette.export.shrink import Shares
from clipette.models.core import ImageTower
from clipette.models.inference import TorchEncoder
from clipette.models.saved import load_model, save_model
from clipette.models.slim import open_inner, slim


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return images()


def images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(8, 3, SIDE, SIDE, generator=draw, dtype=torch.float64) for _ in range(3)]


def vectors(tower: ImageTower, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return F.normalize(torch.cat([tower(pixels) for pixels in batches]), dim=-1)


def narrow() -> ImageTower:
    """MobileNetV2 whose head reads two dozen channels: small enough for loops over all of them."""
    tower = tower_of("efficientnet", head="linear")
    slim(tower, {inner.name: torch.arange(min(12, inner.channels)) for inner in open_inner(tower)})
    # With other statistics than its own it would say the same of everything.
    see_again(tower, images())
    return tower


def test_a_channels_worth_is_what_its_small_absence_costs(batches: list[Tensor]) -> None:
    tower = narrow()
    batches = batches[:1]
    before, small = vectors(tower, batches), 1e-3
    evidence = gather(tower, batches, probes=100)
    inner = open_inner(tower)[2]
    mean = evidence[inner.name].mean.view(1, -1, 1, 1)
    for channel in range(3):
        gate = torch.ones(inner.channels, dtype=torch.float64)
        gate[channel] -= small
        hook = inner.readers[0].register_forward_pre_hook(
            lambda module, args, gate=gate: (mean + (args[0] - mean) * gate.view(1, -1, 1, 1),)
        )
        # 1 - cos of unit vectors, without its rounding.
        cost = (vectors(tower, batches) - before).square().sum(1).mean() / 2 / small**2
        hook.remove()
        assert float(evidence[inner.name].worth[channel]) == pytest.approx(float(cost), rel=0.3)


def test_evidence_leaves_the_tower_as_it_was(batches: list[Tensor]) -> None:
    tower = narrow()
    tower.head.requires_grad_(False)
    tower.trunk.train()
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    learning = [parameter.requires_grad for parameter in tower.parameters()]
    evidence = gather(tower, batches)
    assert [parameter.requires_grad for parameter in tower.parameters()] == learning
    assert tower.trunk.training
    assert not tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())
    # The same bits again.
    again = gather(tower, batches)
    assert all(torch.equal(each.worth, again[name].worth) for name, each in evidence.items())


def test_the_order_is_that_of_trying_each_in_turn(batches: list[Tensor]) -> None:
    tower = narrow()
    inner = open_inner(tower)[1]
    found = gather(tower, batches)[inner.name]
    order = order_of(inner, found)
    reader = inner.readers[0].weight.detach().flatten(1)
    count = inner.channels
    covariance = found.steady()

    def lost(gone: list[int]) -> float:
        """tr(W E Wᵀ M), E the covariance of what least squares cannot tell of the absent from the present."""
        there = [place for place in range(count) if place not in gone]
        known = torch.linalg.solve(covariance[there][:, there], covariance[there][:, gone])
        error = covariance[gone][:, gone] - covariance[gone][:, there] @ known
        weight = reader[:, gone]
        return float((weight @ error @ weight.T @ found.pull).trace())

    alone = sum(float(reader[:, c] @ found.pull @ reader[:, c]) * float(covariance[c, c]) for c in range(count))
    gone: list[int] = []
    total = 0.0
    for place, cost in zip(order.places.tolist()[:5], order.costs.tolist()[:5], strict=True):
        tries = {other: lost([*gone, other]) for other in range(count) if other not in gone}
        assert min(tries, key=tries.__getitem__) == place
        gone.append(place)
        total += cost
        assert total == pytest.approx(tries[place] * float(found.worth.sum()) / alone, rel=1e-6)


@pytest.mark.parametrize("name", ["mobilenet v2", "resnet basic", "efficientnet"])
def test_channels_that_nobody_reads_go_first(name: str, batches: list[Tensor]) -> None:
    tower = tower_of(name)
    groups = open_inner(tower)
    kept = every_other(groups)
    for inner in groups:
        silence(inner, kept[inner.name])
    evidence = gather(tower, batches[:1], probes=1)
    for inner in groups:
        for order in (order_of(inner, evidence[inner.name]), order_by_norm(inner)):
            first = order.places[: inner.channels - len(kept[inner.name])]
            assert not set(first.tolist()) & set(kept[inner.name].tolist())
            assert float(order.costs[: len(first)].sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("head", ["linear", "residual"])
def test_what_others_can_tell_is_not_missed(head: str, batches: list[Tensor]) -> None:
    tower = tower_of("efficientnet", head=head)
    for inner in open_inner(tower):
        # Channel 1 repeats channel 0: every map and statistic that it has is that of channel 0.
        for part in (inner.writer, *inner.between):
            for values in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if values.ndim:
                    values.data[1] = values.data[0]
            for module in list(part.modules())[1:]:
                if isinstance(module, nn.Conv2d) and module.out_channels == inner.channels:
                    module.weight.data[1] = module.weight.data[0]
                    assert module.bias is not None
                    module.bias.data[1] = module.bias.data[0]
                elif isinstance(module, nn.Conv2d):
                    # Squeeze-and-excitation must not look at what goes.
                    module.weight.data[:, 1] = 0
    see_again(tower, batches)
    before = vectors(tower, batches)
    # As if they had been seen often: few rows are not believed that channels foretell each other.
    evidence = {name: replace(each, rows=1e12) for name, each in gather(tower, batches, probes=1).items()}
    groups = open_inner(tower)
    kept = {inner.name: torch.tensor([c for c in range(inner.channels) if c != 1]) for inner in groups}
    bare = copy.deepcopy(tower)
    slim(bare, kept)
    for inner in groups:
        refit(inner, evidence[inner.name], kept[inner.name])
    slim(tower, kept)
    cosines = [float((vectors(each, batches) * before).sum(1).mean()) for each in (bare, tower)]
    assert cosines[1] > 0.999
    assert cosines[0] < 0.99


def test_biases_take_what_is_constant(batches: list[Tensor]) -> None:
    tower = tower_of("mobilenet v2", head="residual")
    inner = open_inner(tower)[-1]
    assert inner.name == "trunk.conv_head"
    norm = tower.trunk.bn2
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        # Half of the channels say the same of every image.
        norm.weight[::2], norm.bias[::2] = 0, 2.0
    before = vectors(tower, batches)
    kept = torch.arange(1, inner.channels, 2)
    refit(inner, gather(tower, batches, probes=1)[inner.name], kept)
    slim(tower, {inner.name: kept})
    torch.testing.assert_close(vectors(tower, batches), before, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["mobilenet v2", "mobilenet v3", "resnet bottleneck", "clip"])
def test_multiply_adds_are_foretold(name: str) -> None:
    tower = tower_of(name).float()
    groups = open_inner(tower)
    macs = Macs(tower, groups)
    kept = every_other(groups)
    assert macs(macs.whole) == pytest.approx(1e9 * tower_gmacs(tower), rel=1e-9)
    slim(tower, kept)
    foretold = macs({inner: len(places) for inner, places in kept.items()})
    assert foretold == pytest.approx(1e9 * tower_gmacs(tower), rel=1e-9)


def test_the_cheapest_losses_go_first_and_no_more_than_needed() -> None:
    tower = tower_of("mobilenet v2").float()
    groups = open_inner(tower)
    macs = Macs(tower, groups)
    flat = {g.name: Order(torch.arange(g.channels), torch.ones(g.channels).double()) for g in groups}
    target = 0.7 * macs(macs.whole)
    kept = allocate(flat, macs, target)
    counts = {**macs.whole, **{name: len(places) for name, places in kept.items()}}
    assert target - 0.02 * macs(macs.whole) < macs(counts) <= target
    assert all(count % STEP == 0 and count >= STEP for count in counts.values())
    assert all(places.tolist() == list(range(macs.whole[n] - len(places), macs.whole[n])) for n, places in kept.items())
    # What is dear stays whole, and what is free goes.
    name = next(iter(kept))
    dear = {**flat, name: Order(flat[name].places, 1e6 * flat[name].costs)}
    assert name not in allocate(dear, macs, target)
    free = {**flat, name: Order(flat[name].places, 0 * flat[name].costs)}
    assert len(allocate(free, macs, target)[name]) == STEP
    with pytest.raises(ConfigError, match=r"8 channels left in every block it still has 0\.\d+ of its"):
        allocate(flat, macs, 1e3)
    assert allocate(flat, macs, macs(macs.whole)) == {}


def test_norms_see_the_images_again(batches: list[Tensor]) -> None:
    tower = tower_of("efficientnet")
    norm = next(module for module in tower.modules() if isinstance(module, nn.BatchNorm2d))
    inputs: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    see_again(tower, batches)
    hook.remove()
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.cat(inputs).mean((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not norm.training


def test_a_mended_tower_is_nearer_than_one_cut_by_norm(batches: list[Tensor]) -> None:
    whole, batches = tower_of("mobilenet v2").float(), [pixels.float() for pixels in batches]
    see_again(whole, batches)
    before, cosines = vectors(whole, batches), []
    for given in (batches, []):
        tower = copy.deepcopy(whole)
        target = 0.75e9 * tower_gmacs(tower)
        found = fewer_channels(tower, target, given)
        assert found
        assert 0.95 * target < 1e9 * tower_gmacs(tower) <= target
        assert tower.blueprint.arguments["channels"] == found
        cosines.append(float((vectors(tower, batches) * before).sum(1).mean()))
    assert cosines[0] > cosines[1]


def test_a_start_at_another_size_is_a_student_to_distil(tmp_path: Path) -> None:
    from clipette import verbs

    reference = captioned(tmp_path, 12, noise(70, 80))
    whole = student(image={"name": "mobilenetv2_035", "size": 64})
    save_model(whole, tmp_path / "whole", name="whole")
    found = verbs.prune(
        str(tmp_path / "whole"), tmp_path / "start", macs=0.6, size=56, towers=("image",), data=reference, gate=False
    )
    assert found["setting"] == "macs 0.6, 56 px"
    start = load_model(tmp_path / "start").model
    assert start.image_tower().preprocess.size == (56, 56)
    assert 0.5 < tower_gmacs(start.image_tower()) / tower_gmacs(whole.image_tower()) <= 0.6
    written = json.loads((tmp_path / "start" / "prune.json").read_text())
    assert written["channels"] == start.image_tower().blueprint.arguments["channels"]
    run = verbs.distill(
        teacher=str(tmp_path / "whole"),
        student=str(tmp_path / "start"),
        data=reference,
        overrides=["train.epochs=1", "train.batch_size=6", "views.count=0"],
        out=tmp_path / "run",
        device="cpu",
    )
    distilled = load_model(run).model
    assert distilled.image_tower().preprocess.size == (56, 56)
    assert tower_gmacs(distilled.image_tower()) == tower_gmacs(start.image_tower())
    # Its texts stay the teacher's, as the recipe says: pruning left them alone.
    texts = [each.text_tower().state_dict() for each in (whole, distilled)]
    assert all(torch.equal(value, texts[1][name]) for name, value in texts[0].items())
    images = [Image.open(tmp_path / f"{number}.png") for number in range(4)]
    seen = [TorchEncoder(m, name="m", device="cpu").encode_images(images) for m in (start, distilled)]
    assert (seen[0] * seen[1]).sum(1).min() > 0.5
    assert not np.allclose(*seen)
    # The start again, smaller still, and whole at another size.
    for shares in (Shares(macs=0.7), Shares(size=48)):
        again = TorchEncoder(copy.deepcopy(start), name="m", device="cpu")
        prune(again, tmp_path / "again", shares=shares, data=None, gate=False, towers=("image",))
        assert tower_gmacs(load_model(tmp_path / "again").model.image_tower()) < tower_gmacs(start.image_tower())
    with pytest.raises(ConfigError, match="has no smaller sisters"):
        prune(again, tmp_path / "q", shares=Shares(width=0.5), data=None, gate=False, towers=("image",))


def test_what_has_no_such_channels_says_so(tmp_path: Path) -> None:
    vit = {"name": "vit_tiny_patch16_224", "args": {"embed_dim": 32, "depth": 1, "num_heads": 4, "patch_size": 8}}
    encoder = TorchEncoder(student(image=vit), name="m", device="cpu")
    with pytest.raises(ConfigError, match="a VisionTransformer has no blocks with channels of their own"):
        prune(encoder, tmp_path / "p", shares=Shares(macs=0.5), data=None, gate=False)
    with pytest.raises(ConfigError, match="macs: are the image tower's"):
        prune(encoder, tmp_path / "p", shares=Shares(macs=0.5), towers=("text",), data=None, gate=False)
    # A transformer at another size keeps its weights; its positions are interpolated.
    found = prune(encoder, tmp_path / "p", shares=Shares(size=64), data=None, gate=False)
    assert found.reports["image"].cut == ("trunk.pos_embed",)
