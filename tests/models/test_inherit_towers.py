"""Weight inheritance of whole towers: heads, scale and bias, text encoders and their tokens, refusals in words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from open_clip.transformer import TextTransformer
from tests.models.encoders import write_bert
from tests.models.inherit_models import FAMILIES, Build, bert, clip_image, names_of, random, resnet, vit

from clipette.errors import ClipetteError, ConfigError, ModelError
from clipette.models.core import DualEncoder
from clipette.models.inherit import inherit, inherit_model
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model

CAPTIONS = ["a red dog", "a blue cat running"]
SMALL_TEXT = {"kind": "small", "layers": 2, "width": 32, "heads": 4, "tokenizer": "words", "vocabulary": 300}


def model(width: int, head: str = "linear", seed: int = 0, **values: Any) -> DualEncoder:
    args = {"embed_dim": width, "depth": 1, "num_heads": width // 8, "patch_size": 8}
    image = {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32, "args": args, "head": {"kind": head}}
    text = {**SMALL_TEXT, "width": width, "heads": width // 8, "head": {"kind": head}}
    values = {"dim": 8, "image": image, "text": text, **values}
    spec = ModelSpec.model_validate_json(json.dumps(values))
    built = build_model(spec, captions=CAPTIONS, seed=seed).double().eval()
    for name, value in built.state_dict().items():
        if ".head." in name and value.is_floating_point():
            value.normal_()
    return built


@pytest.mark.parametrize("kind", ["linear", "residual", "mlp", "bn_mlp"])
def test_heads_follow_the_trunks_channels(kind: str) -> None:
    teacher, student = model(32, kind, 1), model(16, kind, 2)
    report = inherit_model(student, teacher)
    assert report.initialised == ()
    name = {"linear": "", "residual": "linear.", "mlp": "0.", "bn_mlp": "0."}[kind]
    for side in ("image", "text"):
        small, large = student.state_dict(), teacher.state_dict()
        assert torch.equal(small[f"{side}.head.{name}weight"], large[f"{side}.head.{name}weight"][:, :16])
        assert torch.equal(small[f"{side}.head.{name}bias"], large[f"{side}.head.{name}bias"])
    if kind == "residual":
        assert torch.equal(small["text.head.first.weight"], large["text.head.first.weight"][:, :16])
        assert torch.equal(small["text.head.second.weight"], large["text.head.second.weight"])


@pytest.mark.parametrize("by", ["leading", "norm"])
def test_a_projector_of_three_layers_is_cut_layer_by_layer(by: Literal["leading", "norm"]) -> None:
    def built(width: int, hidden: int, seed: int) -> DualEncoder:
        args = {"embed_dim": width, "depth": 1, "num_heads": width // 8, "patch_size": 8}
        head = {"kind": "bn_mlp", "layers": 3, "hidden": hidden}
        image = {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32, "args": args, "head": head}
        return model(width, seed=seed, image=image)

    teacher, student = built(32, 24, 1), built(16, 10, 2)
    large = teacher.image_tower().state_dict()
    # By norm, other units of the second hidden layer than of the first.
    for name, loud in (("head.0.weight", range(0, 20, 2)), ("head.3.0.weight", range(1, 21, 2))):
        large[name][list(loud)] *= 100
    inherit(student.image_tower(), teacher.image_tower(), by=by)
    small = student.image_tower().state_dict()
    norm = small["head.3.1.weight"]
    first, second = (
        [int((large[name] == value).nonzero()) for value in small[name]] for name in ("head.0.bias", "head.3.0.bias")
    )
    leading = list(range(10))
    expected = (leading, leading) if by == "leading" else (list(range(0, 20, 2)), list(range(1, 21, 2)))
    assert (first, second) == expected
    assert torch.equal(small["head.3.0.weight"], large["head.3.0.weight"][second][:, first])
    assert torch.equal(norm, large["head.3.1.weight"][second])
    assert torch.equal(small["head.4.weight"], large["head.4.weight"][:, second])
    assert torch.equal(small["head.4.bias"], large["head.4.bias"])


def test_heads_follow_the_channels_chosen_by_norm() -> None:
    teacher, student = model(32, seed=1), model(16, seed=2)
    inherit(student.image_tower(), teacher.image_tower(), by="norm")
    large, small = teacher.image_tower().state_dict(), student.image_tower().state_dict()
    norm = large["trunk.norm.weight"].normal_()
    inherit(student.image_tower(), teacher.image_tower(), by="norm")
    kept = [int((norm == value).nonzero()) for value in small["trunk.norm.weight"]]
    assert kept != list(range(16))
    assert torch.equal(small["head.weight"], large["head.weight"][:, kept])


def test_a_head_of_another_kind_takes_the_linear_part_or_nothing() -> None:
    teacher = model(32, "linear", 1)
    student = model(16, "residual", 2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    report = inherit_model(student, teacher)
    after, large = student.state_dict(), teacher.state_dict()
    assert torch.equal(after["text.head.linear.weight"], large["text.head.weight"][:, :16])
    left = [
        f"{side}.head.{part}.{kind}"
        for side in ("image", "text")
        for part in ("first", "second")
        for kind in ("weight", "bias")
    ]
    assert list(report.initialised) == left
    assert all(torch.equal(after[name], before[name]) for name in left)
    assert str(report).endswith(f"8 left as initialised: {', '.join(left)}")
    report = inherit_model(model(16, "linear", 2), model(32, "mlp", 1))
    assert [name for name in report.initialised if "trunk" in name] == []
    assert len(report.initialised) == 4


def test_a_linear_head_takes_open_clips_projection() -> None:
    """A trunk without a projection under a head of ours: the head is the teacher's projection, without a bias."""
    student = model(16, seed=2).text_tower()
    rows = student.trunk.transformer.token_embedding.num_embeddings  # type: ignore[union-attr,operator]
    build = partial(TextTransformer, 40, rows, 32, 4, 3, output_dim=12, pool_type="eos", eos_id=2)
    teacher = random(build, 1)
    report = inherit(student, teacher)
    assert report.initialised == ()
    assert report.layers == {"trunk.transformer.transformer.resblocks": (0, 2)}
    assert torch.equal(student.head.weight, teacher.text_projection.T[:8, :16])  # type: ignore[arg-type]
    assert torch.equal(student.head.bias, torch.zeros(8, dtype=torch.float64))  # type: ignore[arg-type]


