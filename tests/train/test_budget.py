"""The rules of a budget: what is read, what is chosen, and what is refused in words."""

from __future__ import annotations

import pytest

from clipette.errors import ConfigError
from clipette.train import budget as rules
from clipette.train.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds", "gmacs"),
    [
        ("10m", 600, None),
        ("90s", 90, None),
        ("1.5h", 5400, None),
        ("10 min", 600, None),
        ("0.1gmacs", None, 0.1),
        ("0.1 GMACs", None, 0.1),
        ("80mmacs", None, 0.08),
        ("2h, .3gmac", 7200, 0.3),
    ],
)
def test_a_budget_is_read(text: str, seconds: float | None, gmacs: float | None) -> None:
    read = parse_budget(text)
    assert read.seconds == (None if seconds is None else pytest.approx(seconds))
    assert read.gmacs == (None if gmacs is None else pytest.approx(gmacs))


@pytest.mark.parametrize(
    "text", ["", "10", "ten minutes", "10m,5m", "0s", "-5m", "10m,", "3 flops", "1gmacs,2mmacs", "9" * 400 + "m"]
)
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"10m"):
        parse_budget(text)


def test_losses_follow_what_the_data_has() -> None:
    def terms(captions: bool, classes: bool, labels: float, *, trusted: bool = False) -> set[str]:
        return set(rules.losses_for(captions=captions, classes=classes, labels=labels, trusted=trusted))

    captions = {"image_cosine", "in_batch_kl", "clip"}
    assert terms(True, False, 0.0) == terms(True, True, 0.0) == captions
    assert terms(True, True, 0.05) == captions | {"class_text_ce"}
    errs = {"class_text_ce", "image_to_teacher"}
    assert terms(False, True, 1.0) == errs
    assert terms(True, True, 1.0) == errs | {"clip"}
    right = {"class_text_ce", "class_text_kl"}
    assert terms(False, True, 1.0, trusted=True) == right
    assert terms(True, True, 1.0, trusted=True) == right | {"in_batch_kl"}
    names = {"image_cosine", "class_text_kl"}
    assert terms(False, True, 0.0) == terms(False, True, 0.9) == terms(False, True, 0.0, trusted=True) == names
    assert terms(False, False, 0.0) == {"image_cosine"}


def test_a_teacher_is_trusted_that_is_nearly_as_right_as_labels_make_it() -> None:
    assert rules.trusts(rules.Worth(0.53, 0.60))
    assert not rules.trusts(rules.Worth(0.56, 0.79))
    assert not rules.trusts(None)


def test_smaller_sides_are_multiples_below_the_teachers() -> None:
    assert rules.sides_below(224) == (208, 192, 176, 160, 144, 128, 112, 96)
    assert rules.sides_below(48) == (32,)
    assert rules.sides_below(32) == ()


def test_a_third_of_the_teacher_is_the_usual_limit_and_its_own_trunk_goes_first() -> None:
    found = rules.candidates(224, 0.3, shrinks=True)
    kept = rules.affordable(found, Budget(seconds=600), 0.3)
    assert kept[0].inherits
    assert kept[0].side == 128
    assert all(each.gmacs <= 0.1 for each in kept)
    assert kept == sorted(kept, key=lambda each: (not each.inherits, -each.gmacs))


def test_gmacs_asked_for_are_the_limit() -> None:
    found = rules.candidates(224, 0.3, shrinks=True)
    assert rules.affordable(found, Budget(gmacs=0.2), 0.3)[0].side == 176
    with pytest.raises(ConfigError, match=r"the cheapest has 0\.05"):
        rules.affordable(found, Budget(gmacs=0.001), 0.3)


def test_a_teacher_too_small_for_a_third_gives_its_cheapest_student() -> None:
    found = rules.candidates(48, 0.009, shrinks=True)
    assert [each.side for each in rules.affordable(found, Budget(seconds=60), 0.009)] == [32]
    with pytest.raises(ConfigError, match="cannot be made smaller"):
        rules.affordable(rules.candidates(32, 0.001, shrinks=True), Budget(seconds=60), 0.001)


def test_a_large_transformer_gets_a_student_of_the_ladder() -> None:
    found = rules.candidates(224, 16.9, shrinks=False)
    first = rules.affordable(found, Budget(), 16.9)[0]
    assert first.name == "convnext_tiny"
    assert not first.inherits


def test_views_are_as_many_as_their_share_of_the_time_allows() -> None:
    assert rules.views_for(None, 10_000, 1.0) == rules.MOST_VIEWS
    assert rules.views_for(1000, 100, 0.01) == rules.MOST_VIEWS
    assert rules.views_for(1000, 1000, 0.15) == 2
    with pytest.raises(ConfigError, match=r"give 13m or more"):
        rules.views_for(600, 1000, 0.3)


def test_steps_fit_the_time_or_the_student_is_too_large() -> None:
    # 1,280 images, 128 a step: 10 steps an epoch.
    fits = rules.schedule_for(50.0, 1.0, 1280, inherits=True)
    assert fits is not None
    assert (fits.steps, fits.batch, fits.epochs) == (50, 128, 5.0)
    assert rules.schedule_for(29.0, 1.0, 1280, inherits=True) is None
    assert rules.schedule_for(50.0, 1.0, 1280, inherits=False) is None


def test_time_beyond_the_most_useful_epochs_is_given_back() -> None:
    long = rules.schedule_for(1e6, 1.0, 1280, inherits=True)
    assert long is not None
    assert long.epochs == rules.MOST_EPOCHS[True]


def test_small_sets_keep_four_steps_an_epoch() -> None:
    assert rules.batch_for(24) == 6
    assert rules.batch_for(100_000) == rules.BATCH
    assert [rules.batch_for(images) for images in (2, 3, 9)] == [2, 2, 2]
    with pytest.raises(ConfigError, match="two at least"):
        rules.batch_for(1)
    assert rules.head_schedule(24).frozen
