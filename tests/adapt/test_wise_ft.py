"""WiSE-FT: every number by hand, exact ends, other architectures refused, the share chosen on validation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clipette.adapt.wise_ft import choose_share, wise_ft
from clipette.errors import ConfigError, ModelError


def model(seed: int, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2).half())
    net[1].running_mean.normal_()  # type: ignore[union-attr,operator]
    net[1].num_batches_tracked += seed  # type: ignore[operator]
    return net


def copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_each_number_lies_between(share: float) -> None:
    before, after = model(1).state_dict(), model(2).state_dict()
    mixed = wise_ft(before, after, share)
    for name, value in mixed.items():
        assert value.dtype == before[name].dtype
        pairs = zip(before[name].flatten().tolist(), after[name].flatten().tolist(), strict=True)
        if value.is_floating_point():
            tolerance = 1e-3 if value.dtype == torch.float16 else 1e-6
            expected = [(1 - share) * one + share * other for one, other in pairs]
            assert value.flatten().tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance), name
    assert mixed["1.num_batches_tracked"] == 2
    model(3).load_state_dict(mixed)


def test_the_ends_are_the_models_bytes_and_neither_is_touched() -> None:
    one, other = model(1), model(2)
    kept = copy(one), copy(other)
    for share, end in ((0.0, one), (1.0, other)):
        mixed = wise_ft(one.state_dict(), other.state_dict(), share)
        assert all(torch.equal(mixed[name], value) for name, value in end.state_dict().items())
        for value in mixed.values():
            value.zero_()
    for net, before in ((one, kept[0]), (other, kept[1])):
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_architecture_is_refused_in_words() -> None:
    one = model(1).state_dict()
    with pytest.raises(ModelError, match=r"'0.weight' is float32 \[3, 2\] in the zero-shot one and float32 \[4, 2\]"):
        wise_ft(one, model(2, width=4).state_dict())
    with pytest.raises(ModelError, match=r"the fine-tuned one has no '1.weight' \(7 names in all\)"):
        wise_ft(one, {name: value for name, value in one.items() if name.startswith("0")})
    with pytest.raises(ModelError, match="the zero-shot one has no 'extra'"):
        wise_ft(one, {**one, "extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="float16"):
        wise_ft(one, {**one, "0.weight": one["0.weight"].half()})
    with pytest.raises(ConfigError, match="must lie in"):
        wise_ft(one, one, 1.1)


def test_the_share_is_validations_and_ties_go_to_the_zero_shot_side() -> None:
    before, after = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    mixed = choose_share(before, after, lambda state: -abs(state["w"].item() - 0.3))
    assert mixed.share == pytest.approx(0.3)
    assert mixed.state["w"].item() == pytest.approx(0.3)
    assert [share for share, _ in mixed.curve] == pytest.approx([i / 10 for i in range(11)])
    assert choose_share(before, after, lambda state: 1.0, (1.0, 0.5)).share == 0.5
    with pytest.raises(ConfigError, match="at least one share"):
        choose_share(before, after, lambda state: 1.0, ())
