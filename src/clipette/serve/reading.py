"""A request's body as a model: JSON, or a multipart form with a file. The body is in memory and within its cap."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from clipette.serve.faults import HttpFault, invalid

M = TypeVar("M", bound=pydantic.BaseModel)
JSON, FORM = "application/json", "multipart/form-data"
# Fields of a form that hold JSON: lists and objects.
JSON_FIELDS = frozenset(("negatives", "weights", "liked", "disliked", "labels", "meta"))
MOST_FIELDS = 64
# Of a JSON body, strings' own commas and brackets counted too. Parsing holds the whole process: 28 MB of one-letter
# strings did so for 16 s, this many do for some 0.1 s.
MOST_VALUES = 50_000


def content_type(request: Request) -> str:
    """Without parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[M]) -> M:
    """Raises ``HttpFault`` (415: another content type, 413: too many values); pydantic's ``ValidationError``."""
    kind = content_type(request)
    # Other sites may make a browser send text/plain here unasked, but never this type.
    if kind != JSON:
        raise HttpFault(415, "wrong_type", f"expected {JSON}, got {kind or 'no content type'}")
    body = await request.body()
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
        raise HttpFault(413, "too_large", f"the body holds more than {MOST_VALUES:,} values: send less at once")
    return model.model_validate_json(body)


async def read_either(request: Request, model: type[M]) -> M:
    """JSON, or a form with the same fields, where the file ``image`` stands for its base64.

    Raises as ``read_json``; ``HttpFault`` (400) for a broken form.
    """
    if content_type(request) != FORM:
        return await read_json(request, model)
    fields, files = await read_form(request)
    if len(files) > 1:
        raise invalid("image: one file, not several", "image")
    values = {name: _value(name, value) for name, value in fields.items()}
    if files:
        values["image"] = base64.b64encode(files[0][1]).decode()
    return model.model_validate(values)


async def read_form(request: Request) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """(fields, files named ``image`` as (file's name, bytes)). Raises ``HttpFault`` for a broken form."""
    fields: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    try:
        async with request.form(max_files=1000, max_fields=MOST_FIELDS, max_part_size=2**20) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise invalid(f"{name[:100]}: files are named image", name[:100])
                    files.append((value.filename or "", await value.read()))
                elif name in fields:
                    raise invalid(f"{name[:100]}: given twice", name[:100])
                else:
                    fields[name] = value
    except HTTPException as error:
        raise HttpFault(400, "invalid_form", f"the form cannot be read: {error.detail}") from None
    return fields, files


def _value(name: str, text: str) -> Any:
    return parse_field(name, text) if name in JSON_FIELDS else text


def parse_field(name: str, text: str) -> Any:
    """JSON in a form's field. Raises ``HttpFault``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HttpFault(400, "invalid_json", f"{name}: not JSON ({error})", param=name) from None


def answer(model: pydantic.BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A model as the response; not validated again."""
    content = model.__pydantic_serializer__.to_json(model)
    return Response(content, status, media_type=JSON, headers=dict(headers or {}))
