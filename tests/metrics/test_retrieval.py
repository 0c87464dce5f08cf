"""Ranking measures against their twins, against ir-measures, and under ties."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from clipette.errors import DataError, ModelError
from clipette.metrics import retrieval

from .twins import expected_measures, unit

KS = (1, 3, 5)


@st.composite
def scored_queries(draw: st.DrawFn) -> tuple[np.ndarray, list[set[int]]]:
    items = draw(st.integers(1, 6))
    queries = draw(st.integers(1, 4))
    scores = [[draw(st.integers(0, 3)) / 4 for _ in range(items)] for _ in range(queries)]
    relevant = [draw(st.sets(st.integers(0, items - 1), min_size=1)) for _ in range(queries)]
    return np.array(scores), relevant


def pairs(relevant: list[set[int]], items: int) -> retrieval.Relevance:
    query = [q for q, each in enumerate(relevant) for _ in each]
    item = [i for each in relevant for i in sorted(each)]
    return retrieval.relevance(query, item, queries=len(relevant), items=items)


@settings(max_examples=60, deadline=None)
@given(scored_queries())
def test_every_measure_is_the_mean_over_all_orders_of_ties(case: tuple[np.ndarray, list[set[int]]]) -> None:
    scores, relevant = case
    measured = retrieval.measure(retrieval.rank_relevant_of_scores(scores, pairs(relevant, scores.shape[1])), KS)
    for query, row in enumerate(scores):
        for name, value in expected_measures(list(row), relevant[query], KS).items():
            assert measured[name][query] == pytest.approx(value, abs=1e-12), name


def test_agrees_with_ir_measures_where_nothing_ties() -> None:
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 30, 8), unit(rng, 150, 8)
    image_of_text = rng.integers(0, 30, 150)
    image_of_text[:30] = np.arange(30)
    relevant = retrieval.relevance(image_of_text, np.arange(150), queries=30, items=150)
    ks = (1, 5, 10)
    ours = retrieval.measure(retrieval.rank_relevant(images, texts, relevant), ks)
    scores = retrieval.cosines(images, texts)
    assert all(len(set(row.tolist())) == 150 for row in scores), "the draw must be free of ties"
    qrels = [ir_measures.Qrel(str(i), str(t), 1) for t, i in enumerate(image_of_text)]
    run = [ir_measures.ScoredDoc(str(q), str(t), float(scores[q, t])) for q in range(30) for t in range(150)]
    names = {"mrr": RR, "map": AP}
    for k in ks:
        names |= {f"hit@{k}": Success @ k, f"recall@{k}": R @ k, f"precision@{k}": P @ k, f"ndcg@{k}": nDCG @ k}
    theirs = ir_measures.calc_aggregate(list(names.values()), qrels, run)
    for name, measure in names.items():
        assert ours[name].mean() == pytest.approx(theirs[measure], abs=1e-9), name


def test_a_constant_model_scores_chance_in_both_directions() -> None:
    same = np.tile(unit(np.random.default_rng(0), 1, 37), (203, 1))
    relevant = retrieval.relevance(np.arange(203), np.arange(203), queries=203, items=203)
    for direction in (relevant, relevant.transposed()):
        figures = retrieval.measure(retrieval.rank_relevant(same, same, direction, block_bytes=4 * 203 * 7))
        assert figures["hit@1"] == pytest.approx(np.full(203, 1 / 203))
        assert figures["recall@10"] == pytest.approx(np.full(203, 10 / 203))
        assert figures["mrr"] == pytest.approx(np.full(203, np.mean(1 / np.arange(1, 204))))


def test_the_order_in_which_items_are_stored_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    queries = unit(rng, 12, 5)
    gallery = np.repeat(unit(rng, 10, 5), 3, axis=0)  # every item three times: ties everywhere
    item = rng.integers(0, 30, 24)
    query = np.arange(24) % 12
    order = rng.permutation(30)
    where = np.argsort(order)
    before = retrieval.relevance(query, item, queries=12, items=30)
    after = retrieval.relevance(query, where[item], queries=12, items=30)
    first = retrieval.measure(retrieval.rank_relevant(queries, gallery, before))
    second = retrieval.measure(retrieval.rank_relevant(queries, gallery[order], after))
    for name in first:
        assert second[name] == pytest.approx(first[name], abs=1e-12), name


@pytest.mark.parametrize("per_query", [1, 5, 40])
def test_blocks_and_both_ways_of_counting_give_the_same(per_query: int) -> None:
    rng = np.random.default_rng(per_query)
    queries, gallery = unit(rng, 23, 6), np.concatenate([unit(rng, 50, 6)] * 2)
    query = np.repeat(np.arange(23), per_query)
    item = np.concatenate([rng.permutation(100)[:per_query] for _ in range(23)])
    relevant = retrieval.relevance(query, item, queries=23, items=100)
    whole = retrieval.rank_relevant(queries, gallery, relevant)
    blocks = retrieval.rank_relevant(queries, gallery, relevant, block_bytes=4 * 100 * 5)
    scores = retrieval.cosines(queries, gallery)
    for ranks in (whole, blocks):
        for m, q in enumerate(ranks.query):
            own = scores[q, item[query == q]]
            level = np.sort(scores[q])[::-1][ranks.above[m]]
            assert ranks.above[m] == (scores[q] > level).sum()
            assert ranks.tied[m] == (scores[q] == level).sum()
            assert ranks.relevant[m] == (own == level).sum()
            assert ranks.relevant_above[m] == (own > level).sum()
        assert ranks.relevant.sum() == len(query)


def test_image_to_image_leaves_the_query_out() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    relevant = retrieval.relevance_of_classes(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    figures = retrieval.measure(retrieval.rank_relevant(vectors, vectors, relevant, exclude_self=True), (1,))
    assert figures["hit@1"].tolist() == [1.0] * 4  # its twin, not itself
    assert figures["recall@1"].tolist() == [1.0] * 4  # itself is not among the relevant ones either


def test_relevance_of_classes_is_the_loop_over_labels() -> None:
    rng = np.random.default_rng(5)
    left, right = rng.integers(0, 4, 9), rng.integers(0, 5, 13)
    made = retrieval.relevance_of_classes(left, right)
    found = set(zip(made.query.tolist(), made.item.tolist(), strict=True))
    assert found == {(q, i) for q in range(9) for i in range(13) if left[q] == right[i]}


def test_hit_and_recall_are_different_things() -> None:
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    figures = retrieval.measure(retrieval.rank_relevant_of_scores(scores, pairs([{0, 3}], 4)), (1, 2))
    assert figures["hit@1"][0] == 1.0
    assert figures["recall@1"][0] == 0.5
    assert figures["precision@2"][0] == 0.5


def test_expected_first_rank() -> None:
    scores = np.array([[3.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    made = retrieval.relevance([0, 1], [1, 2], queries=3, items=4)
    ranks = retrieval.expected_first_rank(retrieval.rank_relevant_of_scores(scores, made))
    assert ranks[:2].tolist() == [3.0, 3.0]
    assert np.isnan(ranks[2])


def test_bad_input_is_refused_in_words() -> None:
    vectors = unit(np.random.default_rng(0), 3, 4)
    with pytest.raises(DataError, match=r"item index outside 0\.\.2"):
        retrieval.relevance([0], [3], queries=3, items=3)
    one = retrieval.relevance([0], [0], queries=3, items=3)
    with pytest.raises(DataError, match="3 queries and 3 items"):
        retrieval.rank_relevant(vectors[:2], vectors, one)
    broken = vectors.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ModelError, match="row 1"):
        retrieval.rank_relevant(broken, vectors, one)
    with pytest.raises(DataError, match="at least 1"):
        retrieval.measure(retrieval.rank_relevant(vectors, vectors, one), (0,))
