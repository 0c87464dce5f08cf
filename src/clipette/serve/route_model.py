"""``/v1/classify`` and ``/v1/embeddings``: the model by itself."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from clipette.data.prompts import class_prompts, find_templates
from clipette.data.templates import WORDINGS
from clipette.runtime.encoder import BundleEncoder
from clipette.runtime.tokens import TableTokenizer
from clipette.serve import describing
from clipette.serve.faults import HttpFault, invalid
from clipette.serve.pictures import bytes_of_text, check_picture
from clipette.serve.reading import answer, read_either, read_json
from clipette.serve.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    LabelScore,
    Usage,
)
from clipette.serve.service import Service
from clipette.serve.threads import run_errand
from clipette.types import Encoder, Floats

AUTO = "auto"
LONGEST_TEXT = 10_000
MOST_PROMPTS = 4096


def model_router(service: Service) -> APIRouter:
    """Both routes, on ``service``."""
    router = APIRouter(tags=["model"])

    @router.post(
        "/v1/classify",
        response_model=ClassifyResponse,
        responses=describing.errors(404, 415, 422),
        openapi_extra=describing.body(
            ClassifyRequest, form={"image": describing.FILE, "labels": {"type": "string", "description": "JSON list"}}
        ),
        summary="Which of these labels fits the picture",
    )
    async def classify(request: Request) -> Response:
        return answer(await _classify(service, await read_either(request, ClassifyRequest)))

    @router.post(
        "/v1/embeddings",
        response_model=EmbeddingsResponse,
        responses=describing.errors(415, 422),
        openapi_extra=describing.body(EmbeddingsRequest),
        summary="Unit vectors of texts or pictures, as OpenAI's API shapes them",
    )
    async def embeddings(request: Request) -> Response:
        return answer(await _embed(service, await read_json(request, EmbeddingsRequest)))

    return router


# ---------------------------------------------------------------- classify


async def _classify(service: Service, asked: ClassifyRequest) -> ClassifyResponse:
    begun = time.monotonic()
    labels = _distinct(service, asked.labels)
    templates = wording(service.encoder.inner, labels) if asked.templates == AUTO else asked.templates
    prompts = class_prompts(labels, templates)
    if sum(map(len, prompts)) > MOST_PROMPTS:
        count = len(find_templates(templates))
        raise invalid(f"{len(labels)} labels in {count} templates: more than {MOST_PROMPTS} prompts", "templates")
    classes = _class_vectors(await service.encoder.texts([text for own in prompts for text in own]), prompts)
    image = (await service.encoder.images([await _picture(service, asked)]))[0]
    cosines = classes @ image
    logits = service.encoder.logit_scale * cosines.astype(np.float64) + service.encoder.logit_bias
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    order = np.argsort(-chances, kind="stable")
    scores = [LabelScore(label=labels[i], probability=float(chances[i]), cosine=float(cosines[i])) for i in order]
    return ClassifyResponse(
        model=service.encoder.name,
        best=scores[0].label,
        scores=scores,
        templates=templates,
        took_ms=round(1000 * (time.monotonic() - begun), 2),
    )


def _distinct(service: Service, labels: Sequence[str]) -> list[str]:
    names = [label.strip() for label in labels]
    if len(names) > service.settings.max_labels:
        raise invalid(f"labels: {len(names)} exceed this server's limit of {service.settings.max_labels}", "labels")
    if not all(names) or len(set(names)) != len(names):
        raise invalid("labels: each must be named, and once only", "labels")
    return names


def wording(encoder: Encoder, labels: Sequence[str]) -> str:
    """``single``; for a bundle of stored texts, the wording under which it knows these labels."""
    if isinstance(encoder, BundleEncoder) and isinstance(encoder.tokenizer, TableTokenizer):
        known = frozenset(encoder.tokenizer.texts)
        for each in WORDINGS:
            if {own[0] for own in class_prompts(labels, each)} <= known:
                return each
    return "single"


def _class_vectors(vectors: Floats, prompts: Sequence[Sequence[str]]) -> Floats:
    """[C, D]: the mean of each class's prompts, of unit length."""
    bounds = np.cumsum([0, *(len(own) for own in prompts)])
    means = np.stack([vectors[a:b].mean(axis=0) for a, b in itertools.pairwise(bounds)])
    unit: Floats = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit


async def _picture(service: Service, asked: ClassifyRequest) -> bytes:
    if asked.image_key is None:
        assert asked.image is not None  # the schema wants one of the two
        data = bytes_of_text(asked.image, service.encoder.limits, "image")
        check_picture(data, service.encoder.limits, "image")
        return data
    key = asked.image_key
    row = service.collection.find(key)
    if row is None or row.kind != "image":
        raise HttpFault(404, "not_found", f"image_key: the collection has no image {key!r}", param="image_key")
    return await run_errand(service.readers, lambda: service.collection.image_bytes(key))


# ---------------------------------------------------------------- embeddings


async def _embed(service: Service, asked: EmbeddingsRequest) -> EmbeddingsResponse:
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 1 <= len(inputs) <= service.settings.max_inputs:
        raise invalid(f"input: {len(inputs)} given; 1 to {service.settings.max_inputs} in one request", "input")
    if asked.dimensions not in (None, service.encoder.dim):
        raise invalid(f"dimensions: this model's vectors have {service.encoder.dim}", "dimensions")
    if asked.modality == "text":
        longest = max(map(len, inputs))
        if longest > LONGEST_TEXT:
            raise invalid(f"input: a text of {longest:,} characters; at most {LONGEST_TEXT:,}", "input")
        vectors = await service.encoder.texts(inputs)
        used = sum(map(len, inputs))
    else:
        pictures = [bytes_of_text(text, service.encoder.limits, f"input.{place}") for place, text in enumerate(inputs)]
        for place, data in enumerate(pictures):
            check_picture(data, service.encoder.limits, f"input.{place}")
        vectors = await service.encoder.images(pictures, "input")
        used = len(pictures)
    return EmbeddingsResponse(
        data=[
            Embedding(index=place, embedding=_written(row, asked.encoding_format)) for place, row in enumerate(vectors)
        ],
        model=service.encoder.name,
        usage=Usage(prompt_tokens=used, total_tokens=used),
    )


def _written(row: Floats, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    values: list[float] = row.tolist()
    return values
