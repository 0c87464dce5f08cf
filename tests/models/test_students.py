"""From a spec to a model: image backbones of every family, text encoders, what is trained, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.models.encoders import write_bert
from transformers import AutoModel, AutoTokenizer

from clipette.errors import ClipetteError, ConfigError, ModelError
from clipette.models.core import DualEncoder
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model, describe, load_pair, local_reference

CAPTIONS = ["a red dog", "a blue cat running"]
SMALL = {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300}
# Name → image size: residual, modern convolutional, transformer, and MobileCLIP's reparameterised towers.
BACKBONES = {
    "test_resnet": 40,
    "test_convnext": 64,
    "test_vit": 32,
    "test_efficientnet": 40,
    "mobilenetv2_035": 32,
    "mobilenetv3_small_050": 32,
    "fastvit_t8": 64,
    "mobileone_s0": 32,
}


def build(base: Path = Path(), teacher: DualEncoder | None = None, seed: int = 0, **values: Any) -> DualEncoder:
    image = {"kind": "timm", "name": "test_resnet", "size": 32}
    spec = ModelSpec.model_validate_json(json.dumps({"dim": 8, "image": image, "text": SMALL, **values}))
    return build_model(spec, base=base, teacher=teacher, captions=CAPTIONS, seed=seed)


def tokens(model: DualEncoder, texts: list[str]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in model.text_tower().tokenizer(texts).items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_image_backbones_of_every_family_end_in_the_space(name: str) -> None:
    size = BACKBONES[name]
    model = build(image={"kind": "timm", "name": name, "size": size}).eval()
    tower = model.image_tower()
    assert tower.preprocess.size == (size, size)
    with torch.no_grad():
        out = model.encode_image(torch.randn(2, 3, size, size))
    assert out.shape == (2, 8)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2))


def test_the_preprocessing_is_timms_own_unless_stated() -> None:
    own = build(image={"kind": "timm", "name": "test_vit"}).image_tower().preprocess
    config = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert (own.size, own.mean, own.std) == (config["input_size"][1:], config["mean"], config["std"])
    stated = {
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
        "interpolation": "bilinear",
        "mode": "squash",
        "size": [32, 48],
    }
    found = build(image={"kind": "timm", "name": "test_resnet", **stated}).image_tower().preprocess
    assert (found.mean, found.std, found.size) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), (32, 48))
    assert (found.interpolation, found.mode) == ("bilinear", "squash")


def test_backbone_arguments_and_weights_are_used(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trunk = timm.create_model("test_resnet", num_classes=10, in_chans=3)
    save_file(trunk.state_dict(), tmp_path / "w.safetensors")
    image = {"kind": "timm", "name": "test_resnet", "size": 32, "weights": "w.safetensors"}
    built = build(tmp_path, image=image).image_tower().trunk.state_dict()
    expected = trunk.state_dict()
    assert built.keys() <= expected.keys()
    assert all(torch.equal(built[name], expected[name]) for name in built)
    pooled = build(image={"kind": "timm", "name": "test_resnet", "size": 32, "args": {"global_pool": "max"}})
    assert pooled.image_tower().trunk.global_pool.pool_type == "max"  # type: ignore[union-attr]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_hugging_face_pair_equals_its_plain_twin(tmp_path: Path, pool: str) -> None:
    """The encoder run by hand, pooled over its mask or at its first token, then the head."""
    folder = write_bert(tmp_path / "bert")
    model = build(text={"kind": "hf", "path": str(folder), "pool": pool, "context_length": 12}).eval()
    texts = ["a red dog", "a photo of two white cats, one green", ""]
    bert = AutoModel.from_pretrained(folder).eval()
    given = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = bert(**given).last_hidden_state
        rows = []
        for row, mask in zip(hidden, given["attention_mask"], strict=True):
            rows.append(row[0] if pool == "cls" else row[mask.bool()].mean(dim=0))
        expected = F.normalize(model.text_tower().head(torch.stack(rows)), dim=-1)
        found = model.encode_text(tokens(model, texts))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    model = build(text={"kind": "hf", "path": str(write_bert(tmp_path / "bert")), "context_length": 16}).eval()
    with torch.no_grad():
        alone = model.encode_text(tokens(model, ["a red dog"]))
        beside = model.encode_text(tokens(model, ["a red dog", "a photo of two white cats, one green picture"]))
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=1e-4)


def test_an_untrained_or_shortened_text_encoder(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", layers=3)
    text = {"kind": "hf", "path": str(folder)}
    origin = AutoModel.from_pretrained(folder).state_dict()
    kept = build(text={**text, "layers": [2, 0]}).text_tower().trunk.encoder  # type: ignore[union-attr]
    assert kept.config.num_hidden_layers == len(kept.encoder.layer) == 2  # type: ignore[union-attr,arg-type]
    name = "attention.self.query.weight"
    for place, layer in enumerate((2, 0)):
        mine = kept.encoder.layer[place].state_dict()[name]  # type: ignore[union-attr,index]
        assert torch.equal(mine, origin[f"encoder.layer.{layer}.{name}"])
    fresh = build(text={**text, "weights": False}).text_tower().trunk.encoder.state_dict()  # type: ignore[union-attr]
    assert not torch.equal(fresh[f"encoder.layer.0.{name}"], origin[f"encoder.layer.0.{name}"])
    with pytest.raises(ConfigError, match=r"text layers \[3\] do not exist: the encoder has layers 0 to 2"):
        build(text={**text, "layers": [3]})


@pytest.mark.parametrize("tokenizer", ["words", "clip"])
def test_small_text_towers_read_to_the_end_of_the_text_and_no_further(tokenizer: str) -> None:
    model = build(text={**SMALL, "tokenizer": tokenizer, "context_length": 12}).eval()
    given = tokens(model, ["a red dog", "a blue cat"])
    with torch.no_grad():
        before = model.encode_text(given)
        ids = given["input_ids"].clone()
        ends = (ids == ids.max()).int().argmax(1) if tokenizer == "clip" else (ids == 2).int().argmax(1)
        for row, end in enumerate(ends.tolist()):
            ids[row, end + 1 :] = 5
        after = model.encode_text({**given, "input_ids": ids})
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before[0], before[1])


def test_open_clip_parts_with_and_without_a_head_of_our_own(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}))
    part = {"kind": "open_clip", "name": "tiny.json"}
    assert build(tmp_path, dim=None, image=part, text=part).dim == 20
    headed = build(tmp_path, image={**part, "head": {"kind": "mlp"}}, text={**part, "head": {"kind": "linear"}}).eval()
    with torch.no_grad():
        assert headed.encode_image(torch.randn(2, 3, 32, 32)).shape == (2, 8)
        assert headed.encode_text(tokens(headed, ["a dog"])).shape == (1, 8)
    with pytest.raises(ConfigError, match="the image tower is 20 wide but the space is 8: give it head"):
        build(tmp_path, image=part)


@pytest.mark.parametrize("train", ["all", "head", "none"])
def test_what_is_trained(tmp_path: Path, train: str) -> None:
    folder = write_bert(tmp_path / "bert")
    image = {"kind": "timm", "name": "test_resnet", "size": 32, "train": train}
    model = build(image=image, text={"kind": "hf", "path": str(folder), "train": train})
    for tower in (model.image_tower(), model.text_tower()):
        trunk = {p.requires_grad for p in tower.trunk.parameters()}
        head = {p.requires_grad for p in tower.head.parameters()}
        assert (trunk, head) == ({train == "all"}, {train != "none"})
    assert model.logit_scale.requires_grad


def test_logits_start_as_clips_or_siglips() -> None:
    clip, siglip = build(), build(logits="siglip")
    assert (float(clip.scale.detach()), clip.logit_bias) == (pytest.approx(1 / 0.07), None)
    assert float(siglip.scale.detach()) == pytest.approx(10.0)
    assert float(siglip.bias.detach()) == -10.0
    assert float(build(logit_scale=33.0).scale.detach()) == pytest.approx(33.0)


def test_a_teachers_space_brings_its_width_scale_and_bias() -> None:
    teacher = build(dim=12, logits="siglip", logit_scale=40.0)
    student = build(teacher=teacher, dim=None, space="teacher", text=None)
    assert student.text is None
    assert student.dim == 12
    assert float(student.scale.detach()) == pytest.approx(40.0)
    assert float(student.bias.detach()) == -10.0


def test_a_teachers_text_tower_is_a_copy() -> None:
    teacher = build(dim=12)
    student = build(teacher=teacher, dim=None, text={"kind": "teacher", "train": "all"})
    mine, theirs = student.text_tower(), teacher.text_tower()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        next(mine.parameters()).add_(1)
    assert not torch.equal(next(mine.parameters()), next(theirs.parameters()))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    models = [build(seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), expected)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


# ---------------------------------------------------------------- references


def test_a_pair_file_is_read_and_its_paths_are_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    write_bert(folder / "texts" / "bert")
    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "w.safetensors")
    (folder / "pair.yaml").write_text(
        "dim: 8\n"
        "image: {kind: timm, name: test_resnet, size: 32, weights: w.safetensors, train: none}\n"
        "text: {kind: hf, path: texts/bert, head: {kind: mlp, hidden: 12}, train: head}\n"
    )
    model = load_pair(folder / "pair.yaml")
    assert model.dim == 8
    assert model.text_tower().head[0].out_features == 12  # type: ignore[index,union-attr]
    (folder / "bad.yaml").write_text("dim: 8\nimge: {kind: timm, name: x}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'imge'; did you mean 'image'"):
        load_pair(folder / "bad.yaml")


def test_package_references_are_folders_of_installed_packages() -> None:
    assert Path(local_reference("package:timm/models", Path())) == Path(timm.__file__).parent / "models"
    for name in ("absent_package_zz", "absent_package_zz.inner"):
        with pytest.raises(ModelError, match=f"package '{name}' is not installed.*pip install"):
            local_reference(f"package:{name}/x", Path())


def test_a_local_path_wins_over_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_reference("org/name", tmp_path) == str(tmp_path / "org" / "name")
    assert local_reference("org/other", tmp_path) == "org/other"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (
            {"image": {"kind": "timm", "name": "test_resnett"}},
            ModelError,
            "timm knows no model 'test_resnett'; near: test",
        ),
        ({"dim": None}, ConfigError, "dim is missing: how wide is the space that 'test_resnet' maps to"),
        ({"image": {"kind": "timm", "name": "test_resnet", "args": {"dpeth": 3}}}, ConfigError, "refuses its args"),
        (
            {"image": {"kind": "timm", "name": "test_resnet", "weights": "no.safetensors"}},
            ModelError,
            "weights not found",
        ),
        ({"image": {"kind": "timm", "name": "test_resnet", "head": {"kind": "none"}}}, ConfigError, "head: none needs"),
        ({"text": {"kind": "hf", "path": "./absent"}}, ModelError, "text encoder './absent' cannot be loaded"),
        ({"text": {"kind": "teacher"}}, ConfigError, "needs a teacher with a text tower"),
        ({"text": {**SMALL, "heads": 3}}, ConfigError, "text width 16 is not divisible by its 3 heads"),
        ({"text": {**SMALL, "vocabulary": 20}}, ConfigError, "a vocabulary of 20 is too small"),
    ],
)
def test_parts_that_do_not_exist_or_fit_are_refused_in_words(
    values: dict[str, Any], kind: type[ClipetteError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        build(**values)


def test_weights_of_another_backbone_or_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    image = {"kind": "timm", "name": "test_resnet", "size": 32}
    with pytest.raises(ModelError, match=r"does not fit timm model 'test_resnet' with args \{\}: missing"):
        build(tmp_path, image={**image, "weights": "other.safetensors"})
    with pytest.raises(ModelError, match="is not a safetensors file"):
        build(tmp_path, image={**image, "weights": "text.safetensors"})
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "shape.safetensors")
    with pytest.raises(ModelError, match="does not fit timm model 'test_resnet'"):
        build(tmp_path, image={**image, "weights": "shape.safetensors"})


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    teacher = build(dim=12)
    with pytest.raises(ConfigError, match="the teacher's width 12, but the student says dim: 8; remove dim"):
        build(teacher=teacher, space="teacher", text=None)
    with pytest.raises(ConfigError, match=r"text\.layers works for Hugging Face text encoders only"):
        build(teacher=teacher, dim=12, text={"kind": "teacher", "layers": [0]})
    with pytest.raises(ConfigError, match="the teacher's text tower is 12 wide but the space is 8"):
        build(teacher=teacher, text={"kind": "teacher", "train": "all"})
    with pytest.raises(ConfigError, match="needs a teacher with a text tower"):
        build(teacher=build(dim=12, text=None), dim=None, text={"kind": "teacher"})


def test_train_head_of_a_tower_without_one_is_refused(tmp_path: Path) -> None:
    width = timm.create_model("test_resnet", num_classes=0).num_features
    image = {"kind": "timm", "name": "test_resnet", "size": 32, "head": {"kind": "none"}, "train": "head"}
    with pytest.raises(ConfigError, match="this tower has no head of its own"):
        build(dim=width, image=image)


def test_a_spec_in_one_line_reads_back() -> None:
    image = {"kind": "timm", "name": "test_resnet", "size": 32}
    spec = ModelSpec.model_validate_json(json.dumps({"dim": 8, "image": image, "text": SMALL}))
    line = describe(spec)
    assert "\n" not in line
    values = json.loads(line)
    assert values["dim"] == 8
    assert np.isclose(values["text"]["vocabulary"], 300)


def test_columns_behind_the_end_of_a_text_change_nothing() -> None:
    """The cut at the last end-of-text: the same vectors and gradients as open_clip's own full-length forward."""
    from clipette.models.text import SmallTextTrunk

    torch.manual_seed(0)
    trunk = SmallTextTrunk(vocabulary=50, context_length=24, width=16, layers=2, heads=2, eos_id=49, pad_id=0)
    ids = torch.zeros(3, 24, dtype=torch.int64)
    for row, length in enumerate((2, 5, 9)):
        ids[row, :length] = torch.arange(1, length + 1)
        ids[row, length] = 49
    seen: list[int] = []
    trunk.transformer.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    short = trunk({"input_ids": ids})
    whole = trunk.transformer(ids)
    assert seen == [10, 24]
    torch.testing.assert_close(short, whole, atol=2e-6, rtol=0)
    gradients = []
    for out in (short, whole):
        trunk.zero_grad()
        (out * torch.linspace(-1, 1, 16)).sum().backward()
        gradients.append(trunk.transformer.token_embedding.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def mixed_lengths(rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [rows, longest + 1] that end in 49 after 1 to ``longest`` words, in no order, and their lengths."""
    lengths = 1 + torch.randperm(rows, generator=torch.Generator().manual_seed(1)) % longest
    ids = torch.zeros(rows, longest + 1, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        ids[row, :length] = 1 + (torch.arange(length) * 7 + row) % 48
        ids[row, length] = 49
    return ids, lengths + 1


def test_texts_of_like_length_go_together_and_come_back_in_order() -> None:
    """Four groups of a large batch, none as wide as the whole but the last; the same vectors and gradients."""
    from clipette.models.text import SmallTextTrunk

    torch.manual_seed(0)
    trunk = SmallTextTrunk(vocabulary=50, context_length=24, width=16, layers=2, heads=2, eos_id=49, pad_id=0)
    trunk.double()
    ids, _ = mixed_lengths(150, 20)
    seen: list[tuple[int, ...]] = []
    trunk.transformer.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    grouped, whole = trunk({"input_ids": ids}), trunk.transformer(torch.nn.functional.pad(ids, (0, 3)))
    assert sum(rows for rows, _ in seen[:-1]) == 150
    assert len(seen) == 5
    widths = [width for _, width in seen[:-1]]
    assert widths == sorted(widths)
    assert widths[0] < 10
    assert widths[-1] == 21
    torch.testing.assert_close(grouped, whole)
    gradients = []
    for out in (grouped, whole):
        trunk.zero_grad()
        (out * torch.linspace(-1, 1, 16)).sum().backward()
        gradients.append(trunk.transformer.token_embedding.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_masked_encoder_groups_texts_of_like_length(pool: str) -> None:
    from transformers import BertConfig, BertModel

    from clipette.models.text import HFTextTrunk

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    trunk = HFTextTrunk(BertModel(config, add_pooling_layer=False).eval(), pool)
    ids, lengths = mixed_lengths(150, 20)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    tokens = {"input_ids": ids, "attention_mask": mask}
    torch.testing.assert_close(trunk(tokens), trunk.pooled(tokens), atol=2e-6, rtol=0)
    # Padding on the left is left as it is: cut from the right it would lose its words.
    left = {name: value.flip(1) for name, value in tokens.items()}
    torch.testing.assert_close(trunk(left), trunk.pooled(left), atol=0, rtol=0)
