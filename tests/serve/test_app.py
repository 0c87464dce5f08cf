from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from clipette.errors import DataError
from clipette.index.clicks import read_clicks
from clipette.version import VERSION

from .small import COLOURS, READ_KEY, WRITE_KEY, World, picture, unit, world

WRITE = {"Authorization": f"Bearer {WRITE_KEY}"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """For tests that write nothing."""
    with world(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def own(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, clicks=tmp_path / "clicks.jsonl") as served:
        yield served


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def keys(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [hit["key"] for hit in response.json()["hits"]]


def error(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param"}
    inner: dict[str, Any] = found["error"]
    return inner


# ---------------------------------------------------------------- search


def test_search_by_text(ours: World) -> None:
    found = ours.client.post("/v1/search", json={"text": "something red", "k": 3})
    assert keys(found)[0] == "photos/red"
    body = found.json()
    hit = body["hits"][0]
    assert hit["rank"] == 1
    assert hit["score"] == pytest.approx(1.0, abs=1e-4)
    assert hit["text"] == "a red field"
    assert hit["meta"] == {"domain": "photo", "year": 2018}
    assert hit["image"] == "/v1/items/photos%2Fred/image"
    assert (body["final"], body["stage"], body["generation"]) == (True, "refined", 1)
    assert [hit["score"] for hit in body["hits"]] == sorted((hit["score"] for hit in body["hits"]), reverse=True)


def test_search_by_picture_as_base64_data_uri_and_file(ours: World) -> None:
    data = picture("green")
    for image in (b64(data), f"data:image/png;base64,{b64(data)}"):
        assert keys(ours.client.post("/v1/search", json={"image": image, "k": 1})) == ["photos/green"]
    form = ours.client.post("/v1/search", files={"image": ("x.png", data, "text/html")}, data={"k": "2"})
    assert keys(form)[0] == "photos/green"
    assert len(form.json()["hits"]) == 2


def test_search_more_like_this_with_filter_kind_and_feedback(ours: World) -> None:
    post = ours.client.post
    assert keys(post("/v1/search", json={"image_key": "photos/blue", "k": 1})) == ["photos/blue"]
    filtered = {"text": "red", "where": "year > 2019 AND domain = 'photo'"}
    assert set(keys(post("/v1/search", json=filtered))) == {"photos/blue", "photos/yellow", "photos/white"}
    assert keys(post("/v1/search", json={"text": "red", "kind": "text"})) == ["note"]
    assert "note" in keys(post("/v1/search", json={"text": "red", "kind": "any"}))
    assert keys(post("/v1/search", json={"liked": ["photos/white"], "k": 1})) == ["photos/white"]


def test_a_form_has_the_same_fields(ours: World) -> None:
    form = {"text": "red", "k": "4", "negatives": '["blue"]', "weights": '{"text": 2}', "group": "true", "mmr": "0.5"}
    # A form without a file, as a browser's FormData sends it.
    boundary = "b0undary"
    named = 'content-disposition: form-data; name="{}"'
    body = "".join(f"--{boundary}\r\n{named.format(n)}\r\n\r\n{v}\r\n" for n, v in form.items())
    found = ours.client.post(
        "/v1/search",
        content=f"{body}--{boundary}--\r\n",
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    assert keys(found)[0] == "photos/red"
    assert len(found.json()["hits"]) == 4


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, None),
        ({"text": ""}, 422, None),
        ({"text": "a", "k": 0}, 422, "k"),
        ({"text": "a", "k": 201}, 422, "k"),
        ({"text": "a", "unknown": 1}, 422, "unknown"),
        ({"text": 5}, 422, "text"),
        ({"text": "a", "kind": "sound"}, 422, "kind"),
        ({"text": "a", "mmr": 1.5}, 422, "mmr"),
        ({"text": "a", "weights": {"text": -1}}, 422, "weights.text"),
        ({"text": "a" * 10_001}, 422, "text"),
        ({"text": "a", "where": "nonsense ="}, 400, None),
        ({"text": "a", "where": "yaer > 3"}, 400, None),
        ({"text": "a", "where": "year > 2019; DROP TABLE x"}, 400, None),
        ({"image_key": "photos/none"}, 404, "image_key"),
        ({"text": "a", "liked": ["photos/none"]}, 404, "liked"),
        ({"image": "https://example.org/a.png"}, 400, "image"),
        ({"image": "***"}, 400, "image"),
        ({"image": b64(b"<svg/>" * 9)}, 415, "image"),
    ],
)
def test_wrong_searches_say_what_is_wrong(ours: World, body: dict[str, Any], status: int, param: str | None) -> None:
    found = error(ours.client.post("/v1/search", json=body), status)
    assert found["param"] == param
    if "yaer" in str(body):
        assert "year" in found["message"]


def test_answers_are_cached_until_a_write(own: World) -> None:
    ask = {"text": "red", "k": 2}
    first = own.client.post("/v1/search", json=ask).json()
    again = own.client.post("/v1/search", json=ask).json()
    assert (first["cached"], again["cached"], own.search.calls) == (False, True, 1)
    assert again["hits"] == first["hits"]
    assert own.client.post("/v1/search", json={**ask, "k": 3}).json()["cached"] is False
    # Another query with the same text finds its vector remembered.
    assert own.encoder.calls == [1, 1, 1]  # a text and a picture at the start, and "red"
    new = {"items": [{"key": "new", "image": b64(picture("red"))}]}
    assert own.client.post("/v1/items", json=new, headers=WRITE).status_code == 200
    after = own.client.post("/v1/search", json=ask).json()
    assert after["cached"] is False
    assert [hit["key"] for hit in after["hits"]] == ["new", "photos/red"]
    assert after["generation"] == first["generation"] + 1


def test_a_write_of_another_process_is_seen(tmp_path: Path) -> None:
    from clipette.index.opening import open_index
    from clipette.types import Sample

    with world(tmp_path, refresh_seconds=0.02) as served:
        before = served.client.get("/v1/info").json()["index"]
        served.collection.close()  # lets the next writer in; reading goes on
        with open_index(tmp_path / "my.index", write=True) as other:
            other.add([Sample("theirs", None, ("a blue word",))], served.encoder)
        for _ in range(500):
            now = served.client.get("/v1/info").json()["index"]
            if now["generation"] > before["generation"]:
                break
        assert now["items"] == before["items"] + 1
        assert served.client.get("/v1/items/theirs").json()["text"] == "a blue word"


def test_the_memory_of_answers_is_bounded_whatever_was_asked_and_found(own: World) -> None:
    results = own.app.state.service.results
    body = {"text": "red", "where": "year > 5000", "negatives": ["x" * 10_000] * 16}
    assert keys(own.client.post("/v1/search", json=body)) == []
    assert max(map(len, results._held)) < 200
    item = {"key": "long", "text": "a red word", "meta": {"about": "x" * 8_000}}
    own.client.post("/v1/items", json={"items": [item]}, headers=WRITE)
    before = results.weight
    assert "long" in keys(own.client.post("/v1/search", json={"text": "red", "kind": "text"}))
    assert results.weight - before > 16_000


def test_what_another_process_finds_out_about_the_collection_is_seen(tmp_path: Path) -> None:
    """A calibration leaves the rows, and so the generation, as they are."""
    with world(tmp_path, refresh_seconds=0.05) as served:
        body = {"text": "red"}
        served.client.post("/v1/search", json=body)
        assert served.client.post("/v1/search", json=body).json()["cached"]
        refresh, told = served.collection.refresh, [True]
        served.collection.refresh = lambda: bool(told and told.pop()) or refresh()
        until = time.monotonic() + 20
        while told or len(served.app.state.service.results):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert not served.client.post("/v1/search", json=body).json()["cached"]


def test_first_hits_come_at_once_and_refined_ones_after(own: World) -> None:
    own.search.slow = 0.3
    lines = []
    body = {"text": "red", "mmr": 0.5, "k": 2, "stream": True}
    with own.client.stream("POST", "/v1/search", json=body) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [(line["stage"], line["final"]) for line in lines] == [("first", False), ("refined", True)]
    assert lines[0]["took_ms"] < lines[1]["took_ms"]
    # Known by now: one line.
    again = own.client.post("/v1/search", json=body)
    assert [json.loads(line)["cached"] for line in again.text.splitlines()] == [True]
    # Cheap: one line.
    cheap = own.client.post("/v1/search", json={"text": "red", "stream": True}).text.splitlines()
    assert [json.loads(line)["final"] for line in cheap] == [True]


def test_what_fails_in_a_stream_s_second_stage_is_its_last_line(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = own.search.search

    def search(request: Any, image: Any, *, quick: bool = False) -> Any:
        if not quick:
            raise RuntimeError("a secret path /root/x")
        return plain(request, image, quick=quick)

    monkeypatch.setattr(own.search, "search", search)
    found = own.client.post("/v1/search", json={"text": "red", "mmr": 0.5, "stream": True}).text.splitlines()
    assert json.loads(found[0])["final"] is False
    assert json.loads(found[1])["error"]["type"] == "internal"
    assert "secret" not in found[1]


# ---------------------------------------------------------------- classify and embeddings


def test_classify(ours: World) -> None:
    body = {"image": b64(picture("yellow")), "labels": ["red", "yellow", "blue"]}
    found = ours.client.post("/v1/classify", json=body).json()
    assert found["best"] == "yellow"
    assert found["scores"][0]["label"] == "yellow"
    assert sum(score["probability"] for score in found["scores"]) == pytest.approx(1)
    # softmax(scale · cosine), by hand.
    image, texts = ours.encoder.encode_images([picture("yellow")]), ours.encoder.encode_texts(body["labels"])
    logits = 50.0 * (texts @ image[0]).astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    by_label = {score["label"]: score["probability"] for score in found["scores"]}
    assert [by_label[label] for label in ("red", "yellow", "blue")] == pytest.approx(expected.tolist(), rel=1e-4)


def test_classify_by_key_by_file_and_with_many_templates(ours: World) -> None:
    post = ours.client.post
    assert post("/v1/classify", json={"image_key": "photos/red", "labels": ["red", "blue"]}).json()["best"] == "red"
    form = {"labels": '["green", "blue"]'}
    assert post("/v1/classify", files={"image": ("x", picture("blue"))}, data=form).json()["best"] == "blue"
    many = post("/v1/classify", json={"image_key": "photos/red", "labels": ["red", "blue"], "templates": "openai80"})
    assert many.json()["best"] == "red"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"labels": ["one"]}, 422),
        ({"labels": ["a", "a"]}, 422),
        ({"labels": ["a", " "]}, 422),
        ({"labels": [f"label {n}" for n in range(257)]}, 422),
        ({"labels": [f"label {n}" for n in range(200)], "templates": "openai80"}, 422),
        ({"templates": "nonsense"}, 400),
        ({"image_key": None}, 422),
        ({"image_key": "photos/none"}, 404),
        ({"image_key": "note"}, 404),
        ({"image": "AAAA"}, 422),
    ],
)
def test_wrong_classifications(ours: World, change: dict[str, Any], status: int) -> None:
    error(ours.client.post("/v1/classify", json={"image_key": "photos/red", "labels": ["a", "b"], **change}), status)


