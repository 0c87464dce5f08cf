"""Checkpoints: whole or not at all, the newest found again, optimiser state as plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipette.errors import ModelError
from clipette.train import checkpoint
from clipette.train.checkpoint import (
    find_checkpoint,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from clipette.train.optim import MovingAverage

Parts = tuple[nn.Module, torch.optim.Optimizer, MovingAverage]


def parts(name: str = "adamw", seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    # One parameter that no gradient reaches: it has no state.
    module.register_parameter("unused", nn.Parameter(torch.ones(2)))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    if name == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return module, optimizer, MovingAverage(module, 0.9)


def advance(state: Parts, steps: int, start: int = 0) -> None:
    module, optimizer, average = state
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        average.update(module)


def save(folder: Path, state: Parts, step: int, **facts: Any) -> None:
    module, optimizer, average = state
    save_checkpoint(folder, step=step, modules=module, optimizer=optimizer, average=average, facts=facts)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_is_loaded_goes_on_as_if_never_stopped(tmp_path: Path, name: str) -> None:
    whole = parts(name)
    advance(whole, 3)
    save(tmp_path, whole, 3, seconds=1.5, best=None)
    advance(whole, 3, start=3)
    other = parts(name, seed=9)
    path = find_checkpoint(tmp_path)
    assert path is not None
    facts = load_checkpoint(path, modules=other[0], optimizer=other[1], average=other[2])
    assert facts == {"step": 3, "average_count": 3, "seconds": 1.5, "best": None}
    advance(other, 3, start=3)
    for left, right in ((whole[0].state_dict(), other[0].state_dict()), (whole[2].state, other[2].state)):
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert other[2].count == 6


def test_optimiser_state_survives_flattening() -> None:
    state = parts()
    advance(state, 2)
    flat = flatten_optimizer(state[1])
    # Six parameters learn, with three values each; the seventh has never had a gradient.
    assert len(flat) == 6 * 3
    other = parts()
    restore_optimizer(other[1], flat)
    again = flatten_optimizer(other[1])
    assert again.keys() == flat.keys()
    assert all(torch.equal(again[key], flat[key]) for key in flat)


def test_the_groups_settings_are_the_recipes() -> None:
    state, other = parts(), parts()
    advance(state, 1)
    other[1].param_groups[0]["weight_decay"] = 0.123
    restore_optimizer(other[1], flatten_optimizer(state[1]))
    assert other[1].param_groups[0]["weight_decay"] == 0.123


def test_only_the_newest_whole_checkpoint_counts_and_older_ones_go(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "none") is None
    state = parts()
    for step in (2, 10):
        advance(state, 1)
        save(tmp_path, state, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    # Remains of kills: an unfinished one, and one without its last file.
    (tmp_path / ".step-00000012.tmp").mkdir()
    (tmp_path / "step-00000011").mkdir()
    (tmp_path / "best.safetensors").write_bytes(b"x")
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000010"
    save(tmp_path, state, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "step-00000012"]


@pytest.mark.parametrize("dies_at", [0, 1, 2, 3])
def test_dying_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    state = parts()
    advance(state, 1)
    save(tmp_path, state, 1)
    advance(state, 1)
    written = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal written
        if written == dies_at:
            raise OSError(28, "No space left on device")
        written += 1
        path.write_bytes(data)

    monkeypatch.setattr(checkpoint, "write_atomic", write)
    if dies_at == 3:
        monkeypatch.setattr(checkpoint, "write_json", lambda path, value: write(path, b"{}"))
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, state, 2)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_a_checkpoint_of_another_architecture_is_refused_in_words(tmp_path: Path) -> None:
    state = parts()
    advance(state, 1)
    save(tmp_path, state, 1)
    module = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    path = find_checkpoint(tmp_path)
    assert path is not None
    with pytest.raises(ModelError, match=r"(?s)step-00000001 does not fit this recipe or is damaged.*delete it"):
        load_checkpoint(path, modules=module, optimizer=optimizer, average=None)


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    content: list[dict[str, bytes]] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        state = parts()
        advance(state, 2)
        save(folder, state, 2)
        content.append({path.name: path.read_bytes() for path in (folder / "step-00000002").iterdir()})
    assert content[0] == content[1]
    assert content[0].keys() == {"modules.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"}


def test_memory_orders_are_kept(tmp_path: Path) -> None:
    """Fused optimisers walk through weight and moments side by side: both must be stored in one order."""
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(torch.randn(1, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    weight: Tensor = module.weight.detach().clone()
    save_checkpoint(tmp_path, step=1, modules=module, optimizer=optimizer, average=None, facts={})
    moments = optimizer.state[module.weight]["exp_avg"].clone()
    other = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        module.weight.zero_()
    load_checkpoint(tmp_path / "step-00000001", modules=module, optimizer=other, average=None)
    assert torch.equal(module.weight, weight)
    found = other.state[module.weight]["exp_avg"]
    assert torch.equal(found, moments)
    assert found.stride() == module.weight.stride()
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
