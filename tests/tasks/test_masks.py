"""Learned masks: the constraint against its slow twin, gradients, the target's way down, and what hardening leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.reference import hard_concrete as slow
from tests.train import tiny

from clipette.errors import ConfigError
from clipette.models.core import DualEncoder
from clipette.models.pruned import SelfAttention
from clipette.tasks.masks import Masks, TowerMasks, lagrangian

VIT = {
    "kind": "timm",
    "name": "vit_tiny_patch16_224",
    "args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8},
    "size": 32,
    "head": {"kind": "linear"},
}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = {"input_ids": torch.tensor([[1, 5, 6, 2], [1, 4, 2, 0], [1, 9, 8, 2]])}


def student() -> DualEncoder:
    return tiny.student(image=VIT).eval()


def vectors(model: DualEncoder) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model.encode_image(PIXELS), model.encode_text(IDS)])


def masked(model: DualEncoder, towers: Sequence[str] = ("image", "text"), keep: float = 0.5, spread: float = 0) -> Any:
    """Masks whose log α are drawn around 0 where ``spread`` says so."""
    masks = Masks(model, towers, keep=keep)
    if spread:
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for each in masks.towers.values():
                each.log_alpha.normal_(0, spread, generator=draw)  # type: ignore[operator,union-attr]
    return masks


@pytest.mark.parametrize(("share", "target"), [(0.9, 0.5), (0.3, 0.5), (0.5, 0.5)])
def test_the_constraint_is_descended_in_the_share_and_ascended_in_its_multipliers(share: float, target: float) -> None:
    p = torch.tensor(share, dtype=torch.float64, requires_grad=True)
    multipliers = torch.tensor([3.0, 7.0], dtype=torch.float64, requires_grad=True)
    value = lagrangian(p, target, multipliers)
    assert float(value.detach()) == pytest.approx(slow.lagrangian(share, target, 3.0, 7.0))
    value.backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert multipliers.grad is not None
    step = 1e-6
    up, down = (slow.lagrangian(share + d, target, 3.0, 7.0) for d in (step, -step))
    assert float(p.grad) == pytest.approx((up - down) / (2 * step), abs=1e-5)
    gap = abs(share - target)
    assert multipliers.grad.tolist() == pytest.approx([-gap, -(gap**2)])


def test_the_share_counts_every_parameter_that_goes_with_a_unit() -> None:
    model = student()
    masks = masked(model, spread=2.0)
    kept = whole = 0.0
    for name, depth, width, heads, hidden in (("image", 2, 32, 4, 128), ("text", 1, 16, 2, 64)):
        values, at = masks.towers[name].log_alpha.tolist(), 0
        for _ in range(depth):
            # W_q, W_k, W_v with their biases, and W_proj; then W_up with its bias, and W_down.
            for units, each in ((heads, width // heads * (4 * width + 3)), (hidden, 2 * width + 1)):
                for value in values[at : at + units]:
                    kept += slow.sigmoid(value - slow.BETA * float(torch.tensor(1 / 11).log())) * each
                    whole += each
                at += units
    assert float(masks.share().detach()) == pytest.approx(kept / whole, rel=1e-5)


def test_the_target_comes_down_in_a_straight_line_and_only_training_counts() -> None:
    masks = masked(student(), keep=0.6)
    masks.schedule(4)
    seen = []
    for _ in range(6):
        seen.append(masks.target)
        masks.train()()
    assert seen == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.6, 0.6])
    masks.eval()()
    assert int(masks.step) == 6
    masks.schedule(0)
    masks.step.zero_()
    assert masks.target == pytest.approx(0.6)


@pytest.mark.parametrize("towers", [("image", "text"), ("image",), ("text",)])
def test_gradients_reach_the_masks_of_every_head_and_unit(towers: Sequence[str]) -> None:
    model = student().train()
    masks = masked(model, towers, spread=0.1)
    other = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    for _ in range(12):
        (model.encode_image(PIXELS) * other).sum().backward()  # type: ignore[no-untyped-call]
        (model.encode_text(IDS) * other).sum().backward()  # type: ignore[no-untyped-call]
    for name in towers:
        gradient = masks.towers[name].log_alpha.grad
        assert gradient is not None
        assert float((gradient != 0).float().mean()) > 0.9, name
        masks.towers[name].log_alpha.grad = None
    penalty, share = masks()
    assert 0.5 < float(share.detach()) < 1
    penalty.backward()
    assert all(bool((masks.towers[name].log_alpha.grad > 0).all()) for name in towers)
    assert bool((masks.multipliers.grad < 0).all())


def test_fresh_masks_change_nothing_and_neither_does_their_hardening(caplog: pytest.LogCaptureFixture) -> None:
    model = student()
    before, size = vectors(model), sum(p.numel() for p in model.parameters())
    masks = masked(model)
    torch.testing.assert_close(vectors(model), before, atol=1e-6, rtol=0)
    masks.harden(model)
    torch.testing.assert_close(vectors(model), before, atol=1e-6, rtol=0)
    assert sum(p.numel() for p in model.parameters()) == size
    assert "100 % of what they cover is kept, not 50 %" in caplog.text


def test_hardening_leaves_what_the_masked_student_said_in_fewer_weights() -> None:
    model = student()
    before, size = vectors(model), sum(p.numel() for p in model.parameters())
    masks = masked(model, spread=2.0)
    share, said = float(masks.share().detach()), vectors(model)
    assert float((said - before).abs().max()) > 1e-2
    whole = sum(float(each.cost.sum()) for each in masks.towers.values())
    masks.harden(model)
    torch.testing.assert_close(vectors(model), said, atol=1e-5, rtol=0)
    gone = size - sum(p.numel() for p in model.parameters())
    # Rounded to whole units in each of six groups.
    assert 1 - gone / whole == pytest.approx(share, abs=0.05)
    # The masks are off: nothing is drawn any more.
    model.train()
    torch.testing.assert_close(model.encode_image(PIXELS), model.encode_image(PIXELS), atol=0, rtol=0)


def test_gates_are_drawn_in_training_and_the_same_for_every_text_of_a_forward() -> None:
    model = student().train()
    masked(model, spread=0.1)
    torch.manual_seed(0)
    first, second = model.encode_image(PIXELS), model.encode_image(PIXELS)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.manual_seed(0)
    torch.testing.assert_close(model.encode_image(PIXELS), first, atol=0, rtol=0)
    # 80 texts of two lengths are encoded in two groups.
    ids = torch.zeros(80, 6, dtype=torch.int64)
    ids[:, 0], ids[:40, 1], ids[40:, 5] = 1, 2, 2
    out = model.encode_text({"input_ids": ids})
    torch.testing.assert_close(out[:40], out[:1].expand(40, -1), atol=1e-5, rtol=0)
    alone = model.encode_text({"input_ids": ids[:1]})
    assert not torch.allclose(alone, out[:1], atol=1e-3)


def test_the_gates_are_gone_after_a_forward_that_failed() -> None:
    model = student()
    masks = masked(model, spread=2.0)
    with pytest.raises(AssertionError, match="Input height"):
        model.encode_image(torch.zeros(1, 3, 40, 40))
    image = masks.towers["image"]
    assert isinstance(image, TowerMasks)
    assert all(gate.value is None for _, *gates in image._gates for gate in gates)


def test_masks_are_for_towers_that_are_there_and_learn() -> None:
    with pytest.raises(ConfigError, match="the student has no text tower"):
        masked(tiny.student(image=VIT, text=None, dim=16))
    frozen = tiny.student(image={**VIT, "train": "head"})
    with pytest.raises(ConfigError, match="the image tower's trunk is frozen, and what is frozen is not pruned"):
        masked(frozen)
    assert not any(isinstance(module, SelfAttention) for module in frozen.modules())
