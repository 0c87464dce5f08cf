"""What is served and how it fares: ``/v1/info``, ``/v1/clicks``, health, metrics, the OpenAPI document."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from starlette.responses import Response

from clipette.errors import DataError
from clipette.index.clicks import Click as Logged
from clipette.index.query import parse_text
from clipette.serve import describing
from clipette.serve.faults import HttpFault
from clipette.serve.metrics import CONTENT_TYPE
from clipette.serve.reading import answer, read_json
from clipette.serve.schemas import (
    Click,
    ClickResponse,
    Features,
    Health,
    IndexInfo,
    InfoResponse,
    Limits,
    ModelInfo,
)
from clipette.serve.service import Service
from clipette.serve.threads import run_errand
from clipette.version import VERSION

logger = logging.getLogger(__name__)


def about_router(service: Service) -> APIRouter:
    """The routes, on ``service``."""
    router = APIRouter()

    @router.get(
        "/v1/info",
        response_model=InfoResponse,
        responses=describing.errors(),
        tags=["about"],
        summary="The model, the collection, limits and features",
    )
    async def info() -> Response:
        return answer(await run_errand(service.readers, lambda: _info(service)))

    @router.post(
        "/v1/clicks",
        response_model=ClickResponse,
        responses=describing.errors(415, 422),
        openapi_extra=describing.body(Click),
        tags=["search"],
        summary="Log what a user did with a hit, to a local file",
    )
    async def clicks(request: Request) -> Response:
        click, log = await read_json(request, Click), service.clicks
        if log is None:
            return answer(ClickResponse(logged=False))
        record = _record(click, service.collection.generation)
        try:
            return answer(ClickResponse(logged=await run_errand(service.readers, lambda: log.append(record))))
        except DataError as error:  # a full disk: not the client's fault, nor its business where the file is
            logger.error("a click was not logged: %s", error)
            raise HttpFault(503, "clicks", "the click log cannot be written", headers={"Retry-After": "60"}) from None

    @router.get("/healthz", response_model=Health, tags=["about"], summary="The process answers")
    async def healthz() -> Response:
        return answer(Health(status="ok"))

    @router.get(
        "/readyz",
        response_model=Health,
        responses={503: {"model": Health, "description": "Starting, stopping or broken"}},
        tags=["about"],
        summary="Requests may be sent here",
    )
    async def readyz() -> Response:
        why = service.not_ready()
        return answer(Health(status=why or "ok"), 503 if why else 200)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**describing.errors(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["about"],
        summary="For Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return router


def _record(click: Click, generation: int) -> Logged:
    """The click as the log keeps it: the query in the words of ``Query.describe``, so that it can be asked again."""
    wanted, unwanted = parse_text(click.text or "")
    negatives = list(dict.fromkeys((*unwanted, *click.negatives)))
    query = {"text": wanted, "key": click.image_key, "negatives": negatives, "image": click.image}
    kept = {name: value for name, value in query.items() if value}
    return Logged(kept, click.key, click.rank, click.action, tuple(click.shown), generation)


def _info(service: Service) -> InfoResponse:
    settings, encoder = service.settings, service.encoder
    return InfoResponse(
        version=VERSION,
        model=ModelInfo(
            name=encoder.name,
            space=encoder.space,
            dim=encoder.dim,
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
            can_encode_text=encoder.can_encode_text,
            can_encode_images=encoder.can_encode_images,
            card=service.card,
        ),
        index=IndexInfo.model_validate(dict(service.collection.info())),
        limits=Limits(
            max_k=settings.max_k,
            max_labels=settings.max_labels,
            max_inputs=settings.max_inputs,
            max_items=settings.max_items,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_body_bytes=settings.max_body_bytes,
            timeout_seconds=settings.timeout,
        ),
        features=Features(
            read_key=bool(settings.read_keys),
            write_key=bool(settings.write_keys),
            writable=service.writable,
            clicks=service.clicks is not None,
            thumbnails=service.thumbnails is not None,
        ),
    )
