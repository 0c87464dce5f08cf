"""``/v1/search``: one query, answered at once or in two stages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from clipette.serve import describing
from clipette.serve.faults import HttpFault, body_of, fault_of, invalid
from clipette.serve.pictures import bytes_of_text, check_picture
from clipette.serve.ports import HitPort, Outcome, RowPort
from clipette.serve.reading import answer, read_either
from clipette.serve.schemas import SearchHit, SearchRequest, SearchResponse
from clipette.serve.service import Answered, Service
from clipette.serve.threads import run_errand

LINES = "application/x-ndjson"


def links(key: str, kind: str, *, thumbnails: bool) -> dict[str, str | None]:
    """Where the pictures of an item are on this server."""
    if kind != "image":
        return {"image": None, "thumbnail": None}
    path = f"/v1/items/{quote(key, safe='')}"
    return {"image": f"{path}/image", "thumbnail": f"{path}/thumbnail" if thumbnails else None}


def plain_meta(row: RowPort | HitPort) -> dict[str, Any]:
    """Metadata as JSON can say it."""
    kept = (str, int, float, bool, type(None))
    return {name: value if isinstance(value, kept) else str(value) for name, value in row.meta.items()}


def search_router(service: Service) -> APIRouter:
    """The route, on ``service``."""
    router = APIRouter(tags=["search"])
    extra = describing.body(SearchRequest, form={"image": describing.FILE, "text": {"type": "string"}})

    @router.post(
        "/v1/search",
        response_model=SearchResponse,
        responses={
            **describing.errors(404, 415, 422),
            200: {"content": {LINES: {"schema": {"type": "string"}}}, "description": "Hits; with `stream`, lines."},
        },
        openapi_extra=extra,
        summary="Search by text, picture, or both",
    )
    async def search(request: Request) -> Response:
        asked = await read_either(request, SearchRequest)
        image = _checked(service, asked)
        if asked.stream:
            first = await _first(service, asked, image)
            return StreamingResponse(_stages(service, asked, image, first), media_type=LINES)
        return answer(await find(service, asked, image))

    return router


def _checked(service: Service, asked: SearchRequest) -> bytes | None:
    """The query's picture, if any. Raises ``HttpFault`` where a field asks for what this server has not."""
    if asked.k > service.settings.max_k:
        raise invalid(f"k: {asked.k} exceeds this server's limit of {service.settings.max_k}", "k")
    named = [("image_key", asked.image_key)] if asked.image_key else []
    named += [("liked", key) for key in asked.liked] + [("disliked", key) for key in asked.disliked]
    for field, key in named:
        if service.collection.find(key) is None:
            raise HttpFault(404, "not_found", f"{field}: the collection has no item {key!r}", param=field)
    if asked.image is None:
        return None
    image = bytes_of_text(asked.image, service.encoder.limits, "image")
    check_picture(image, service.encoder.limits, "image")
    return image


async def find(service: Service, asked: SearchRequest, image: bytes | None, *, quick: bool = False) -> SearchResponse:
    """The answer to a query, from the cache or made now. ``quick``: without what is expensive."""
    begun = time.monotonic()
    key = service.result_key(asked, image) + (":quick" if quick else "")
    held = service.results.get(key)
    if held is not None:
        return held.response.model_copy(update={"cached": True, "took_ms": _since(begun)})
    generation = service.collection.generation
    # Encoded here, where requests share batches; the search then finds the vectors in the encoder's memory.
    texts = service.search.texts(asked)
    if texts:
        await service.encoder.texts(texts)
    if image is not None:
        await service.encoder.images([image])
    outcome = await run_errand(service.searchers, lambda: service.search.search(asked, image, quick=quick))
    response = SearchResponse(
        hits=_hits(outcome, thumbnails=service.thumbnails is not None),
        below_threshold=outcome.below_threshold,
        threshold=outcome.threshold,
        calibrated=outcome.calibrated,
        stage="first" if quick else "refined",
        final=not quick,
        generation=generation,
        took_ms=_since(begun),
    )
    service.results.put(key, Answered(response, 512 + sum(map(_weight, response.hits))))
    return response


def _weight(hit: SearchHit) -> int:
    """About the bytes that it takes in memory: its texts, twice, and a little for each object."""
    texts = [hit.key, hit.text or "", *hit.duplicates]
    texts += [part for name, value in hit.meta.items() for part in (name, value) if isinstance(part, str)]
    return 400 + 64 * (len(hit.duplicates) + len(hit.meta)) + 2 * sum(map(len, texts))


def _since(begun: float) -> float:
    return round(1000 * (time.monotonic() - begun), 2)


def _hits(outcome: Outcome, *, thumbnails: bool) -> list[SearchHit]:
    return [
        SearchHit(
            rank=rank,
            key=hit.key,
            score=float(hit.score),
            confidence=hit.confidence,
            fits=hit.fits,
            kind="image" if hit.kind == "image" else "text",
            text=hit.text,
            meta=plain_meta(hit),
            duplicates=list(hit.duplicates),
            **links(hit.key, hit.kind, thumbnails=thumbnails),
        )
        for rank, hit in enumerate(outcome.hits, 1)
    ]


async def _first(service: Service, asked: SearchRequest, image: bytes | None) -> SearchResponse:
    """What is sent at once: the whole answer where it is cheap or known, else a quick one.

    Before the response begins, so that a refusal still has its own status.
    """
    if not service.search.expensive(asked) or service.result_key(asked, image) in service.results:
        return await find(service, asked, image)
    return await find(service, asked, image, quick=True)


async def _stages(
    service: Service, asked: SearchRequest, image: bytes | None, first: SearchResponse
) -> AsyncIterator[bytes]:
    yield _line(first)
    if first.final:
        return
    try:
        yield _line(await find(service, asked, image))
    except Exception as error:  # the status is sent already: the last line says what went wrong
        yield body_of(fault_of(error)) + b"\n"


def _line(response: SearchResponse) -> bytes:
    return response.__pydantic_serializer__.to_json(response) + b"\n"