def test_embeddings_in_both_encodings(ours: World) -> None:
    texts = ["red", "a green thing", "red"]
    expected = ours.encoder.encode_texts(texts)
    found = ours.client.post("/v1/embeddings", json={"input": texts, "model": "any", "user": "me"}).json()
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    assert (found["object"], found["data"][0]["object"], found["model"]) == ("list", "embedding", "colours")
    assert np.array_equal(np.array([each["embedding"] for each in found["data"]], np.float32), expected)
    packed = ours.client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in packed["data"]]
    assert np.array_equal(np.stack(vectors), expected)
    one = ours.client.post("/v1/embeddings", json={"input": "red"}).json()
    assert len(one["data"]) == 1


def test_embeddings_of_pictures(ours: World) -> None:
    data = [picture("red"), picture("blue", kind="BMP")]
    inputs = [f"data:image/png;base64,{b64(data[0])}", b64(data[1])]
    found = ours.client.post("/v1/embeddings", json={"input": inputs, "modality": "image"}).json()
    vectors = np.array([each["embedding"] for each in found["data"]], np.float32)
    assert np.allclose(vectors, ours.encoder.encode_images(data), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": []}, 422),
        ({"input": ["x"] * 257}, 422),
        ({"input": ["x" * 10_001]}, 422),
        ({"input": [5]}, 422),
        ({"input": [[1, 2]]}, 422),
        ({"input": "x", "dimensions": 3}, 422),
        ({"input": "x", "modality": "audio"}, 422),
        ({"input": "https://example.org/x.png", "modality": "image"}, 400),
        ({"input": ["data:image/png;base64,AAAA"], "modality": "image"}, 415),
        ({}, 422),
    ],
)
def test_wrong_embeddings(ours: World, body: dict[str, Any], status: int) -> None:
    error(ours.client.post("/v1/embeddings", json=body), status)


