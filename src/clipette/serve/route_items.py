"""``/v1/items``: rows by key, their pictures, and writes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from clipette.errors import BadImageError, UnsupportedError
from clipette.io import digest
from clipette.serve import describing
from clipette.serve.faults import HttpFault, invalid, not_found
from clipette.serve.pictures import bytes_of_text, media_type, open_picture
from clipette.serve.ports import RowPort
from clipette.serve.reading import FORM, answer, content_type, parse_field, read_form, read_json
from clipette.serve.route_search import links, plain_meta
from clipette.serve.schemas import AddRequest, AddResponse, DeleteResponse, Item, NewItem
from clipette.serve.service import Service
from clipette.serve.threads import run_errand
from clipette.types import Sample

# The picture of a key may be replaced: a browser asks again, and is told 304 where nothing changed.
REVALIDATE = "private, no-cache"
PICTURES = {"image/*": {"schema": {"type": "string", "format": "binary"}}}


@dataclass(frozen=True, slots=True)
class HeldImage:
    """``types.ImageBytes`` of an upload."""

    location: str
    data: bytes

    def read(self) -> bytes:
        """The upload."""
        return self.data


def items_router(service: Service) -> APIRouter:
    """The routes that read; the order matters: a key's pictures before the key."""
    router = APIRouter(tags=["items"])

    @router.get(
        "/v1/items/{key:path}/image",
        response_class=Response,
        responses={**describing.errors(404), 200: {"content": PICTURES}, 304: {"description": "Unchanged"}},
        summary="An item's picture as it is stored",
    )
    async def image(key: str, request: Request) -> Response:
        row = found(service, key)
        return await _original(service, row, request.headers.get("if-none-match"))

    @router.get(
        "/v1/items/{key:path}/thumbnail",
        response_class=Response,
        responses={**describing.errors(404), 200: {"content": PICTURES}, 304: {"description": "Unchanged"}},
        summary="A small picture of an item",
    )
    async def thumbnail(key: str, request: Request) -> Response:
        row = found(service, key)
        return await _small(service, row, request.headers.get("if-none-match"))

    @router.get("/v1/items/{key:path}", response_model=Item, responses=describing.errors(404), summary="One item's row")
    async def item(key: str) -> Response:
        row = found(service, key)
        where = links(row.key, row.kind, thumbnails=service.thumbnails is not None)
        kind = "image" if row.kind == "image" else "text"
        return answer(Item(key=row.key, kind=kind, text=row.text, meta=plain_meta(row), **where))  # type: ignore[arg-type]

    return router


def writes_router(service: Service) -> APIRouter:
    """The routes that write; all need a write key."""
    router = APIRouter(tags=["items"])
    form = {
        "image": {"type": "array", "items": describing.FILE},
        "meta": {"type": "string", "description": "JSON object, for all files."},
    }

    @router.post(
        "/v1/items",
        response_model=AddResponse,
        responses=describing.errors(415, 422),
        openapi_extra={**describing.body(AddRequest, form=form), "security": [{"key": []}]},
        summary="Add or replace items: all of them, or none",
    )
    async def add(request: Request) -> Response:
        _writable(service)
        asked = await _added(request)
        return answer(await _add(service, asked))

    @router.delete(
        "/v1/items/{key:path}",
        response_model=DeleteResponse,
        responses=describing.errors(404),
        openapi_extra={"security": [{"key": []}]},
        summary="Delete one item",
    )
    async def delete(key: str) -> Response:
        _writable(service)
        return answer(await _delete(service, [found(service, key).key]))

    @router.delete(
        "/v1/items",
        response_model=DeleteResponse,
        responses=describing.errors(422),
        openapi_extra={"security": [{"key": []}]},
        summary="Delete several items",
    )
    async def delete_many(key: list[str] = Query(min_length=1, max_length=1000)) -> Response:
        _writable(service)
        return answer(await _delete(service, list(dict.fromkeys(key))))

    return router


def found(service: Service, encoded: str) -> RowPort:
    """The row of a key as it stands in a path, percent-encoded. Raises ``HttpFault`` (404)."""
    try:
        key = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        raise not_found("no such item: the key in this address is not UTF-8") from None
    row = service.collection.find(key) if len(key) <= 1024 else None
    if row is None:
        raise not_found(f"the collection has no item {key[:200]!r}")
    return row


