"""Errors as the API says them: ``{"error": {"message", "type", "param"}}``; 4xx is the client's fault, 5xx ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import pydantic
from starlette.requests import Request
from starlette.responses import Response

from clipette.errors import BadImageError, ClipetteError, ConfigError, DataError, StoreError, UnsupportedError

log = logging.getLogger(__name__)


class HttpFault(Exception):
    """A refusal with its status. ``param``: the field at fault."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.headers = dict(headers or {})


class Overloaded(HttpFault):
    """Too much to do: nothing was begun, the same request may be sent again after ``seconds``."""

    def __init__(self, what: str, seconds: float) -> None:
        after = max(1, round(seconds))
        message = f"{what}: try again in {after} s"
        super().__init__(429, "overloaded", message, headers={"Retry-After": str(after)})


class Stopping(HttpFault):
    """The server is being stopped."""

    def __init__(self) -> None:
        super().__init__(503, "stopping", "the server is stopping", headers={"Retry-After": "5"})


def not_found(what: str) -> HttpFault:
    """404."""
    return HttpFault(404, "not_found", what)


def invalid(message: str, param: str | None = None) -> HttpFault:
    """422: the request was read, and says something it may not."""
    return HttpFault(422, "invalid_request", message, param=param)


# Which of our errors are a client's fault, and what the API calls them; the first that fits counts.
CLIENT_FAULTS: tuple[tuple[type[ClipetteError], int, str], ...] = (
    (BadImageError, 400, "bad_image"),
    (UnsupportedError, 400, "unsupported"),
    (ConfigError, 400, "invalid_request"),
    (DataError, 400, "invalid_request"),
)


def fault_of(error: Exception) -> HttpFault:
    """Any exception as what the client is told. The unexpected is logged here and told in no detail."""
    if isinstance(error, HttpFault):
        return error
    if isinstance(error, pydantic.ValidationError):
        return _validation(error)
    for kind, status, name in CLIENT_FAULTS:
        if isinstance(error, kind):
            return HttpFault(status, name, str(error))
    if isinstance(error, StoreError):
        # A key that was deleted while it was being used, or files that someone damaged: asked again, it is one or both.
        log.error("the collection could not answer", exc_info=error)
        return HttpFault(503, "collection", "the collection could not answer", headers={"Retry-After": "1"})
    log.error("request failed", exc_info=error)
    return HttpFault(500, "internal", "the server failed to answer this request; its log says why")


def _validation(error: pydantic.ValidationError) -> HttpFault:
    """The first complaint, without the input: it may be huge, or secret."""
    every = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a value that may be of several types, the complaint of the one that was meant.
    first = next((each for each in every if each["type"] == "finite_number"), every[0])
    if first["type"] == "json_invalid":
        return HttpFault(400, "invalid_json", f"the body is not JSON: {first['msg']}")
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{where}: {message}" if where else message, where or None)


def body_of(fault: HttpFault) -> bytes:
    """The JSON of a fault; always ASCII, so that any text in a message can be sent."""
    return json.dumps({"error": {"message": fault.message, "type": fault.kind, "param": fault.param}}).encode()


def respond(fault: HttpFault) -> Response:
    """The fault as a response."""
    return Response(body_of(fault), fault.status, media_type="application/json", headers=fault.headers)


async def on_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for every exception."""
    return respond(fault_of(error))