def test_the_dimension_of_the_model_may_be_stated(ours: World) -> None:
    assert ours.client.post("/v1/embeddings", json={"input": "x", "dimensions": 4}).status_code == 200


def test_a_model_without_a_side_says_so(tmp_path: Path) -> None:
    with world(tmp_path) as served:
        served.encoder.can_encode_text = False
        found = error(served.client.post("/v1/search", json={"text": "never asked"}), 400)
        assert found["type"] == "unsupported"
        served.encoder.can_encode_images = False
        error(served.client.post("/v1/embeddings", json={"input": [b64(picture("red"))], "modality": "image"}), 400)


# ---------------------------------------------------------------- items


def test_rows_pictures_and_thumbnails(ours: World) -> None:
    row = ours.client.get("/v1/items/photos%2Fred").json()
    assert (row["key"], row["kind"], row["meta"]["year"]) == ("photos/red", "image", 2018)
    image = ours.client.get(row["image"])
    assert image.content == picture("red")
    assert image.headers["content-type"] == "image/png"
    assert image.headers["x-content-type-options"] == "nosniff"
    small = ours.client.get(row["thumbnail"])
    assert small.headers["content-type"] == "image/png"
    for path in (row["image"], row["thumbnail"]):
        etag = ours.client.get(path).headers["etag"]
        assert ours.client.get(path, headers={"if-none-match": etag}).status_code == 304
    # An unencoded slash is understood too.
    assert ours.client.get("/v1/items/photos/red/image").content == picture("red")
    text = ours.client.get("/v1/items/note").json()
    assert (text["kind"], text["text"], text["image"]) == ("text", "a red note", None)
    error(ours.client.get("/v1/items/note/image"), 404)
    error(ours.client.get("/v1/items/note/thumbnail"), 404)