def test_both_towers_scale_and_bias_are_inherited() -> None:
    teacher, student = model(32, seed=1, logits="siglip", logit_scale=40.0), model(16, seed=2, logits="siglip")
    report = inherit_model(student, teacher)
    assert float(student.scale.detach()) == pytest.approx(40.0)
    assert {"logit_scale", "logit_bias"} < set(report.whole)
    assert {*report.whole, *report.cut} == names_of(student)
    assert report.layers == {"image.trunk.blocks": (0,), "text.trunk.transformer.transformer.resblocks": (0, 1)}
    twin = model(32, seed=3, logits="siglip")
    assert inherit(twin, teacher).cut == ()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in twin.state_dict().items())


def test_some_towers_only() -> None:
    teacher, student = model(32, seed=1), model(16, seed=2, logits="siglip")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    report = inherit_model(student, teacher, towers=["image"])
    alone = {name for name in before if name.startswith("text.")} | {"logit_bias"}
    assert set(report.initialised) == alone
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in alone)
    assert inherit_model(model(16, text=None), teacher).initialised == ()


def test_hugging_face_and_open_clip_towers(tmp_path: Path) -> None:
    folders = [write_bert(tmp_path / "large", layers=3), write_bert(tmp_path / "small", layers=2, seed=1)]
    texts = [{"kind": "hf", "path": str(folder)} for folder in folders]
    parts = []
    for name, width, layers in (("large", 64, 3), ("small", 32, 2)):
        vision = {"image_size": 32, "layers": layers, "width": width, "head_width": 16, "patch_size": 16}
        text = {"context_length": 16, "vocab_size": 49408, "width": width, "heads": width // 16, "layers": layers}
        config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        parts.append({"kind": "open_clip", "name": str(tmp_path / f"{name}.json")})
    teacher, student = (model(16, dim=20, image=part, text=part) for part in parts)
    assert inherit_model(student, teacher).initialised == ()
    headed = model(16, image={**parts[1], "head": {"kind": "linear"}}, text=None)
    report = inherit_model(headed, teacher)
    assert report.initialised == ("image.head.weight", "image.head.bias")
    trunk = headed.state_dict()["image.trunk.trunk.proj"]
    assert torch.equal(trunk, teacher.state_dict()["image.trunk.proj"][:32])
    teacher, student = (model(16, text=text) for text in texts)
    assert inherit_model(student, teacher).layers["text.trunk.encoder.encoder.layer"] == (0, 2)


# ---------------------------------------------------------------- refusals


REFUSALS: list[tuple[Build, Build, type[ClipetteError], str]] = [
    (partial(vit, 16, 2), partial(clip_image, 32, 2), ModelError, "inherited within a family"),
    (partial(vit, 40, 2), partial(vit, 32, 2), ModelError, r"'cls_token' has shape \(1, 1, 40\).* at least as large"),
    (partial(vit, 16, 4), partial(vit, 32, 2), ModelError, "'blocks' has 4 layers in the student and 2 in its teacher"),
    (
        partial(vit, 16, 2, num_heads=1),
        partial(vit, 32, 2),
        ModelError,
        "16 channels wide .* and 8 in its teacher: .* / 8",
    ),
    (partial(vit, 32, 2, num_heads=2), partial(vit, 32, 2), ModelError, "heads of 'blocks.0' are 16 channels wide"),
    (
        partial(vit, 16, 2, patch_size=16),
        partial(vit, 32, 2),
        ModelError,
        "the convolution 'patch_embed.proj' has stride",
    ),
    (
        partial(vit, 16, 2, in_chans=1),
        partial(vit, 32, 2),
        ModelError,
        "the image-channels of the two must be the same",
    ),
    (partial(vit, 16, 2, init_values=0.1), partial(vit, 32, 2), ModelError, "'blocks.0.ls1.gamma' has no counterpart"),
    (partial(vit, 16, 2), partial(vit, 32, 2, qk_norm=True), ModelError, "q_norm.weight' has no place in the student"),
    (
        partial(vit, 16, 2, reg_tokens=1, class_token=False, global_pool="avg"),
        partial(vit, 32, 2, reg_tokens=2, class_token=False, global_pool="avg"),
        ModelError,
        "the tokens of the two must be the same, 2, not 1",
    ),
    (partial(bert, 16, 2, vocab_size=30), partial(bert, 32, 2), ModelError, "the vocabulary of the two .* 40, not 30"),
    (partial(bert, 16, 2, max_position_embeddings=20), partial(bert, 32, 2), ModelError, r"every axis \(positions\)"),
    (
        partial(resnet, "resnet50", 16, (1, 1, 1, 1), cardinality=4, base_width=8),
        FAMILIES["resnext"][0],
        ModelError,
        r"'layer1.0.conv2' has channels per group \(in, out\) \(2, 2\) in the student and \(4, 4\)",
    ),
    (
        partial(resnet, "resnet18", 8, (1, 1, 1, 1)),
        partial(resnet, "resnet50", 8, (1, 1, 1, 1)),
        ModelError,
        "has no place in the student: the two must be of one family",
    ),
    (
        partial(resnet, "resnet18", 8, (1, 1, 1, 1), global_pool="catavgmax"),
        partial(resnet, "resnet18", 12, (1, 1, 1, 1), global_pool="catavgmax"),
        ModelError,
        "'global_pool', a SelectAdaptivePool2d, may join or reorder",
    ),
    (
        partial(timm.create_model, "test_convnext", num_classes=0, dims=(8, 8, 16, 16)),
        partial(timm.create_model, "test_convnext", num_classes=0),
        ModelError,
        "no rule says how to cut this part of a ConvNeXt",
    ),
]


@pytest.mark.parametrize(("small", "large", "kind", "message"), REFUSALS)
def test_pairs_that_do_not_fit_are_refused_and_left_alone(
    small: Build, large: Build, kind: type[ClipetteError], message: str
) -> None:
    teacher, student = random(large, 1), random(small, 2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(kind, match=message):
        inherit(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_options_that_do_not_fit_are_refused() -> None:
    small, large = FAMILIES["resnet basic"]
    with pytest.raises(ConfigError, match="by: norm ranks the channels of transformers only, and this is a ResNet"):
        inherit(small(), large(), by="norm")
    with pytest.raises(ConfigError, match="by: 'size' is unknown: choose leading or norm"):
        inherit(small(), large(), by="size")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="towers: 'audio' is neither image nor text"):
        inherit_model(model(16), model(16), towers=["audio"])
    with pytest.raises(ModelError, match="share no text tower: there is nothing to inherit"):
        inherit_model(model(16, text=None), model(16), towers=["text"])


def test_a_refused_text_tower_leaves_the_image_tower_alone() -> None:
    teacher, student = model(32, seed=1), model(16, seed=2, text={**SMALL_TEXT, "width": 48, "heads": 6})
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ModelError, match="at least as large in every axis"):
        inherit_model(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_tokens_that_mean_other_words_are_refused() -> None:
    teacher, student = model(32), model(16)
    spec = json.dumps({"dim": 8, "image": {"kind": "timm", "name": "test_resnet", "size": 32}, "text": SMALL_TEXT})
    other = build_model(ModelSpec.model_validate_json(spec), captions=["two green birds", "a red fox sleeping"])
    student.text = other.text
    with pytest.raises(ModelError, match=r"numbers words otherwise .* leave text out of towers"):
        inherit_model(student, teacher)
    student.text = build_model(ModelSpec.model_validate_json(spec.replace("words", "clip")), captions=CAPTIONS).text
    with pytest.raises(ModelError, match="numbers words otherwise"):
        inherit_model(student, teacher)
