"""Weight inheritance: equal models when nothing is cut, and the right slices when something is."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import timm
import torch
from tests.models.inherit_models import (
    FAMILIES,
    TRANSFORMERS,
    bert,
    clip_image,
    names_of,
    net,
    random,
    resnet,
    run,
    vit,
)
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from clipette.models.inherit import inherit
from clipette.models.inherit_rules import spread

BY = [(family, "leading") for family in FAMILIES] + [(family, "norm") for family in TRANSFORMERS]


# ---------------------------------------------------------------- nothing cut, something cut


@pytest.mark.parametrize(("family", "by"), BY)
def test_with_nothing_removed_the_student_is_its_teacher(family: str, by: Any) -> None:
    teacher, student = random(FAMILIES[family][0], 1), random(FAMILIES[family][0], 2)
    assert not torch.equal(run(student), run(teacher))
    report = inherit(student, teacher, by=by)
    assert torch.equal(run(student), run(teacher))
    assert (set(report.whole), report.cut, report.initialised) == (names_of(student), (), ())
    assert report.notes == ()


@pytest.mark.parametrize(("family", "by"), BY)
def test_cut_models_run(family: str, by: Any) -> None:
    teacher, student = random(FAMILIES[family][0], 1), random(FAMILIES[family][1], 2)
    before = run(student)
    report = inherit(student, teacher, by=by)
    after = run(student)
    assert after.shape == before.shape
    assert bool(after.isfinite().all())
    assert not torch.equal(after, before)
    assert len(report.cut) > len(student.state_dict()) / 3
    assert {*report.whole, *report.cut} == names_of(student)
    assert str(report) == f"{len(report.whole)} tensors inherited whole, {len(report.cut)} cut, 0 left as initialised"


@pytest.mark.parametrize("family", ["convnext", "fastvit"])
def test_other_backbones_inherit_whole_or_fewer_layers(family: str) -> None:
    name = {"convnext": "test_convnext", "fastvit": "fastvit_t8"}[family]
    size = {"convnext": {"depths": (1, 1, 1, 1)}, "fastvit": {"layers": (1, 1, 1, 1)}}[family]
    more = {"convnext": {"depths": (1, 1, 3, 1)}, "fastvit": {"layers": (1, 1, 2, 1)}}[family]
    teacher = random(partial(timm.create_model, name, num_classes=0, **more), 1)
    student = random(partial(timm.create_model, name, num_classes=0, **size), 2)
    report = inherit(student, teacher)
    assert set(report.whole) == names_of(student)
    twin = random(partial(timm.create_model, name, num_classes=0, **more), 3)
    inherit(twin, teacher)
    assert torch.equal(run(twin), run(teacher))


# ---------------------------------------------------------------- what is removed had no effect


# Larger block → smaller block, by hand: of three blocks the first and the last are kept, of two the first.
MOVED = {
    "resnet basic": {"layer1.1.": "dead.", "layer1.2.": "layer1.1."},
    "resnet bottleneck": {"layer2.1.": "dead.", "layer2.2.": "layer2.1."},
}


def hide_in_convolutions(small: nn.Module, large: nn.Module, moved: dict[str, str]) -> None:
    """Make ``large`` compute what ``small`` does: further channels are zero, and whoever reads them may weigh them."""
    mine = small.state_dict()
    for name, value in large.state_dict().items():
        key = next((name.replace(place, other, 1) for place, other in moved.items() if name.startswith(place)), name)
        if key not in mine:
            # A block too many: its last norm is zero, so it adds nothing.
            if re.search(r"\.bn[23]\.(weight|bias)$", name):
                value.zero_()
            continue
        value.fill_(1.0 if name.endswith("running_var") else 0)
        if value.ndim == 4:
            value[: mine[key].shape[0], mine[key].shape[1] :].normal_()
        value[tuple(slice(0, n) for n in mine[key].shape)] = mine[key]


@pytest.mark.parametrize("family", [name for name in FAMILIES if "net" in name and "v4" not in name] + ["deep stem"])
def test_convolutions_without_their_dead_channels_and_blocks_are_the_same(family: str) -> None:
    small, large = random(FAMILIES[family][1], 1), random(FAMILIES[family][0], 2)
    hide_in_convolutions(small, large, MOVED.get(family, {}))
    expected = run(small)
    torch.testing.assert_close(run(large)[:, : expected.shape[1]], expected)
    student = random(FAMILIES[family][1], 3)
    report = inherit(student, large)
    assert report.notes == ()
    assert torch.equal(run(student), expected)


WRITES = re.compile(
    r"(.*(attn\.proj|attn_pool\.proj|out_proj|mlp\.fc2|c_proj|output\.dense|patch_embed\.proj)\.(weight|bias)|conv1\.weight)"
)
READS = re.compile(r".*(qkv|attn_pool\.q|kv|in_proj|fc1|c_fc|query|key|value|intermediate\.dense)[._](weight|bias)")
HALVES = {"qkv": 3, "in_proj": 3, "attn_pool.kv": 2}


def put(large: Tensor, small: Tensor) -> None:
    large.zero_()
    large[tuple(slice(0, n) for n in small.shape)] = small


def hide_in_transformer(small: nn.Module, large: nn.Module, layers: tuple[int, ...]) -> None:
    """Make ``large`` compute what ``small`` does. Its stream holds every channel twice (so that layer norms see the
    same mean and variance) and nobody reads the second time; its further heads and hidden units, at the end of each
    of q, k and v, are read by nobody; its further layers add nothing."""
    mine = small.state_dict()
    number = re.compile(r"(blocks|resblocks|layer)\.(\d+)\.")
    for name, value in large.state_dict().items():
        found = number.search(name)
        key = name
        if found and int(found[2]) not in layers:
            if re.search(r"(attn\.proj|out_proj|fc2|c_proj)\.", name):
                value.zero_()
            continue
        if found:
            key = number.sub(f"{found[1]}.{layers.index(int(found[2]))}.", name)
        part = mine[key]
        if WRITES.fullmatch(name):
            put(value, torch.cat([part, part]))
        elif READS.fullmatch(name):
            parts = next((count for kind, count in HALVES.items() if kind in name), 1)
            for inner, outer in zip(part.chunk(parts), value.chunk(parts), strict=True):
                if value.ndim == 2:
                    outer[:, part.shape[1] :] = 0
                    outer[: len(inner), : part.shape[1]] = inner
                else:
                    outer[: len(inner)] = inner
        elif name.endswith(("text_projection", "proj")):
            put(value, part)
        else:
            put(value, torch.cat([part, part], dim=-1))


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("timm vit", (0, 3)),
        ("timm vit, attention pool", (0, 2)),
        ("open_clip image", (0, 2)),
        ("open_clip text", (0, 2)),
        ("small text", (0, 2)),
        ("bert", (0, 1)),
    ],
)
def test_transformers_without_their_dead_heads_units_and_layers_are_the_same(
    family: str, layers: tuple[int, ...]
) -> None:
    large, small = FAMILIES[family]
    if family == "bert":
        # Its norms follow the residual: no layer of it can be without effect.
        large = partial(bert, 32, 2)
    source, wide, student = random(small, 1), random(large, 2), random(small, 3)
    hide_in_transformer(source, wide, layers)
    expected = run(source)
    torch.testing.assert_close(run(wide)[..., : expected.shape[-1]], expected)
    report = inherit(student, wide)
    assert next(iter(report.layers.values())) == layers
    assert torch.equal(run(student), expected)


# ---------------------------------------------------------------- slices, written out


def test_heads_of_a_fused_qkv_are_cut_in_each_of_q_k_and_v() -> None:
    teacher, student = random(partial(vit, 32, 3), 1), random(partial(vit, 16, 2), 2)
    report = inherit(student, teacher)
    large, small = teacher.state_dict(), student.state_dict()
    rows = [*range(16), *range(32, 48), *range(64, 80)]
    for mine, theirs in ((0, 0), (1, 2)):
        block, other = f"blocks.{mine}", f"blocks.{theirs}"
        assert torch.equal(small[f"{block}.attn.qkv.weight"], large[f"{other}.attn.qkv.weight"][rows][:, :16])
        assert torch.equal(small[f"{block}.attn.qkv.bias"], large[f"{other}.attn.qkv.bias"][rows])
        assert torch.equal(small[f"{block}.attn.proj.weight"], large[f"{other}.attn.proj.weight"][:16, :16])
        assert torch.equal(small[f"{block}.mlp.fc1.weight"], large[f"{other}.mlp.fc1.weight"][:64, :16])
        assert torch.equal(small[f"{block}.norm1.weight"], large[f"{other}.norm1.weight"][:16])
    assert torch.equal(small["pos_embed"], large["pos_embed"][..., :16])
    assert torch.equal(small["patch_embed.proj.weight"], large["patch_embed.proj.weight"][:16])
    assert report.layers == {"blocks": (0, 2)}
    assert "blocks.0.attn.qkv.weight" in report.cut


def test_gated_hidden_units_are_cut_in_each_half() -> None:
    large, small = FAMILIES["timm vit, gated"]
    teacher, student = random(large, 1), random(small, 2)
    inherit(student, teacher)
    mine, theirs = student.blocks[1].mlp, teacher.blocks[1].mlp
    rows = [*range(32), *range(64, 96)]
    assert torch.equal(mine.fc1.weight, theirs.fc1.weight[rows][:, :16])
    assert torch.equal(mine.fc2.weight, theirs.fc2.weight[:16, :32])
    assert torch.equal(student.blocks[1].attn.q_norm.weight, teacher.blocks[1].attn.q_norm.weight)


@pytest.mark.parametrize("family", ["open_clip image", "open_clip text"])
def test_heads_of_an_in_proj_are_cut_in_each_of_q_k_and_v(family: str) -> None:
    large, small = FAMILIES[family]
    teacher, student = random(large, 1), random(small, 2)
    inherit(student, teacher)
    mine, theirs = student.transformer.resblocks[1], teacher.transformer.resblocks[2]
    rows = [*range(16), *range(32, 48), *range(64, 80)]
    assert torch.equal(mine.attn.in_proj_weight, theirs.attn.in_proj_weight[rows][:, :16])
    assert torch.equal(mine.attn.in_proj_bias, theirs.attn.in_proj_bias[rows])
    assert torch.equal(mine.attn.out_proj.weight, theirs.attn.out_proj.weight[:16, :16])
    assert torch.equal(mine.mlp.c_proj.weight, theirs.mlp.c_proj.weight[:16, : mine.mlp.c_fc.out_features])
    name = "proj" if family == "open_clip image" else "text_projection"
    assert torch.equal(student.state_dict()[name], teacher.state_dict()[name][:16, :8])


def test_bert_keeps_leading_heads_and_spread_layers() -> None:
    teacher, student = random(partial(bert, 32, 5), 1), random(partial(bert, 16, 3, max_position_embeddings=9), 2)
    report = inherit(student, teacher)
    assert report.layers == {"encoder.layer": (0, 2, 4)}
    for mine, theirs in zip(student.encoder.layer, [teacher.encoder.layer[i] for i in (0, 2, 4)], strict=True):
        for part in ("query", "key", "value"):
            small, large = getattr(mine.attention.self, part), getattr(theirs.attention.self, part)
            assert torch.equal(small.weight, large.weight[:16, :16])
            assert torch.equal(small.bias, large.bias[:16])
        assert torch.equal(mine.attention.output.dense.weight, theirs.attention.output.dense.weight[:16, :16])
        assert torch.equal(mine.output.dense.weight, theirs.output.dense.weight[:16, :32])
    small, large = student.embeddings.state_dict(), teacher.embeddings.state_dict()
    assert torch.equal(small["word_embeddings.weight"], large["word_embeddings.weight"][:, :16])
    assert torch.equal(small["position_embeddings.weight"], large["position_embeddings.weight"][:9, :16])


def test_depthwise_convolutions_squeeze_excite_and_statistics_follow_their_channels() -> None:
    teacher, student = random(FAMILIES["mobilenet v3"][0], 1), random(FAMILIES["mobilenet v3"][1], 2)
    inherit(student, teacher)
    mine, theirs = student.blocks[2][1], teacher.blocks[2][1]
    hidden, width = mine.conv_dw.out_channels, mine.conv_pwl.out_channels
    assert mine.conv_dw.weight.shape[1] == 1
    assert hidden < theirs.conv_dw.out_channels
    assert torch.equal(mine.conv_dw.weight, theirs.conv_dw.weight[:hidden])
    assert torch.equal(mine.conv_pwl.weight, theirs.conv_pwl.weight[:width, :hidden])
    assert torch.equal(mine.bn2.running_var, theirs.bn2.running_var[:hidden])
    mine, theirs = mine.se, theirs.se
    squeezed, hidden = mine.conv_reduce.weight.shape[:2]
    assert torch.equal(mine.conv_reduce.weight, theirs.conv_reduce.weight[:squeezed, :hidden])
    assert torch.equal(mine.conv_expand.bias, theirs.conv_expand.bias[:hidden])


def test_groups_are_kept_whole() -> None:
    teacher, student = random(FAMILIES["resnext"][0], 1), random(FAMILIES["resnext"][1], 2)
    inherit(student, teacher)
    mine, theirs = student.layer2[0].conv2, teacher.layer2[0].conv2
    assert (mine.groups, theirs.groups, mine.weight.shape[1]) == (2, 4, 4)
    assert torch.equal(mine.weight, theirs.weight[:8])


def test_positions_of_another_grid_are_interpolated() -> None:
    teacher, student = random(partial(vit, 32, 1), 1), random(partial(vit, 16, 1, size=16), 2)
    report = inherit(student, teacher)
    expected = resample_abs_pos_embed(teacher.pos_embed, [2, 2], [4, 4], num_prefix_tokens=1)[..., :16]
    torch.testing.assert_close(student.pos_embed, expected)
    assert "pos_embed" in report.cut
    teacher, student = random(partial(clip_image, 32, 1), 1), random(partial(clip_image, 32, 1, size=24), 2)
    inherit(student, teacher)
    expected = resample_abs_pos_embed(teacher.positional_embedding[None], [3, 3], [2, 2], num_prefix_tokens=1)[0]
    torch.testing.assert_close(student.positional_embedding, expected)


@pytest.mark.parametrize(
    ("kept", "layers", "expected"),
    [(1, 12, (0,)), (2, 3, (0, 2)), (3, 4, (0, 2, 3)), (6, 12, (0, 2, 4, 7, 9, 11)), (3, 3, (0, 1, 2))],
)
def test_layers_are_spread_evenly(kept: int, layers: int, expected: tuple[int, ...]) -> None:
    assert spread(kept, layers) == expected


# ---------------------------------------------------------------- by norm


def test_by_norm_ranks_the_stream_once_and_heads_and_units_in_their_layer() -> None:
    teacher, student = random(partial(vit, 32, 2), 1), random(partial(vit, 16, 2), 2)
    large = teacher.state_dict()
    # So that the ranking is about more than chance.
    loud = torch.randperm(32)[:16].sort().values
    for name in ("blocks.0.attn.proj.weight", "blocks.1.mlp.fc2.weight"):
        large[name][loud] *= 50
    inherit(student, teacher, by="norm")
    small = student.state_dict()
    score = sum(row_norms(large[f"blocks.{i}.{part}.weight"]) for i in (0, 1) for part in ("attn.proj", "mlp.fc2"))
    score = score + row_norms(large["patch_embed.proj.weight"].flatten(1))
    score = score + row_norms(large["pos_embed"][0].T) + row_norms(large["cls_token"][0].T)
    stream = score.topk(16).indices.sort().values
    assert torch.equal(stream, loud)
    for i in (0, 1):
        qkv = large[f"blocks.{i}.attn.qkv.weight"]
        heads = row_norms(qkv).view(3, 4, 8).sum(dim=(0, 2)).topk(2).indices.sort().values
        channels = torch.cat([torch.arange(8 * int(head), 8 * int(head) + 8) for head in heads])
        rows = torch.cat([channels, channels + 32, channels + 64])
        assert torch.equal(small[f"blocks.{i}.attn.qkv.weight"], qkv[rows][:, stream])
        assert torch.equal(
            small[f"blocks.{i}.attn.proj.weight"], large[f"blocks.{i}.attn.proj.weight"][stream][:, channels]
        )
        units = row_norms(large[f"blocks.{i}.mlp.fc1.weight"]).topk(64).indices.sort().values
        assert torch.equal(small[f"blocks.{i}.mlp.fc1.bias"], large[f"blocks.{i}.mlp.fc1.bias"][units])
        assert torch.equal(small[f"blocks.{i}.mlp.fc2.weight"], large[f"blocks.{i}.mlp.fc2.weight"][stream][:, units])
    assert torch.equal(small["norm.weight"], large["norm.weight"][stream])


def row_norms(weight: Tensor) -> Tensor:
    return torch.stack([row.pow(2).sum().sqrt() for row in weight])


@pytest.mark.parametrize("family", ["timm vit", "bert"])
def test_by_norm_finds_dead_units_wherever_they_stand(family: str) -> None:
    build = {"timm vit": partial(vit, 16, 2), "bert": partial(bert, 16, 2)}[family]
    more: dict[str, Any] = {"timm vit": {"mlp_ratio": 6.0}, "bert": {"intermediate_size": 64}}[family]
    fewer: dict[str, Any] = {"timm vit": {"mlp_ratio": 2.0}, "bert": {"intermediate_size": 32}}[family]
    teacher, student = random(partial(build, **more), 1), random(partial(build, **fewer), 2)
    for name, value in teacher.state_dict().items():
        if re.search(r"mlp\.fc1|intermediate\.dense", name):
            torch.manual_seed(int(re.search(r"\d+", name)[0]))  # type: ignore[index]
            value[torch.randperm(len(value))[32:]] = 0
    inherit(student, teacher, by="norm")
    torch.testing.assert_close(run(student), run(teacher))
    inherit(student, teacher, by="leading")
    assert not torch.allclose(run(student), run(teacher))


def test_a_skip_connection_of_the_students_own_is_noted() -> None:
    """Rounded to equal numbers, a block's inputs and outputs are added; the teacher's are of two widths."""
    student, teacher = net("mobilenetv3_small_050"), net("mobilenetv3_small_075")
    assert inherit(student, teacher).notes == ("blocks.3.0: the student alone adds the block's input here",)


def test_a_shortcut_that_only_the_student_maps_passes_the_leading_channels() -> None:
    """A narrow ResNet-18 keeps the stem's 64 channels, and must map them where its teacher adds them as they are."""
    teacher = random(partial(resnet, "resnet18", 64, (2, 1, 1, 1)), 1)
    student = random(partial(resnet, "resnet18", 16, (2, 1, 1, 1)), 2)
    inherit(student, teacher)
    assert teacher.layer1[0].downsample is None
    x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(student.layer1[0].downsample(x), x[:, :16])
    assert torch.equal(student.layer1[0].conv2.weight, teacher.layer1[0].conv2.weight[:16, :16])