AWKWARD = ["a/image", "a%2Fb", "ä ö?#&", "...", "../../etc/passwd", "image", "%00", "x" * 1024, '"<b>']


def test_keys_of_any_kind_come_back_by_their_links(own: World) -> None:
    items = [{"key": key, "image": b64(picture((n, 2 * n, 3 * n)))} for n, key in enumerate(AWKWARD)]
    added = own.client.post("/v1/items", json={"items": items}, headers=WRITE).json()
    assert added["keys"] == AWKWARD
    for n, key in enumerate(AWKWARD):
        row = own.client.get(f"/v1/items/{quote(key, safe='')}")
        assert row.json()["key"] == key
        assert own.client.get(row.json()["image"]).content == picture((n, 2 * n, 3 * n))
        assert own.client.get(row.json()["thumbnail"]).status_code == 200
    for key in AWKWARD:
        assert own.client.delete(f"/v1/items/{quote(key, safe='')}", headers=WRITE).json()["deleted"] == 1
    error(own.client.get("/v1/items/a%2Fimage"), 404)


def test_add_replace_and_delete(own: World) -> None:
    post, get = own.client.post, own.client.get
    items = [
        {"key": "dot", "image": b64(picture("blue")), "text": "a dot", "meta": {"year": 2001, "new": True}},
        {"text": "just words"},
        {"image": b64(picture("white"))},
    ]
    added = post("/v1/items", json={"items": items}, headers=WRITE).json()
    assert added["keys"][0] == "dot"
    assert added["generation"] == 2
    assert get("/v1/items/dot").json()["meta"] == {"year": 2001, "new": True}
    assert get(f"/v1/items/{added['keys'][1]}").json()["text"] == "just words"
    assert keys(post("/v1/search", json={"text": "blue", "where": "new = true"})) == ["dot"]
    replaced = {"items": [{"key": "dot", "image": b64(picture("red"))}]}
    assert post("/v1/items", json=replaced, headers=WRITE).json()["generation"] == 3
    assert get("/v1/items/dot/image").content == picture("red")
    gone = own.client.delete("/v1/items/dot", headers=WRITE).json()
    assert (gone["deleted"], gone["missing"], gone["generation"]) == (1, [], 4)
    error(get("/v1/items/dot"), 404)
    error(own.client.delete("/v1/items/dot", headers=WRITE), 404)
    several = own.client.delete("/v1/items", params={"key": ["note", "dot", "photos/red"]}, headers=WRITE).json()
    assert (several["deleted"], several["missing"]) == (2, ["dot"])
    assert "photos/red" not in keys(post("/v1/search", json={"text": "red"}))
    error(own.client.delete("/v1/items", headers=WRITE), 422)


