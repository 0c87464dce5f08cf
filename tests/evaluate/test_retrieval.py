"""Image-text retrieval against plain ranking of cosines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipette.data.dataset import Dataset
from clipette.errors import DataError, ModelError
from clipette.evaluate.encoding import Settings
from clipette.evaluate.retrieval import retrieval
from clipette.types import Sample

from .fakes import captioned, classified, encoder_of, unit


def plain_hits(dataset: Dataset, encoder: object, k: int) -> tuple[float, float]:
    captions = [(i, c) for i, sample in enumerate(dataset.samples) for c in sample.captions]
    images = np.stack([encoder.images[sample.key] for sample in dataset.samples])
    texts = np.stack([encoder.texts[caption] for _, caption in captions])
    forward = [any(captions[t][0] == i for t in np.argsort(-(texts @ image))[:k]) for i, image in enumerate(images)]
    backward = [captions[t][0] in np.argsort(-(images @ text))[:k] for t, text in enumerate(texts)]
    return float(np.mean(forward)), float(np.mean(backward))


def test_figures_are_those_of_plain_ranking() -> None:
    data = captioned(30)
    encoder = encoder_of(data, noise=0.9)
    result = retrieval(encoder, data)
    hits = {k: plain_hits(data, encoder, k) for k in (1, 5, 10)}
    for k, (forward, backward) in hits.items():
        assert result.i2t[f"hit@{k}"].value == pytest.approx(forward)
        assert result.t2i[f"hit@{k}"].value == pytest.approx(backward)
        assert result.t2i[f"recall@{k}"].value == pytest.approx(backward), "one relevant image a caption"
    assert 0.1 < hits[1][0] < 0.95
    assert result.i2t["recall@1"].value < result.i2t["hit@1"].value, "hit is not recall where captions are several"
    assert result.mean_recall.value == pytest.approx(np.mean([value for pair in hits.values() for value in pair]))
    assert result.mean_recall.low < result.mean_recall.value < result.mean_recall.high
    assert (result.images, result.texts) == (30, 60)
    assert set(result.i2t) == {f"{m}@{k}" for m in ("hit", "recall", "precision", "ndcg") for k in (1, 5, 10)} | {
        "mrr",
        "map",
        "result_entropy",
        "coverage",
    }


def test_other_ks_leave_mean_recall_what_it_is() -> None:
    data = captioned()
    encoder = encoder_of(data)
    default, other = retrieval(encoder, data), retrieval(encoder, data, ks=(3,))
    assert other.mean_recall == default.mean_recall
    assert "hit@3" in other.i2t
    assert "hit@1" not in other.i2t


def test_text_intervals_resample_images_with_their_captions() -> None:
    samples = tuple(Sample(f"image{i}", captions=tuple(f"{i}.{j}" for j in range(5))) for i in range(40))
    data = Dataset("fake:five", samples)
    encoder = encoder_of(data, noise=0.0)  # an image's five captions are equal: they hit or miss together
    for sample in samples[::2]:
        wrong = unit(np.random.default_rng(int(sample.key[5:])).standard_normal(8))
        encoder.texts |= dict.fromkeys(sample.captions, wrong)
    result = retrieval(encoder, data)
    figure = result.t2i["hit@1"]
    share = figure.value
    assert figure.count == 200
    independent = 2 * 1.96 * np.sqrt(share * (1 - share) / 200)
    assert figure.high - figure.low > 1.7 * independent


def test_a_constant_model_is_at_chance_and_identical_captions_cost_nobody() -> None:
    data = captioned(20)
    encoder = encoder_of(data)
    encoder.images = dict.fromkeys(encoder.images, unit(np.ones(8)))
    encoder.texts = dict.fromkeys(encoder.texts, unit(np.ones(8)))
    result = retrieval(encoder, data)
    assert result.t2i["hit@1"].value == pytest.approx(1 / 20)
    assert result.i2t["precision@1"].value == pytest.approx(np.mean([1 + i % 3 for i in range(20)]) / result.texts)
    assert result.t2i["coverage"].value == 0.5, "one list of ten answers every query"


def test_images_without_captions_and_failures_are_counted() -> None:
    base = captioned(20)
    data = replace(base, samples=(*base.samples, Sample("bare")))
    encoder = encoder_of(base, broken=frozenset({"image3"}))
    result = retrieval(encoder, data)
    assert (result.images, result.without_captions, len(result.failures)) == (19, 1, 1)
    assert result.texts == sum(len(s.captions) for s in base.samples) - len(base.samples[3].captions)
    with pytest.raises(DataError, match="1 of 20 images"):
        retrieval(encoder, data, settings=Settings(max_failures=0.01))
    with pytest.raises(DataError, match="no sample has captions"):
        retrieval(encoder_of(classified()), classified())


def test_mixed_spaces_are_refused() -> None:
    data = captioned()
    student, teacher = encoder_of(data), encoder_of(data, space="another")
    with pytest.raises(ModelError, match="cannot be compared"):
        retrieval(student, data, text_encoder=teacher)


def test_examples_name_what_came_back() -> None:
    data = captioned()
    result = retrieval(encoder_of(data, noise=0.0), data, examples=3)
    assert [example.direction for example in result.examples] == ["i2t"] * 3 + ["t2i"] * 3
    for example in result.examples:
        assert example.relevant[0], "without noise the first result is right"
        assert len(example.results) == len(example.relevant) == 5
