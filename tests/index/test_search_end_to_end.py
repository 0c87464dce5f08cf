"""From rendered pictures to answers: a bundle without PyTorch at work, an index on disk, and the offline evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipette.data.dataset import Dataset
from clipette.data.world import WorldSpec, world_samples
from clipette.evaluate.encoding import Settings
from clipette.evaluate.retrieval import retrieval
from clipette.export.bundle import export_bundle
from clipette.index.build import build_index
from clipette.index.calibrate import calibrate, calibration_for, keep_calibration
from clipette.index.clicked import evaluate_clicks
from clipette.index.clicks import Click, ClickLog, read_clicks
from clipette.index.collection import Collection
from clipette.index.mixed import measure_mixed
from clipette.index.opening import open_index
from clipette.index.query import Query
from clipette.index.search import How, Searcher
from clipette.metrics.bootstrap import Bootstrap
from clipette.models.inference import TorchEncoder
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.runtime import load_bundle
from clipette.runtime.encoder import BundleEncoder

COUNT = 60
QUICK = Settings(bootstrap=Bootstrap(resamples=20))


@pytest.fixture(scope="module")
def data() -> Dataset:
    samples = world_samples(WorldSpec("test", COUNT, size=32, captions=2))
    return Dataset("world:test", tuple(samples), ())


@pytest.fixture(scope="module")
def encoder(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> BundleEncoder:
    """An untrained student, exported: its results mean nothing, but they are the same wherever they are computed."""
    spec = {
        "dim": 16,
        "image": {"kind": "timm", "name": "test_efficientnet", "size": 32, "head": {"kind": "residual", "hidden": 24}},
        "text": {"kind": "small", "width": 32, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300},
    }
    captions = [caption for sample in data.samples for caption in sample.captions]
    model = build_model(ModelSpec.model_validate(spec), captions=captions).eval()
    torch_encoder = TorchEncoder(model, name="tiny", space="t" * 32, device="cpu")
    return load_bundle(export_bundle(torch_encoder, tmp_path_factory.mktemp("b") / "tiny.bundle").path, threads=1)


@pytest.fixture(scope="module")
def collection(data: Dataset, encoder: BundleEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    with build_index(data, encoder, tmp_path_factory.mktemp("i") / "world.index", texts="captions") as built:
        yield built


def test_the_search_answers_as_the_offline_evaluation_says(
    data: Dataset, encoder: BundleEncoder, collection: Collection
) -> None:
    offline = retrieval(encoder, data, examples=0, settings=QUICK)
    searcher = Searcher(collection, encoder)
    pairs = [(caption, sample.key) for sample in data.samples for caption in sample.captions]
    results = searcher.search_many([Query(caption) for caption, _ in pairs], How(k=10, threshold=None))
    for k in (1, 5, 10):
        hits = [key in [hit.key for hit in each.hits[:k]] for (_, key), each in zip(pairs, results, strict=True)]
        assert np.mean(hits) == pytest.approx(offline.t2i[f"hit@{k}"].value, abs=1e-9)
    # Pictures find captions.
    queries = [Query(key=sample.key) for sample in data.samples]
    found = searcher.search_many(queries, How(k=10, kind="text", threshold=None))
    for k in (1, 5, 10):
        hits = [
            any(hit.key.startswith(f"{sample.key}#") for hit in each.hits[:k])
            for sample, each in zip(data.samples, found, strict=True)
        ]
        assert np.mean(hits) == pytest.approx(offline.i2t[f"hit@{k}"].value, abs=0.02), "equal captions tie"


def test_a_picture_finds_itself_and_more_like_this_finds_others(
    data: Dataset, encoder: BundleEncoder, collection: Collection
) -> None:
    searcher = Searcher(collection, encoder)
    for sample in data.samples[:5]:
        assert sample.image is not None
        first = searcher.search(Query(image=sample.image.read()), k=1).hits[0]
        assert (first.key, first.kind) == (sample.key, "image")
        assert first.score == pytest.approx(1.0, abs=1e-4)
        assert first.meta["class"] == sample.class_name
        assert sample.key not in [hit.key for hit in searcher.search(Query(key=sample.key), k=5).hits]
        assert collection.image_bytes(first.key) == sample.image.read()


def test_every_option_at_once_on_an_index_opened_again(encoder: BundleEncoder, collection: Collection) -> None:
    with open_index(collection.path) as reader:
        results = Searcher(reader, encoder).search(
            'a red star -"blue circle"', k=7, mmr=0.7, group=True, where="split = 'test'", kind="any",
            liked=[reader.keys("image")[0]], disliked=[reader.keys("image")[1]], threshold=0.0,
        )  # fmt: skip
        assert len(results.hits) == 7
        assert reader.keys("image")[1] not in [hit.key for hit in results.hits]


def test_calibrated_on_the_world_and_kept(encoder: BundleEncoder, collection: Collection) -> None:
    found = calibrate(collection, encoder)
    assert {name.partition("->")[0] for name in found.scales} == {"word", "phrase", "sentence", "image"}
    sentence = found.scale("sentence", "image")
    assert sentence is not None
    assert sentence.answered > 0
    keep_calibration(collection, found)
    with open_index(collection.path) as reader:
        kept = calibration_for(reader, encoder)
        assert kept is not None
        assert kept.scales == found.scales
        results = Searcher(reader, encoder).search("a red star", k=3)
        assert results.calibrated
        assert all(hit.confidence is not None for hit in results.hits)


def test_its_own_queries_cost_nothing_and_clicks_can_be_asked_again(
    data: Dataset, encoder: BundleEncoder, collection: Collection, tmp_path: Path
) -> None:
    report = measure_mixed(collection, encoder, data.samples[:20], own=encoder, how=QUICK.bootstrap)
    assert report.text is not None
    assert report.text.overlap is not None
    assert report.image is not None
    assert report.image.cosine is not None
    assert report.text.overlap.value == 1.0
    assert report.image.cosine.value == pytest.approx(1.0, abs=1e-4)
    searcher, log = Searcher(collection, encoder), ClickLog(tmp_path / "clicks.jsonl")
    for text in ("a red star", "a blue ring -star"):
        query = Query.parse(text)
        second = searcher.search(query, k=2).hits[1]
        log.append(Click(query.describe(), second.key, 2, generation=collection.generation))
    clicked = evaluate_clicks(searcher, read_clicks(log.path).clicks, how=QUICK.bootstrap)
    assert (clicked.queries, clicked.hit[1].value, clicked.hit[5].value) == (2, 0.0, 1.0)
    assert clicked.mrr.value == clicked.mrr_then.value == 0.5


def test_added_and_deleted_pictures_are_seen_at_once(data: Dataset, encoder: BundleEncoder, tmp_path: Path) -> None:
    with build_index(replace(data, samples=data.samples[:10]), encoder, tmp_path / "small.index") as small:
        searcher = Searcher(small, encoder)
        fresh = data.samples[10]
        assert fresh.image is not None
        picture = fresh.image.read()
        assert searcher.search(Query(image=picture), k=1).hits[0].key != fresh.key
        small.add([fresh], encoder)
        assert searcher.search(Query(image=picture), k=1).hits[0].key == fresh.key
        small.delete([fresh.key])
        assert fresh.key not in [hit.key for hit in searcher.search(Query(image=picture), k=100).hits]