def test_add_by_form(own: World) -> None:
    files = [("image", ("holiday/a.png", picture("red"))), ("image", ("b.jpg", picture("blue", kind="JPEG")))]
    added = own.client.post("/v1/items", files=files, data={"meta": '{"year": 1999}'}, headers=WRITE).json()
    assert added["keys"] == ["a", "b"]
    assert own.client.get("/v1/items/a").json()["meta"]["year"] == 1999


@pytest.mark.parametrize(
    ("items", "status"),
    [
        ([], 422),
        ([{}], 422),
        ([{"key": "", "text": "a"}], 422),
        ([{"key": "x" * 1025, "text": "a"}], 422),
        ([{"key": "new\nline", "text": "a"}], 400),
        ([{"key": "..", "text": "a"}], 422),
        ([{"key": "a", "text": "a"}, {"key": "a", "text": "b"}], 422),
        ([{"text": "a", "meta": {"x": [1]}}], 422),
        ([{"text": "a", "meta": {"year": "not a number"}}], 400),
        ([{"key": "photos/red", "text": "a text where an image is"}], 400),
        ([{"text": "fine"}, {"image": b64(b"<svg onload=alert(1)>")}], 415),
        ([{"text": "fine"}, {"image": b64(picture("red")[:40])}], 400),
        ([{"image": "http://localhost/x.png"}], 400),
        ([{"text": "x"}] * 257, 422),
    ],
)
def test_a_bad_item_adds_none(ours: World, items: list[dict[str, Any]], status: int) -> None:
    before = ours.collection.generation
    error(ours.client.post("/v1/items", json={"items": items}, headers=WRITE), status)
    assert ours.collection.generation == before


def test_writes_need_their_key_even_where_reading_is_open(ours: World) -> None:
    item = {"items": [{"text": "x"}]}
    error(ours.client.post("/v1/items", json=item), 401)
    error(ours.client.post("/v1/items", json=item, headers={"Authorization": f"Bearer {READ_KEY}"}), 401)
    error(ours.client.delete("/v1/items/note"), 401)
    assert ours.client.get("/v1/items/note").status_code == 200


