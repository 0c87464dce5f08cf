"""Thresholds keep the rate they state: by the definition, by simulation, under contamination and growth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipette.errors import ConfigError
from clipette.index.scales import KEPT, LEAST_REACH, METHODS, Scale, gumbel, needed, scale_of

STEP = 2.0**-20
RATES = st.sampled_from([0.05, 0.1, 0.25, 0.5])
SCORES = st.lists(st.integers(-50, 50).map(lambda n: n / 64), min_size=19, max_size=60)


@given(SCORES, RATES, st.integers(-60, 60))
def test_p_values_by_counting(scores: list[float], alpha: float, at: int) -> None:
    score = at / 64
    above = Scale("mismatched", tuple(sorted(scores)), alpha, 10)
    assert above.p_value(score) == (1 + sum(b >= score for b in scores)) / (len(scores) + 1)
    below = Scale("typical", tuple(sorted(scores)), alpha, 10)
    assert below.p_value(score) == (1 + sum(b <= score for b in scores)) / (len(scores) + 1)


@given(SCORES, RATES, st.integers(-60, 60))
def test_the_threshold_is_where_the_p_value_says_so(scores: list[float], alpha: float, at: int) -> None:
    for method in METHODS:
        scale = Scale(method, tuple(sorted(scores)), alpha, 10)
        for score in (at / 64, scale.threshold(), scale.threshold() - STEP, scale.threshold() + STEP):
            p = scale.p_value(score)
            if method == "robust" and abs(score - scale.threshold()) < 2 * STEP:
                continue  # rounding of the exponentials
            accepted = p > alpha + 1e-9 if method == "typical" else p <= alpha + 1e-9
            assert accepted == (score >= scale.threshold()), (method, score)


@given(SCORES, RATES, st.floats(0.3, 1.5), st.floats(-0.2, 0.4), st.integers(-60, 60))
def test_the_threshold_of_each_query_lies_on_its_own_scale(
    scores: list[float], alpha: float, reach: float, offset: float, at: int
) -> None:
    plain = Scale("mismatched", tuple(sorted(scores)), alpha, 10)
    moved = replace(plain, offset=offset)
    assert moved.threshold(reach) == pytest.approx(offset + reach * plain.threshold(), abs=3 * STEP)
    assert moved.p_value(offset + reach * (at + 0.5) / 64, reach) == plain.p_value((at + 0.5) / 64)


def test_reach_is_the_distance_from_what_all_texts_share() -> None:
    scale = Scale("mismatched", (0.1,) * 9, 0.1, 10, centre=(0.6, 0.0, 0.8))
    assert scale.reach(np.array([0, 1, 0], np.float32)) == pytest.approx(math.sqrt(2))
    assert scale.reach(np.array([0.6, 0, 0.8], np.float32)) == LEAST_REACH
    assert Scale("typical", (0.1,) * 9, 0.1, 10).reach(np.ones(3, np.float32)) == 1.0


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("law", ["normal", "gumbel", "lognormal"])
def test_mismatched_keeps_its_rate_whatever_the_law(law: str, alpha: float) -> None:
    rng = np.random.default_rng(3)
    draw = {
        "normal": lambda n: 0.25 + 0.02 * rng.standard_normal(n),
        "gumbel": lambda n: rng.gumbel(0.25, 0.02, n),
        "lognormal": lambda n: 0.1 * rng.lognormal(0.0, 0.5, n),
    }[law]
    accepted = [(draw(200) >= scale_of("mismatched", draw(99), alpha, 100).threshold()).mean() for _ in range(400)]
    # Over calibrations and queries the rate is at most alpha, and within 1 / (n + 1) of it.
    error = 3 * float(np.std(accepted)) / math.sqrt(len(accepted))
    assert alpha - 0.01 - error <= float(np.mean(accepted)) <= alpha + error


def test_typical_refuses_few_of_its_own() -> None:
    rng = np.random.default_rng(4)
    refused = [(rng.random(200) < scale_of("typical", rng.random(99), 0.1, 100).threshold()).mean() for _ in range(400)]
    assert float(np.mean(refused)) == pytest.approx(0.1, abs=0.01)


@given(SCORES, RATES, st.lists(st.integers(0, 64), min_size=60, max_size=60))
def test_answered_queries_among_them_only_make_it_stricter(scores: list[float], alpha: float, lifts: list[int]) -> None:
    lifted = [score + lift / 64 for score, lift in zip(scores, lifts, strict=False)]
    clean = Scale("mismatched", tuple(sorted(scores)), alpha, 10)
    assert Scale("mismatched", tuple(sorted(lifted)), alpha, 10).threshold() >= clean.threshold()


def test_robust_when_a_third_of_the_background_has_an_answer() -> None:
    rng = np.random.default_rng(5)
    empty, answered = rng.gumbel(0.25, 0.01, 600), 0.34 + 0.02 * rng.standard_normal(300)
    background = np.concatenate([empty, answered])
    fresh = rng.gumbel(0.25, 0.01, 20_000)
    robust = scale_of("robust", background, 0.1, 100)
    plain = scale_of("mismatched", background, 0.1, 100)
    assert (answered < plain.threshold()).mean() > 0.6, "what the robust method is for"
    assert (answered < robust.threshold()).mean() < 0.05
    assert 0.01 < (fresh >= robust.threshold()).mean() <= 0.1


def test_gumbels_law_is_found_again() -> None:
    sample = np.random.default_rng(6).gumbel(0.3, 0.02, 20_000)
    location, spread = gumbel(sample)
    assert (location, spread) == (pytest.approx(0.3, abs=0.001), pytest.approx(0.02, rel=0.05))
    scale = scale_of("robust", sample, 0.05, 100)
    assert (sample >= scale.threshold()).mean() == pytest.approx(0.05, abs=0.01)
    assert gumbel(np.full(30, 0.2))[1] > 0


@pytest.mark.parametrize("method", ["mismatched", "robust"])
def test_growth_moves_the_threshold_as_maxima_move(method: str) -> None:
    rng = np.random.default_rng(7)

    def best(items: int, queries: int) -> np.ndarray:
        return np.asarray(rng.gumbel(0.0, 0.01, (queries, items)).max(axis=1))

    scale = scale_of(method, best(200, 800), 0.1, 200)  # type: ignore[arg-type]
    fresh = best(1600, 2000)
    assert (fresh >= scale.threshold()).mean() > 0.5, "eight times as many items, and no correction"
    assert (fresh >= scale.threshold(items=1600)).mean() == pytest.approx(0.1, abs=0.06)
    assert scale.threshold(items=100) == scale.threshold(items=200), "a smaller collection: the rate stays below"
    assert scale.confidence(0.06, items=1600) < scale.confidence(0.06, items=200)
    typical = scale_of("typical", best(200, 100), 0.1, 200)
    assert typical.threshold(items=1600) == typical.threshold()


def test_confidence_rises_with_the_score() -> None:
    scores = np.random.default_rng(8).gumbel(0.2, 0.02, 99)
    for method in METHODS:
        scale = scale_of(method, scores, 0.1, 10)
        values = [scale.confidence(score) for score in np.linspace(-1, 1, 200)]
        assert values == sorted(values)
        assert 0.0 <= values[0] < 0.05
        assert 0.95 < values[-1] <= 1.0


def test_false_rejects_are_measured() -> None:
    scale = scale_of("mismatched", np.linspace(0.1, 0.2, 99), 0.1, 10, answered=[0.15, 0.25, 0.3, 0.1])
    assert (scale.false_reject, scale.answered) == (0.5, 4)
    assert scale_of("mismatched", np.linspace(0.1, 0.2, 99), 0.1, 10).false_reject is None


@pytest.mark.parametrize("method", ["mismatched", "robust"])
def test_the_rate_is_raised_where_it_would_refuse_most_answers(method: str) -> None:
    rng = np.random.default_rng(11)
    empty, answered = rng.gumbel(0.2, 0.02, 199), rng.gumbel(0.21, 0.02, 101)
    scale = scale_of(method, empty, 0.05, 10, offset=0.1, answered=answered)  # type: ignore[arg-type]
    assert scale.false_reject is not None
    assert 0.45 <= scale.false_reject <= 0.5
    assert scale.alpha == pytest.approx((rng.gumbel(0.2, 0.02, 5000) + 0.1 >= scale.threshold()).mean(), abs=0.1)
    assert scale.alpha > 0.2
    apart = scale_of(method, empty, 0.05, 10, offset=0.1, answered=answered + 0.2)  # type: ignore[arg-type]
    assert (apart.alpha, apart.false_reject) == (0.05, 0.0)
    below = scale_of(method, empty, 0.05, 10, answered=empty - 1.0)  # type: ignore[arg-type]
    assert 0.9 < below.alpha < 1.0, "worse than a coin"


def test_many_scores_are_thinned_without_moving_the_threshold() -> None:
    scores = np.random.default_rng(9).normal(0.2, 0.03, 30_001)
    scale = scale_of("mismatched", scores, 0.05, 10)
    assert len(scale.scores) == KEPT
    assert scale.threshold() == pytest.approx(float(np.quantile(scores, 0.95)), abs=1e-3)


def test_it_survives_the_manifest() -> None:
    for method in METHODS:
        centre = np.array([0.1, 0.7, -0.2], np.float32)
        scores = np.random.default_rng(1).random(50)
        scale = scale_of(method, scores, 0.1, 77, centre=centre, offset=0.123, answered=[0.5])
        assert Scale.from_json(json.loads(json.dumps(scale.to_json()))) == scale


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scale("mismatched", (0.1,) * 8, 0.1, 1), "8 queries are too few .* at least 9"),
        (lambda: Scale("mismatched", (0.1,) * 9, 0.0, 1), "a rate of 0.0"),
        (lambda: Scale("guess", (0.1,) * 9, 0.1, 1), "no method 'guess'"),  # type: ignore[arg-type]
    ],
)
def test_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


def test_how_many_it_takes() -> None:
    assert [needed(alpha) for alpha in (0.5, 0.1, 0.05, 0.01, 0.3)] == [1, 9, 19, 99, 3]
