"""Smaller sisters: the asked size, the teacher's weights, the gate, and a start that distillation goes on from."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.kinds import student
from tests.export.pictures import captioned, noise
from tests.models import test_open_clip_models as open_clip_kinds
from tests.models import test_transformers_models as transformers_kinds

from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.errors import ConfigError, GateError
from clipette.evaluate.protocol import TrainedOn, read_trained_on
from clipette.export import prune as pruning
from clipette.export.gate import Budget, Quality
from clipette.export.prune import prune
from clipette.export.shrink import Shares, smaller_tower
from clipette.models.core import DualEncoder
from clipette.models.inference import TorchEncoder
from clipette.models.open_clip_models import load_open_clip
from clipette.models.saved import load_model, save_model
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.models.transformers_models import load_transformers

tokenizer_folder = open_clip_kinds.tokenizer_folder
VIT = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8}


def vit(**image: Any) -> DualEncoder:
    text = {"kind": "small", "width": 32, "layers": 3, "heads": 4, "tokenizer": "words", "vocabulary": 300}
    timm = {"kind": "timm", "name": "vit_tiny_patch16_224", "args": VIT, "size": 32, **image}
    spec = {"dim": 16, "image": timm, "text": text}
    return build_model(ModelSpec.model_validate(spec), captions=["a red star on a blue sky", "two rings"]).eval()


def encoder_of(model: DualEncoder) -> TorchEncoder:
    return TorchEncoder(model, name="whole", space="s" * 32, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_data(captioned(tmp_path_factory.mktemp("pictures"), 12, noise(40, 40)))


def test_sizes_are_whole_layers_heads_and_steps_of_units() -> None:
    half = Shares(0.5, 0.5, 0.5)
    assert (half.layers(12), half.layers(1), half.heads(3)) == (6, 1, 2)
    assert half.units(256, width=0.5) == 64
    assert half.units(10, width=0.5) == 8
    assert Shares().units(100, width=1) == 100, "what stays is not rounded"
    assert half.milder() == Shares(0.75, 0.75, 0.75)
    assert Shares(macs=0.5, size=160).milder() == Shares(macs=0.75, size=160)
    assert str(Shares(0.5)) == "depth 0.5"
    assert str(Shares(macs=0.5, size=160)) == "macs 0.5, 160 px"
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="is no share"):
            Shares(width=wrong)


@pytest.mark.parametrize(
    ("shares", "changed"),
    [
        (Shares(depth=0.67), {"depth": 2}),
        (Shares(width=0.5), {"embed_dim": 16, "num_heads": 2}),
        (Shares(hidden=0.5), {"mlp_ratio": 64.5 / 32}),
    ],
)
def test_a_vit_takes_the_asked_size_and_its_own_weights(shares: Shares, changed: dict[str, float]) -> None:
    whole = vit()
    tower = smaller_tower(whole.image_tower(), shares)
    assert tower is not None
    assert tower.blueprint.arguments["args"] == {**VIT, **changed}
    found = pruning._smaller(whole, shares, ("image",), None)
    assert found is not None
    made = found.model
    assert made.text is whole.text
    assert found.reports["image"].initialised == ()
    block = made.image_tower().trunk.blocks[0]  # type: ignore[union-attr, index]
    assert block.mlp.fc1.out_features == {"mlp_ratio": 64}.get(next(iter(changed)), 128 if shares.width == 1 else 64)
    with torch.no_grad():
        assert made.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_hidden_units_of_no_weight_cost_nothing() -> None:
    whole = vit()
    with torch.no_grad():
        for block in whole.image_tower().trunk.blocks:  # type: ignore[union-attr]
            # Every second unit writes nothing and would be missed by nobody; its first map is small.
            block.mlp.fc1.weight[::2] *= 1e-6
            block.mlp.fc1.bias[::2] = 0
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for by, close in (("norm", True), ("leading", False)):
        found = pruning._smaller(whole, Shares(hidden=0.5), ("image",), by)  # type: ignore[arg-type]
        assert found is not None
        with torch.no_grad():
            same = torch.allclose(found.model.encode_image(pixels), whole.encode_image(pixels), atol=1e-4)
        assert same == close


IMAGES: dict[str, tuple[Any, Shares]] = {
    "resnet": ({"name": "resnet18", "args": {"layers": [2, 1, 1, 1]}, "size": 32}, Shares(depth=0.5, width=0.25)),
    "mobilenet": ({"name": "mobilenetv2_050", "args": {}, "size": 32}, Shares(width=0.75)),
}


@pytest.mark.parametrize("name", list(IMAGES))
def test_convolutions(name: str) -> None:
    image, shares = IMAGES[name]
    whole = vit(**image)
    found = pruning._smaller(whole, shares, ("image",), None)
    assert found is not None
    assert found.reports["image"].cut
    assert found.reports["image"].initialised == ()
    arguments = found.model.image_tower().blueprint.arguments
    if name == "resnet":
        assert arguments["args"] == {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    else:
        assert arguments["name"] == "mobilenetv2_035"


OPEN_CLIP: dict[str, tuple[Shares, tuple[str, ...]]] = {
    "vit": (Shares(0.5, 0.5, 0.5), ("image", "text")),
    "resnet": (Shares(depth=0.5, width=0.5), ("text",)),
    "hf-text": (Shares(hidden=0.5), ("image", "text")),
}


@pytest.mark.parametrize("name", list(OPEN_CLIP))
def test_open_clips_towers(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    shares, towers = OPEN_CLIP[name]
    folder = open_clip_kinds.write_folder(tmp_path / "m", open_clip_kinds.FAMILIES[name], {}, tokenizer_folder)
    open_clip_kinds.peer(folder)
    whole = load_open_clip(f"local-dir:{folder}")
    found = prune(encoder_of(whole), tmp_path / "p", shares=shares, towers=towers, data=None, gate=False)
    assert found.parameters < found.parameters_before
    assert all(report.initialised == () for report in found.reports.values())
    saved = load_model(tmp_path / "p")
    assert saved.space != "s" * 32, "beyond the gate's budget it is another space"
    vectors = TorchEncoder(saved.model, name="p", device="cpu").encode_texts(["a photo of a dog"])
    assert vectors.shape == (1, whole.dim)


def test_transformers_towers_lose_layers_only(tmp_path: Path) -> None:
    build, _, length = transformers_kinds.FAMILIES["clip"]
    whole = load_transformers(str(transformers_kinds.write(tmp_path / "m", *build(), length)))
    found = prune(encoder_of(whole), tmp_path / "p", shares=Shares(depth=0.5), data=None, gate=False)
    assert {len(kept) for report in found.reports.values() for kept in report.layers.values()} == {1}
    with pytest.raises(ConfigError, match="width: of transformers' own towers only the depth"):
        prune(encoder_of(whole), tmp_path / "q", shares=Shares(width=0.5), data=None, gate=False)


def test_what_cannot_be_pruned_says_so(tmp_path: Path) -> None:
    out = tmp_path / "p"
    run = partial(prune, data=None, gate=False)
    with pytest.raises(ConfigError, match="nothing of this model would go"):
        run(encoder_of(vit()), out, shares=Shares(depth=0.99))
    with pytest.raises(ConfigError, match="hidden: of small text towers only the depth and the width"):
        run(encoder_of(vit()), out, shares=Shares(hidden=0.5))
    with pytest.raises(ConfigError, match="neither image nor text"):
        run(encoder_of(vit()), out, shares=Shares(0.5), towers=("audio",))
    with pytest.raises(ConfigError, match="depth: of a EfficientNet only the width"):
        run(encoder_of(student()), out, shares=Shares(0.5), towers=("image",))
    with pytest.raises(ConfigError, match="no narrower sisters"):
        run(encoder_of(student()), out, shares=Shares(width=0.5), towers=("image",))
    with pytest.raises(ConfigError, match="the narrowest of 'mobilenetv2_050' that timm has is mobilenetv2_035"):
        run(encoder_of(vit(**IMAGES["mobilenet"][0])), out, shares=Shares(width=0.1), towers=("image",))
    bare = vit(head={"kind": "none"}, args={**VIT, "embed_dim": 16, "num_heads": 2})
    with pytest.raises(ConfigError, match="ends in its own channels"):
        run(encoder_of(bare), out, shares=Shares(width=0.5), towers=("image",))
    with pytest.raises(ConfigError, match="a 'prompted_image' tower cannot be pruned"):
        run(encoder_of(vit(prompts={"count": 2, "depth": 1})), out, shares=Shares(0.5))
    with pytest.raises(ConfigError, match="name it with --data"):
        prune(encoder_of(vit()), out, shares=Shares(0.5), data=None)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ConfigError, match="is there and no pruned run"):
        run(encoder_of(vit()), out, shares=Shares(0.5))


def test_the_gate_refuses_and_milder_ones_are_tried(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = encoder_of(vit()), tmp_path / "p"
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    with pytest.raises(GateError, match=r"(?s)width 0\.5: median cosine.*distill --student"):
        prune(whole, out, shares=Shares(width=0.5), data=data)
    assert not out.exists()
    asked: list[float] = []
    honest = pruning.measure_quality

    def measured(full: Any, smaller: Any, given: Dataset) -> Quality:
        asked.append(sum(each.numel() for each in smaller.model.parameters()))
        found = honest(full, smaller, given)
        return found if len(asked) < 2 else Quality(1.0, 1.0, found.figure, found.before, found.before)

    monkeypatch.setattr(pruning, "measure_quality", measured)
    found = prune(whole, out, shares=Shares(width=0.5), data=data, milder=True, budget=Budget(0.999, 0.0))
    assert found.setting == "width 0.75"
    assert len(asked) == 2
    assert asked[0] < asked[1] < found.parameters_before
    assert found.parameters == asked[1]
    written = json.loads((out / "prune.json").read_text())
    assert written["gate"]["cosine_images"] == 1.0
    assert load_model(out).space == whole.space, "within the budget it is the model's space"
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_start_is_written_with_its_figures_and_what_it_has_seen(data: Dataset, tmp_path: Path) -> None:
    whole, out = encoder_of(vit()), tmp_path / "p"
    seen = TrainedOn.of(data, ["a star"])
    found = prune(whole, out, shares=Shares(0.34, 0.5), data=data, gate=False, card={"teacher": "t"}, trained_on=seen)
    assert found.quality is not None
    assert found.quality.cosine_images < 0.99
    saved = load_model(out)
    assert saved.card["teacher"] == "t"
    assert saved.card["pruned"]["setting"] == "depth 0.34, width 0.5"  # type: ignore[index]
    assert read_trained_on(out) == seen
    # Again, in its place; and on from there.
    again = prune(encoder_of(saved.model), tmp_path / "q", shares=Shares(width=0.5), data=None, gate=False)
    assert again.parameters_before == found.parameters


def test_a_pruned_run_is_a_student_to_distil(data: Dataset, tmp_path: Path) -> None:
    from clipette import verbs

    save_model(vit(), tmp_path / "whole", name="whole")
    found = verbs.prune(str(tmp_path / "whole"), tmp_path / "start", depth=0.34, width=0.5, gate=False)
    assert str(found["then"]).startswith(f"clipette distill --teacher {tmp_path / 'whole'} --student {found['run']}")
    overrides = ["train.epochs=1", "train.batch_size=6", "views.count=0"]
    reference = data.reference
    run = verbs.distill(
        teacher=str(tmp_path / "whole"),
        student=str(tmp_path / "start"),
        data=reference,
        overrides=overrides,
        out=tmp_path / "run",
        device="cpu",
    )
    start, distilled = load_model(tmp_path / "start").model, load_model(run).model
    assert distilled.state_dict().keys() == start.state_dict().keys()
    assert sum(p.numel() for p in distilled.parameters()) == found["parameters"]
    moved = [not torch.equal(value, start.state_dict()[name]) for name, value in distilled.state_dict().items()]
    assert any(moved)
    # Two steps from where it was, and not from elsewhere.
    vectors = [TorchEncoder(m, name="m", device="cpu").encode_texts(["a red star"]) for m in (start, distilled)]
    assert float((vectors[0] * vectors[1]).sum()) > 0.9
