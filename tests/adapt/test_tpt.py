"""TPT against its twin: which views are believed, the entropy of their mean, one AdamW step by hand, images apart."""

from __future__ import annotations

import math

import pytest
import torch
from tests.adapt.clusters import doubles, slopes
from tests.reference import adapters as twin
from torch import Tensor

from clipette.adapt.tpt import TPTSettings, confident, marginal_entropy, tune_prompt
from clipette.errors import ConfigError, InternalError


@pytest.mark.parametrize(("views", "share"), [(10, 0.1), (10, 0.3), (9, 0.1), (7, 1.0), (64, 0.1)])
def test_the_surest_views_are_the_twins(views: int, share: float) -> None:
    logits = 3 * doubles(views, 4)
    assert confident(logits, share).tolist() == twin.confident_views(logits.tolist(), share)


def test_entropy_is_the_twins_with_its_gradient() -> None:
    logits = (2 * doubles(5, 4)).requires_grad_()
    value = marginal_entropy(logits)
    assert value.item() == pytest.approx(twin.entropy_of_mean(logits.tolist()))
    value.backward()
    expected = slopes(lambda z: twin.entropy_of_mean(z.tolist()), logits.detach())
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-8)


def test_two_views_by_hand() -> None:
    """Views (¾, ¼) and (¼, ¾) have the mean (½, ½): ln 2."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    assert marginal_entropy(logits).item() == pytest.approx(math.log(2))
    sure = torch.tensor([[900.0, 0.0], [800.0, 0.0]], requires_grad=True)
    marginal_entropy(sure).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def linear(views: Tensor) -> object:
    """Logits of a prompt [M, W] that simply multiplies features [V, M·W] by class directions."""
    directions = doubles(3, views.shape[-1], seed=7)

    def logits_of(prompt: Tensor) -> Tensor:
        classes = directions + prompt.flatten(-2)[..., None, :]
        return 0.3 * views @ classes.transpose(-1, -2) * directions.sum(dim=1)

    return logits_of


def test_one_step_is_adamw_by_hand() -> None:
    views, prompt = doubles(20, 6, seed=3), doubles(2, 3, seed=4)
    logits_of = linear(views)
    settings = TPTSettings(views=20, share=0.5, lr=0.01)
    kept = prompt.clone()
    tuned = tune_prompt(logits_of, prompt, settings)  # type: ignore[arg-type]
    rows = twin.confident_views(logits_of(prompt).tolist(), 0.5)  # type: ignore[operator]

    def loss(at: Tensor) -> float:
        z = logits_of(at).tolist()  # type: ignore[operator]
        return twin.entropy_of_mean([z[row] for row in rows])

    gradient = slopes(loss, prompt)
    assert gradient.abs().min() > 2e-5
    # The first step of Adam has no memory: it goes by g / (|g| + eps).
    expected = prompt * (1 - 0.01 * 0.01) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(tuned, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(prompt, kept)
    assert not tuned.requires_grad


def test_steps_lower_the_entropy_of_the_views_chosen_first() -> None:
    views, prompt = doubles(20, 6, seed=3), doubles(2, 3, seed=4)
    logits_of = linear(views)
    rows = confident(logits_of(prompt), 0.2)  # type: ignore[operator]
    entropies = [
        marginal_entropy(logits_of(tune_prompt(logits_of, prompt, TPTSettings(share=0.2, steps=n)))[rows])  # type: ignore[arg-type,operator]
        for n in (0, 1, 4, 16)
    ]
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] > entropies[-1]


def test_no_step_is_the_prompt_to_the_last_bit() -> None:
    prompt = doubles(2, 3)
    assert torch.equal(tune_prompt(linear(doubles(8, 6)), prompt, TPTSettings(steps=0)), prompt)  # type: ignore[arg-type]


def test_many_images_at_once_are_one_at_a_time_and_none_remembers() -> None:
    views, prompt = doubles(3, 20, 6, seed=5), doubles(2, 3, seed=4)
    settings = TPTSettings(share=0.2, steps=3)
    together = tune_prompt(linear(views), prompt.expand(3, 2, 3), settings)  # type: ignore[arg-type]
    alone = torch.stack([tune_prompt(linear(each), prompt, settings) for each in views])  # type: ignore[arg-type]
    torch.testing.assert_close(together, alone)
    with torch.no_grad():
        torch.testing.assert_close(tune_prompt(linear(views[1]), prompt, settings), alone[1])  # type: ignore[arg-type]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="share 0"):
        TPTSettings(share=0.0)
    with pytest.raises(InternalError, match="views, classes"):
        tune_prompt(lambda prompt: prompt.sum().reshape(1), doubles(2, 3))
