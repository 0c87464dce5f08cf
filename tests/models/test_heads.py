"""PromptKD's projector of one, two or three linear layers: shapes, names, old models, refusals in words."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_saved import RESNET, build, outputs
from torch import nn

from clipette.config import load_yaml
from clipette.errors import ConfigError
from clipette.models.heads import build_head
from clipette.models.saved import load_model, save_model
from clipette.models.spec import HeadSpec, ModelSpec

PROJECTOR = {"kind": "bn_mlp", "hidden": 6}


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        (1, ["Linear"]),
        (2, ["Linear", "BatchNorm1d", "ReLU", "Linear"]),
        (3, ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]),
    ],
)
def test_a_projector_has_as_many_linear_layers_as_asked(layers: int, steps: list[str]) -> None:
    head = build_head("bn_mlp", 5, 4, 6, layers=layers)
    leaves = [module for module in head.modules() if not any(True for _ in module.children())]
    assert [type(module).__name__ for module in leaves] == steps
    maps = [module for module in leaves if isinstance(module, nn.Linear)]
    sizes = [5, *[6] * (layers - 1), 4]
    assert [(each.in_features, each.out_features) for each in maps] == list(pairwise(sizes))
    x = torch.randn(7, 5)
    by_hand = x
    for module in leaves:
        by_hand = module(by_hand)
    assert torch.equal(head(x), by_hand)


def test_two_layers_are_the_usual_and_named_as_ever() -> None:
    usual, asked = (build_head("bn_mlp", 5, 4, 6, **more) for more in ({}, {"layers": 2}))
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert list(usual.state_dict()) == list(asked.state_dict()) == [*names, "3.weight", "3.bias"]


def test_two_layers_are_left_unsaid_so_that_old_runs_go_on() -> None:
    assert HeadSpec.model_validate(PROJECTOR).layers == 2
    for given in (PROJECTOR, {**PROJECTOR, "layers": 2}):
        assert HeadSpec.model_validate(given).model_dump() == {**PROJECTOR, "dropout": 0.0}
    deep = HeadSpec.model_validate({**PROJECTOR, "layers": 3})
    assert HeadSpec.model_validate_json(json.dumps(deep.model_dump())) == deep
    whole = ModelSpec.model_validate({"dim": 8, "image": {**RESNET, "head": deep.model_dump()}})
    assert whole.model_dump(mode="json")["image"]["head"] == {**PROJECTOR, "dropout": 0.0, "layers": 3}
    assert ModelSpec.model_validate_json(whole.model_dump_json()) == whole


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_number_of_layers_is_saved(tmp_path: Path, layers: int) -> None:
    small = {"kind": "small", "width": 16, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300}
    head = {**PROJECTOR, "layers": layers}
    model = build(image={**RESNET, "head": head}, text={**small, "head": head})
    save_model(model, tmp_path, name="x")
    for left, right in zip(outputs(model), outputs(load_model(tmp_path).model), strict=True):
        assert (left == right).all()
    described = json.loads((tmp_path / "model.json").read_text())
    # What was saved before there was the key does not say it, and means two.
    said = {side: described[side]["arguments"]["head"].get("layers") for side in ("image", "text")}
    assert said == dict.fromkeys(("image", "text"), None if layers == 2 else layers)


@pytest.mark.parametrize("kind", ["none", "linear", "mlp", "residual"])
def test_layers_of_another_head_are_refused(tmp_path: Path, kind: str) -> None:
    refused(tmp_path, {"kind": kind, "layers": 2}, f"layers belongs to a head of kind bn_mlp, and this .* kind {kind}")


def test_no_projector_has_four_layers(tmp_path: Path) -> None:
    refused(tmp_path, {"kind": "bn_mlp", "layers": 4}, "layers")


def refused(folder: Path, head: dict[str, Any], message: str) -> None:
    path = folder / "pair.yaml"
    path.write_text(json.dumps({"dim": 8, "image": {**RESNET, "head": head}}))
    with pytest.raises(ConfigError, match=message):
        load_yaml(ModelSpec, path)