def test_with_a_read_key_only_page_and_health_are_open(tmp_path: Path) -> None:
    with world(tmp_path, read_keys=(READ_KEY,)) as served:
        get = served.client.get
        for path in ("/healthz", "/readyz", "/"):
            assert get(path).status_code == 200
        for path in ("/v1/info", "/metrics", "/openapi.json", "/v1/items/note", "/v1/items/photos%2Fred/image"):
            assert error(get(path), 401)["type"] == "unauthorized"
            for key in (READ_KEY, WRITE_KEY):
                assert get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        refused = served.client.post("/v1/items", json={}, headers={"Authorization": f"Bearer {READ_KEY}"})
        assert error(refused, 403)["type"] == "forbidden"
        assert get("/v1/info", headers=WRITE).json()["features"]["read_key"] is True


# ---------------------------------------------------------------- about


def test_info(ours: World) -> None:
    info = ours.client.get("/v1/info").json()
    assert info["version"] == VERSION
    assert info["model"]["name"] == "colours"
    assert info["model"]["card"] == "# colours"
    assert info["index"]["items"] == 6
    assert info["index"]["columns"] == {"year": "int", "domain": "text"}
    assert info["index"]["details"]["search"] == "exact"
    assert info["limits"]["max_k"] == 200
    assert info["features"] == {
        "read_key": False, "write_key": True, "writable": True, "clicks": False, "thumbnails": True,
    }  # fmt: skip
    assert "photos" not in json.dumps(info["index"])  # no folder of this machine


def test_values_to_filter_by_follow_the_writes(own: World) -> None:
    def told() -> Any:
        return own.client.get("/v1/info").json()["index"]["values"]

    assert told() == {"domain": ["photo"]}
    items = [{"key": f"k{n}", "text": "red", "meta": {"domain": "sketch", "name": f"name {n}"}} for n in range(51)]
    own.client.post("/v1/items", json={"items": items}, headers=WRITE)
    assert told() == {"domain": ["photo", "sketch"]}
    own.client.delete("/v1/items/k0", headers=WRITE)
    assert set(told()) == {"domain", "name"}


def test_clicks_are_logged_only_where_asked(ours: World, own: World, tmp_path: Path) -> None:
    click = {"key": "photos/red", "rank": 2, "text": "red -blue", "action": "like", "shown": ["a", "photos/red"]}
    assert ours.client.post("/v1/clicks", json=click).json() == {"logged": False}
    assert own.client.post("/v1/clicks", json=click).json() == {"logged": True}
    (logged,) = read_clicks(tmp_path / "clicks.jsonl").clicks
    assert logged.query == {"text": "red", "negatives": ["blue"]}
    assert (logged.key, logged.rank, logged.action, logged.generation) == ("photos/red", 2, "like", 1)
    error(own.client.post("/v1/clicks", json={**click, "rank": 0}), 422)
    error(own.client.post("/v1/clicks", json={**click, "action": "buy"}), 422)


def test_health_and_metrics(own: World) -> None:
    get = own.client.get
    assert get("/healthz").json() == {"status": "ok"}
    assert get("/readyz").json() == {"status": "ok"}
    own.client.post("/v1/search", json={"text": "red"})
    own.client.post("/v1/search", json={"text": "red"})
    get("/v1/items/photos%2Fred")
    get("/v1/items/..%2Fsecret")
    get("/nowhere/at/all")
    text = get("/metrics").text
    assert 'clipette_requests_total{method="POST",route="/v1/search",status="200"} 2.0' in text
    assert 'clipette_batch_items_count{queue="text"}' in text
    assert 'clipette_result_cache{what="hits"} 1.0' in text
    assert "clipette_generation 1.0" in text
    # Never a path that a client chose: a label for each would fill the memory.
    assert "secret" not in text
    assert "nowhere" not in text
    own.app.state.service.stopping = True
    stopping = get("/readyz")
    assert (stopping.status_code, stopping.json()) == (503, {"status": "stopping"})
    own.app.state.service.stopping = False


