"""The document that clients are generated from, and a fuzzer let loose on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from clipette.serve.describing import EXAMPLES

from .small import WRITE_KEY, Live, World, live, world

WRITE = {"Authorization": f"Bearer {WRITE_KEY}"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("described")) as served:
        yield served


@pytest.fixture(scope="module")
def document(ours: World) -> dict[str, Any]:
    found: dict[str, Any] = ours.client.get("/openapi.json").json()
    return found


# No shrinking: a failure's first example is enough, and the tests take seconds.
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
ROUTES = {
    ("post", "/v1/search"),
    ("post", "/v1/classify"),
    ("post", "/v1/embeddings"),
    ("get", "/v1/info"),
    ("post", "/v1/clicks"),
    ("post", "/v1/items"),
    ("delete", "/v1/items"),
    ("get", "/v1/items/{key}"),
    ("delete", "/v1/items/{key}"),
    ("get", "/v1/items/{key}/image"),
    ("get", "/v1/items/{key}/thumbnail"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}


def test_every_route_is_described(document: dict[str, Any]) -> None:
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == ROUTES
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            if path.startswith("/v1"):
                assert "429" in operation["responses"], (method, path)
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name == "$ref":
                    yield inner
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(document))
    assert {f"#/components/schemas/{name}" for name in EXAMPLES} <= found
    for reference in found:
        here = document
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]


def test_the_examples_are_answered(ours: World, document: dict[str, Any]) -> None:
    answered = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in content.get("examples", {}).items():
                body = example["value"]
                if body.get("image_key") == "photos/cat":
                    body = {**body, "image_key": "photos/red"}
                response = ours.client.request(method, path, json=body, headers=WRITE)
                assert response.status_code == 200, (path, name, response.text)
                answered += 1
    assert answered >= 9


# ---------------------------------------------------------------- fuzzed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("live"), max_body_bytes=200_000, max_items=20) as running:
        yield running


@pytest.fixture(scope="module")
def fuzzed(server: Live) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


WITH_INPUT = sorted(ROUTES - {("get", path) for path in ("/v1/info", "/healthz", "/readyz", "/metrics")})
# A path that is any text cannot be wrong.
WRONG = [route for route in WITH_INPUT if route[0] == "post" or route == ("delete", "/v1/items")]
CASES = [(*route, GenerationMode.POSITIVE) for route in WITH_INPUT]
CASES += [(*route, GenerationMode.NEGATIVE) for route in WRONG]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_no_request_is_answered_with_5xx(
    server: Live, fuzzed: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """Bodies, paths and parameters that fit the document, and such that do not; with the write key, to reach it all."""
    statuses = set()

    @hypothesis.settings(max_examples=12, suppress_health_check=list(hypothesis.HealthCheck), phases=PHASES)
    @hypothesis.given(case=fuzzed[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url, headers=WRITE)
        case.validate_response(response, checks=[not_a_server_error])
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}

    ask()
    assert statuses


def test_the_server_has_survived_it(server: Live) -> None:
    answer = httpx.post(f"{server.url}/v1/search", json={"text": "red", "kind": "any"}, timeout=30)
    assert answer.status_code == 200
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
