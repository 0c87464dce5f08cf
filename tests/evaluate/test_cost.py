"""Costs against hand counts: GMACs of towers, attention included, bytes, and times that take turns."""

from __future__ import annotations

import math

import pytest
import torch
from tests.evaluate.fakes import classified, encoder_of
from tests.train.tiny import student
from torch import nn

from clipette.evaluate.cost import Timing, count_gmacs, measure_costs, ratios, text_tokens, tower_gmacs
from clipette.models.inference import TorchEncoder
from clipette.models.saved import state_bytes
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model

QUICK = Timing(warmup=1, repeats=2, batch_size=2, max_seconds=1.0)


def test_convolution_and_linear_are_counted_as_multiply_adds() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    counted = count_gmacs(lambda: layers(torch.zeros(1, 3, 10, 10)))
    assert counted * 1e9 == pytest.approx(8 * 3 * 9 * 100 + 8 * 5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_is_counted_also_where_torch_would_fuse_it(norm_first: bool) -> None:
    width, length, hidden = 16, 7, 32
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True, norm_first=norm_first).eval()
    counted = count_gmacs(lambda: layer(torch.zeros(1, length, width)))
    projections = 4 * length * width * width
    attention = 2 * length * length * width
    assert counted * 1e9 == pytest.approx(projections + attention + 2 * length * width * hidden)
    assert torch.backends.mha.get_fastpath_enabled(), "left as it was"


def test_vit_b_32_has_the_published_cost() -> None:
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-32")).eval()
        image = count_gmacs(lambda: model.encode_image(torch.zeros(1, 3, 224, 224)))
        text = count_gmacs(lambda: model.encode_text(torch.zeros(1, 77, dtype=torch.long)))
    # open_clip's model profile: 4.41 and 2.98 GMACs (at 77 tokens).
    assert image == pytest.approx(4.41, abs=0.06)
    assert text == pytest.approx(2.98, abs=0.06)


def test_text_is_32_tokens_with_the_end_kept() -> None:
    tower = student(text={"kind": "small", "width": 16, "layers": 1, "heads": 2, "context_length": 48}).text_tower()
    tokens = text_tokens(tower)
    assert {values.shape for values in tokens.values()} == {(1, 32)}
    assert int(tokens["input_ids"][0, -1]) == 49407
    # One layer of width 16: four projections and a feed-forward of 4 × 16 by token, the attention over 32, the head.
    assert tower_gmacs(tower) * 1e9 == pytest.approx(32 * (4 + 8) * 16 * 16 + 2 * 32 * 32 * 16 + 16 * 16)
    assert tower(text_tokens(tower, length=48)).shape == (1, 16), "its mask is as it was"
    short = student(text={"kind": "small", "width": 16, "layers": 1, "heads": 2, "context_length": 20}).text_tower()
    assert text_tokens(short)["input_ids"].shape == (1, 20)


def test_measured_costs() -> None:
    model = student()
    model.train()
    cost, other, stored = measure_costs(
        [TorchEncoder(model, name="a", device="cpu"), TorchEncoder(student(dim=24), name="b", device="cpu"),
         encoder_of(classified())],
        QUICK,
    )  # fmt: skip
    assert stored is None
    assert cost is not None
    assert other is not None
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.bytes <= len(state_bytes(model.state_dict())) < cost.bytes + 20_000
    assert cost.image is not None
    assert cost.image.input == "32 × 32 pixels"
    assert cost.image.gmacs == tower_gmacs(model.image_tower())
    assert cost.image.ms > 0
    assert cost.text.per_second > 0
    found = ratios(cost, other)
    assert found["compression"] == pytest.approx(cost.params / other.params)
    assert found["image_speedup"] == pytest.approx(cost.image.ms / other.image.ms)
    assert found["text_throughput"] == pytest.approx(other.text.per_second / cost.text.per_second)
    assert all(math.isfinite(value) for value in found.values())


def test_counts_alone_need_no_timing() -> None:
    (cost,) = measure_costs([TorchEncoder(student(), name="a", device="cpu")], None)
    assert cost.flat()["image_ms"] is None
    assert ratios(cost, cost)["image_speedup"] is None
    assert ratios(cost, cost)["gmacs"] == 1.0


def test_a_latent_query_is_counted_and_the_parameters_ask_for_gradients_again() -> None:
    """SigLIP's pooling by a learned query: a view of a parameter enters a module."""
    vit = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 16, "global_pool": "map"}
    image = {"kind": "timm", "name": "vit_tiny_patch16_224", "args": vit, "size": 32, "head": {"kind": "linear"}}
    tower = build_model(ModelSpec.model_validate({"dim": 8, "image": image})).image_tower()
    assert tower_gmacs(tower) > 0
    assert all(parameter.requires_grad for parameter in tower.parameters())