def test_every_answer_has_the_headers_that_protect(ours: World) -> None:
    for response in (
        ours.client.get("/"),
        ours.client.get("/v1/info"),
        ours.client.get("/nope"),
        ours.client.get("/v1/items/photos%2Fred/image"),
        ours.client.post("/v1/items", json={}),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in response.headers


def test_the_page_is_served_from_a_fixed_list(ours: World) -> None:
    page = ours.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert ours.client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    for path in ("/../app.py", "/..%2fapp.py", "/static/..%2f..%2fapp.py", "/app.py", "/%2e%2e/app.py", "//etc/passwd"):
        assert ours.client.get(path).status_code == 404


def test_what_the_router_refuses_has_our_shape(ours: World) -> None:
    assert error(ours.client.get("/nope"), 404)["type"] == "not_found"
    assert error(ours.client.put("/v1/search"), 405)["type"] == "wrong_method"
    assert error(ours.client.get("/v1/search"), 405)["type"] == "wrong_method"


def test_json_must_be_json_and_say_so(ours: World) -> None:
    post = ours.client.post
    assert error(post("/v1/search", content=b'{"text": "red"}'), 415)["type"] == "wrong_type"
    as_text = {"content-type": "text/plain"}
    error(post("/v1/search", content=b'{"text": "red"}', headers=as_text), 415)
    as_json = {"content-type": "application/json; charset=utf-8"}
    assert post("/v1/search", content=b'{"text": "red"}', headers=as_json).status_code == 200
    deep, long = b"[" * 50_000, b'{"text": ' + b"9" * 5000 + b"}"
    for broken in (b"", b"{", b'{"text": NaN}', b"\xff\xfe", b'{"text": "\\ud800"}', deep, long):
        found = post("/v1/search", content=broken, headers=as_json)
        assert found.status_code in (400, 422), broken[:20]
        assert len(found.content) < 1000


def test_an_error_within_tells_nothing(own: World) -> None:
    found = error(own.client.post("/v1/search", json={"text": "explode"}), 500)
    assert found["type"] == "internal"
    assert "exploded" not in found["message"]
    # The server goes on.
    assert own.client.post("/v1/search", json={"text": "red"}).status_code == 200


def test_requests_to_a_stranger_s_name_are_refused(ours: World) -> None:
    assert error(ours.client.get("/v1/info", headers={"host": "evil.example"}), 421)["type"] == "wrong_host"
    assert ours.client.get("/v1/info", headers={"host": "127.0.0.1:8400"}).status_code == 200


def test_colours_are_where_they_should_be() -> None:
    """The tests' own world: each colour's word is nearest to its picture."""
    from .small import Colours

    encoder = Colours()
    words, pictures = encoder.encode_texts(list(COLOURS)), encoder.encode_images([picture(c) for c in COLOURS])
    assert (words @ pictures.T).argmax(axis=1).tolist() == list(range(len(COLOURS)))
    assert np.allclose(unit(words), words, atol=1e-6)


def test_no_address_is_made_of_the_name_that_a_client_used(ours: World) -> None:
    assert ours.client.post("/v1/search/", json={"text": "red"}, follow_redirects=False).status_code == 404


@pytest.mark.parametrize("name", ["", "a\x00b", "a\nb", "x" * 101])
def test_a_column_has_a_name_that_people_can_write(ours: World, name: str) -> None:
    items = [{"key": "k", "text": "red", "meta": {name: 1}}]
    error(ours.client.post("/v1/items", json={"items": items}, headers=WRITE), 422)
    assert name not in ours.client.get("/v1/info").json()["index"]["columns"]


def test_a_click_log_on_a_full_disk_is_the_servers_fault(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(click: object) -> bool:
        raise DataError("/home/me/clicks.jsonl: the click log cannot be written (No space left on device)")

    monkeypatch.setattr(own.app.state.service.clicks, "append", full)
    said = error(own.client.post("/v1/clicks", json={"key": "photos/red", "rank": 1}), 503)
    assert "/home" not in said["message"]
