"""The OpenAPI document: request bodies with examples, the errors every route may give, and the bearer key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from clipette.serve import schemas
from clipette.version import VERSION

REF = "#/components/schemas/{model}"
REQUESTS: tuple[type[pydantic.BaseModel], ...] = (
    schemas.SearchRequest,
    schemas.ClassifyRequest,
    schemas.EmbeddingsRequest,
    schemas.AddRequest,
    schemas.Click,
)
# A dot of one pixel, so that examples with a picture can be sent as they stand.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "SearchRequest": {
        "text": {"summary": "By text, without people", "value": {"text": "a beach -people", "k": 10}},
        "filtered": {"summary": "Filtered", "value": {"text": "a dog", "where": "domain = 'photo'"}},
        "like": {"summary": "More like this", "value": {"image_key": "photos/cat", "group": True}},
        "mixed": {
            "summary": "A picture and a text, mixed",
            "value": {"image": PIXEL, "text": "at night", "weights": {"image": 0.7, "text": 0.3}},
        },
    },
    "ClassifyRequest": {"labels": {"value": {"image": PIXEL, "labels": ["a cat", "a dog"]}}},
    "EmbeddingsRequest": {
        "texts": {"value": {"input": ["a cat", "a dog"], "modality": "text"}},
        "pictures": {"value": {"input": [PIXEL], "modality": "image", "encoding_format": "base64"}},
    },
    "AddRequest": {
        "items": {"value": {"items": [{"key": "dot", "image": PIXEL, "meta": {"year": 2024}}, {"text": "a note"}]}}
    },
    "Click": {"opened": {"value": {"key": "photos/cat", "rank": 1, "text": "a cat"}}},
}
ERRORS = {
    400: "The request cannot be understood, or is not possible with this model or collection",
    401: "No bearer key, or an unknown one",
    403: "The key does not allow this, or writes are off",
    404: "No such item",
    405: "No such method here",
    408: "The body came too slowly",
    413: "Too many bytes",
    415: "Neither the content type nor the picture's format is accepted",
    421: "Addressed to a name that is not this server's",
    422: "A field has a value it may not have",
    429: "Too much to do: nothing was begun; try again after Retry-After seconds",
    431: "Too large a head",
    503: "The server is starting or stopping",
    504: "The time limit has passed",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route: those given, and those that every guarded route may give."""
    every = sorted({*statuses, 400, 401, 403, 405, 408, 413, 421, 429, 431, 503, 504})
    found: dict[int | str, dict[str, Any]] = {}
    for status in every:
        found[status] = {"model": schemas.ErrorResponse, "description": ERRORS[status]}
    found[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def body(model: type[pydantic.BaseModel], *, form: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads ``model`` itself; ``form``: properties of its multipart form."""
    name = model.__name__
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": REF.format(model=name)}, "examples": EXAMPLES[name]}
    }
    if form is not None:
        schema = {"type": "object", "properties": dict(form), "additionalProperties": True}
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


FILE = {"type": "string", "format": "binary", "description": "An encoded picture."}


def describe(app: FastAPI, *, with_keys: bool) -> dict[str, Any]:
    """The document of ``app``; ``with_keys``: whether a key is needed to read."""
    document = get_openapi(
        title="Clipette",
        version=VERSION,
        summary="Search, classification and embeddings by a small vision-language model.",
        description=(
            'Errors are `{"error": {"message", "type", "param"}}`. On 429 nothing was begun: send the same request '
            "again after `Retry-After` seconds. Keys of items in paths are percent-encoded, slashes included (`%2F`)."
        ),
        routes=app.routes,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in REQUESTS], ref_template=REF, title="Requests"
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    if with_keys:
        document["security"] = [{"key": []}]
    return document