async def _original(service: Service, row: RowPort, known: str | None) -> Response:
    def read() -> tuple[bytes, str]:
        data = _bytes(service, row)
        return data, f'"{digest(data)}"'

    data, etag = await run_errand(service.readers, read)
    kind = media_type(data)
    if kind is None:
        raise HttpFault(404, "bad_image", f"{row.key}: what is stored is no raster picture; it is not shown")
    headers = {"ETag": etag, "Cache-Control": REVALIDATE}
    if known == etag:
        return Response(None, 304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


async def _small(service: Service, row: RowPort, known: str | None) -> Response:
    thumbnails = service.thumbnails
    if thumbnails is None:
        raise not_found("this server makes no thumbnails")
    version = service.collection.version(row.key)

    def read() -> bytes:
        data = _bytes(service, row)
        if media_type(data) is None:
            raise BadImageError(f"{row.key}: no raster picture")
        return data

    try:
        made = await run_errand(service.readers, lambda: thumbnails.get(row.key, version, read))
    except BadImageError as error:
        raise HttpFault(404, "bad_image", str(error)) from None
    headers = {"ETag": made.etag, "Cache-Control": REVALIDATE}
    if known == made.etag:
        return Response(None, 304, headers=headers)
    return Response(made.data, media_type=made.media_type, headers=headers)


def _bytes(service: Service, row: RowPort) -> bytes:
    """The picture of a row. Raises ``HttpFault`` (404): a text, or a file that is gone."""
    if row.kind != "image":
        raise not_found(f"{row.key}: a text, it has no picture")
    try:
        return service.collection.image_bytes(row.key)
    except BadImageError as error:
        raise HttpFault(404, "bad_image", str(error)) from None


# ---------------------------------------------------------------- writes


def _writable(service: Service) -> None:
    if not service.writable:
        raise HttpFault(403, "forbidden", "this server only reads: start it with --write-keys FILE to allow writes")


async def _added(request: Request) -> AddRequest:
    if content_type(request) != FORM:
        return await read_json(request, AddRequest)
    fields, files = await read_form(request)
    meta: Any = parse_field("meta", fields["meta"]) if "meta" in fields else {}
    items = [
        {"key": PurePosixPath(name).stem or None, "image": base64.b64encode(data).decode(), "meta": meta}
        for name, data in files
    ]
    return AddRequest.model_validate({"items": items})


async def _add(service: Service, asked: AddRequest) -> AddResponse:
    if len(asked.items) > service.settings.max_items:
        raise invalid(f"items: {len(asked.items)} exceed this server's limit of {service.settings.max_items}", "items")
    samples = [await _sample(service, item, f"items.{place}") for place, item in enumerate(asked.items)]
    keys = [sample.key for sample in samples]
    if len(set(keys)) != len(keys):
        raise invalid("items: one key is given twice", "items")

    def write() -> int:
        # Straight to the model: a write holds up no query's batch for longer than one of its own.
        service.collection.add(samples, service.encoder)
        return service.collection.generation

    held = sum(len(sample.image.data) for sample in samples if isinstance(sample.image, HeldImage))
    return AddResponse(keys=keys, generation=await service.writer.run(write, held))


async def _sample(service: Service, item: NewItem, where: str) -> Sample:
    """The item as a sample; its picture is decoded, so that nothing bad is accepted. Raises as ``open_picture``."""
    captions = (item.text,) if item.text else ()
    if item.image is None:
        if not service.encoder.can_encode_text:
            raise UnsupportedError(f"{where}: this model has no text side, it cannot add texts")
        key = item.key or digest(f"text:{item.text}".encode())
        return Sample(key, captions=captions, meta=dict(item.meta))
    if not service.encoder.can_encode_images:
        raise UnsupportedError(f"{where}: this model has no image side, it cannot add images")
    limits = service.encoder.limits
    data = bytes_of_text(item.image, limits, f"{where}.image")
    await run_errand(service.readers, lambda: open_picture(data, limits, f"{where}.image"))
    key = item.key or digest(data)
    return Sample(key, HeldImage(f"upload {key}", data), captions=captions, meta=dict(item.meta))


async def _delete(service: Service, keys: list[str]) -> DeleteResponse:
    missing = [key for key in keys if service.collection.find(key) is None]

    def write() -> tuple[int, int]:
        return service.collection.delete(keys), service.collection.generation

    deleted, generation = await service.writer.run(write)
    return DeleteResponse(deleted=deleted, missing=missing, generation=generation)
