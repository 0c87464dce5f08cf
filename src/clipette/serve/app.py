"""The FastAPI application: routes on one service, behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from clipette.errors import ClipetteError
from clipette.serve import describing
from clipette.serve.encoding import QueuedEncoder
from clipette.serve.faults import HttpFault, invalid, on_error, respond
from clipette.serve.guard import Guard
from clipette.serve.metrics import Metrics
from clipette.serve.pages import STATIC, pages_router, read_pages
from clipette.serve.ports import CollectionPort, SearchPort
from clipette.serve.route_about import about_router
from clipette.serve.route_items import items_router, writes_router
from clipette.serve.route_model import model_router
from clipette.serve.route_search import search_router
from clipette.serve.service import Service
from clipette.serve.settings import ServeSettings
from clipette.serve.thumbs import Thumbnails
from clipette.types import Encoder
from clipette.version import VERSION


def create_app(
    settings: ServeSettings,
    *,
    encoder: Encoder,
    collection: CollectionPort,
    search: SearchPort,
    thumbnails: Thumbnails | None = None,
    card: str = "",
    writable: bool = False,
    queued: QueuedEncoder | None = None,
    metrics: Metrics | None = None,
    static: Path = STATIC,
) -> FastAPI:
    """The application on what is open already; stopping it finishes what was accepted and closes the collection.

    Args:
        settings: every limit.
        encoder: of the collection's space.
        collection: see ``ports``; ``writable``: whether it was opened for writing.
        search: see ``ports``.
        thumbnails: None makes none.
        card: the model card, Markdown.
        writable: allow writes to those who have a write key.
        queued: ``encoder`` behind its batchers, where the search shares it; made here otherwise.
        metrics: those that ``queued`` reports to.
        static: the web page's folder.
    """
    metrics = metrics or Metrics()
    service = Service(
        settings,
        encoder=queued or QueuedEncoder(encoder, settings, metrics),
        collection=collection,
        search=search,
        metrics=metrics,
        thumbnails=thumbnails,
        card=card,
        writable=writable,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.life():
            yield

    # Swagger's and ReDoc's pages load from other sites: the document itself is enough.
    app = FastAPI(
        title="Clipette",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # It would answer /v1/search/ with an address made of whatever name the client called us by.
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    for kind in (HttpFault, ClipetteError, pydantic.ValidationError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)

    document: dict[str, Any] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        if not document:
            document.update(describing.describe(app, with_keys=bool(settings.read_keys)))
        return JSONResponse(document)

    for router in (
        about_router(service),
        search_router(service),
        model_router(service),
        items_router(service),
        writes_router(service),
        pages_router(read_pages(static)),
    ):
        app.include_router(router)
    return app


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A path or query parameter that FastAPI refused; without its value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return respond(invalid(f"{where}: {first['msg']}", where or None))


KINDS = {404: "not_found", 405: "wrong_method"}


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router itself refuses, in our shape."""
    assert isinstance(error, HTTPException)
    kind = KINDS.get(error.status_code, "invalid_request")
    return respond(HttpFault(error.status_code, kind, str(error.detail), headers=error.headers))
