"""A real bundle, a real index, real requests: what the API finds is what the offline evaluation says."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from clipette import serving
from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.evaluate.retrieval import retrieval
from clipette.evaluate.zero_shot import class_vectors
from clipette.export.bundle import export_bundle
from clipette.export.classes import with_classes
from clipette.index.build import build_index
from clipette.models.inference import TorchEncoder
from clipette.models.spec import ModelSpec
from clipette.models.students import build_model
from clipette.runtime import BundleEncoder, load_bundle
from clipette.serve.settings import ServeSettings

SPEC = {
    "dim": 16,
    "image": {"kind": "timm", "name": "test_efficientnet", "size": 32},
    "text": {"kind": "small", "width": 32, "layers": 1, "heads": 2, "tokenizer": "words", "vocabulary": 300},
}


@dataclass
class Served:
    client: TestClient
    encoder: BundleEncoder
    model: TorchEncoder
    data: Dataset


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    data = load_data("world:test?n=60&size=40&captions=2")
    captions = [caption for sample in data.samples for caption in sample.captions]
    model = TorchEncoder(build_model(ModelSpec.model_validate(SPEC), captions=captions), name="untrained", device="cpu")
    encoder = load_bundle(export_bundle(model, folder / "student.bundle").path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CLIPETTE_CACHE", str(folder / "cache"))
        build_index(data, encoder, folder / "my.index").close()
        with serving.open_index(folder / "my.index") as collection:
            app = serving.application(collection, folder / "my.index", encoder, ServeSettings())
            with TestClient(app, base_url="http://localhost") as client:
                yield Served(client, encoder, model, data)


def test_hits_through_the_api_equal_the_offline_evaluation(served: Served) -> None:
    pairs = [(caption, sample.key) for sample in served.data.samples for caption in sample.captions]
    found = {1: 0, 5: 0, 10: 0}
    for caption, key in pairs:
        # Captions may hold what a person would mean as an operator: quoted, a text is taken as it is.
        answer = served.client.post("/v1/search", json={"text": caption, "k": 10}).json()
        keys = [hit["key"] for hit in answer["hits"]]
        for k in found:
            found[k] += key in keys[:k]
    offline = retrieval(served.encoder, served.data).t2i
    for k, count in found.items():
        assert count / len(pairs) == pytest.approx(offline[f"hit@{k}"].value, abs=1e-9)


def test_approximate_search_is_within_half_a_point(served: Served, tmp_path: Path) -> None:
    with build_index(served.data, served.encoder, tmp_path / "a.index", exact_rows=0, calibrated=False) as built:
        assert built.facts["recall"]["met"]
        assert built.facts["recall"]["search"]["all"] != "exact"
    pairs = [(caption, sample.key) for sample in served.data.samples for caption in sample.captions]
    with serving.open_index(tmp_path / "a.index") as collection:
        app = serving.application(collection, tmp_path / "a.index", served.encoder, ServeSettings())
        with TestClient(app, base_url="http://localhost") as client:
            asked = ({"text": caption, "k": 10} for caption, _ in pairs)
            answers = [client.post("/v1/search", json=each).json()["hits"] for each in asked]
    offline = retrieval(served.encoder, served.data).t2i
    for k in (1, 5, 10):
        hits = [key in [hit["key"] for hit in some[:k]] for some, (_, key) in zip(answers, pairs, strict=True)]
        assert np.mean(hits) == pytest.approx(offline[f"hit@{k}"].value, abs=0.005)


def test_a_picture_that_is_indexed_finds_itself(served: Served) -> None:
    for sample in served.data.samples[:10]:
        assert sample.image is not None
        image = base64.b64encode(sample.image.read()).decode()
        hit = served.client.post("/v1/search", json={"image": image, "k": 1}).json()["hits"][0]
        assert hit["score"] == pytest.approx(1.0, abs=1e-5)
        shown = served.client.get(hit["image"])
        assert shown.headers["content-type"] in ("image/png", "image/jpeg")
        assert Image.open(io.BytesIO(served.client.get(hit["thumbnail"]).content)).size == (40, 40)


def test_embeddings_equal_the_bundles_own(served: Served) -> None:
    texts = ["a red star", "two blue rings", "a red star and a ring"]
    answer = served.client.post("/v1/embeddings", json={"input": texts}).json()
    vectors = np.array([each["embedding"] for each in answer["data"]], np.float32)
    np.testing.assert_allclose(vectors, served.encoder.encode_texts(texts), atol=1e-6)
    pictures = [sample.image.read() for sample in served.data.samples[:5] if sample.image is not None]
    inputs = [base64.b64encode(data).decode() for data in pictures]
    answer = served.client.post("/v1/embeddings", json={"input": inputs, "modality": "image"}).json()
    vectors = np.array([each["embedding"] for each in answer["data"]], np.float32)
    np.testing.assert_allclose(vectors, served.encoder.encode_images(pictures), atol=1e-6)


def test_resizing_apart_from_the_model_changes_no_bit(served: Served) -> None:
    pictures = [Image.new("RGB", (50 + n, 70), (9 * n, 40, 90)) for n in range(4)]
    for encoder in (served.encoder, served.model):
        prepare, run = serving.stages_of(encoder)
        prepared = [prepare(each) for each in pictures]
        assert prepared[0].shape == (3, 32, 32)
        np.testing.assert_array_equal(run(prepared), encoder.encode_images(pictures))


def test_classes_are_those_of_zero_shot_classification(served: Served) -> None:
    sample = served.data.samples[0]
    assert sample.image is not None
    labels = list(served.data.class_names[:5])
    body = {"image": base64.b64encode(sample.image.read()).decode(), "labels": labels, "templates": "plain"}
    answer = served.client.post("/v1/classify", json=body).json()
    image = served.encoder.encode_images([sample.image.read()])[0]
    expected = class_vectors(served.encoder, labels, "plain") @ image
    cosines = {score["label"]: score["cosine"] for score in answer["scores"]}
    assert [cosines[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_bundle_of_classes_answers_in_its_own_wording(served: Served, tmp_path: Path) -> None:
    """No text tower: labels it knows are worded as it knows them, and other texts are refused in words."""
    names = ["red star", "ring"]
    path = export_bundle(with_classes(served.model, names, "plain"), tmp_path / "c.bundle", templates="plain").path
    encoder = load_bundle(path)
    build_index(served.data.limit(8), encoder, tmp_path / "c.index").close()
    with serving.open_index(tmp_path / "c.index") as collection:
        app = serving.application(collection, tmp_path / "c.index", encoder, ServeSettings())
        with TestClient(app, base_url="http://localhost") as client:
            key = served.data.limit(8).samples[0].key
            answer = client.post("/v1/classify", json={"image_key": key, "labels": names})
            assert answer.status_code == 200, answer.text
            assert {score["label"] for score in answer.json()["scores"]} == set(names)
            unknown = client.post("/v1/search", json={"text": "a green cat"})
            assert unknown.status_code == 400
            assert "not among" in unknown.json()["error"]["message"]
            assert client.get("/readyz").status_code == 200


def test_the_card_is_the_one_that_was_checked(served: Served, tmp_path: Path) -> None:
    card = served.encoder.bundle.path / "card.md"
    original = card.read_bytes()
    (tmp_path / "secret").write_text("secret")
    card.unlink()
    card.symlink_to(tmp_path / "secret")
    try:
        assert serving.card_of(served.encoder) == original.decode()
    finally:
        card.unlink()
        card.write_bytes(original)
