"""Errors → HTTP, once: the OpenAI shape, or TGI's on TGI's routes.

Nothing internal leaks: an error that is not ours is logged and answered as "internal error".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app.api.route_advice import RouteAdvice
from app.api.schemas.base import StrictJSONResponse
from app.api.schemas.validation import validation_error
from app.errors import (
    InsufficientStorage,
    InvalidRequest,
    MethodNotAllowed,
    PolyprefixError,
    Unprocessable,
)
from app.tenancy.auth.keys import redact_keys

STORAGE = "polyprefix.storage"
"""The logger of stores and catalogs that are full."""

_log = logging.getLogger(__name__)
_storage_log = logging.getLogger(STORAGE)
_TGI_TYPES = {429: "overloaded", 503: "overloaded", 500: "generation", 504: "generation"}


class ErrorShape(Enum):
    """What the errors of a route look like."""

    POLYPREFIX = "polyprefix"
    """OpenAI's object; a body of the wrong shape is 422."""
    OPENAI = "openai"
    """OpenAI's object; a body of the wrong shape is 400."""
    TGI = "tgi"
    """TGI's `error` and `error_type`; a body of the wrong shape is 422."""


class ErrorResponse(StrictJSONResponse):
    """An error as a response; it leaves its code in the scope for whoever keeps records."""

    def __init__(self, error: PolyprefixError, scope: Scope, headers: Mapping[str, str]) -> None:
        super().__init__(error_body(error, scope), error.status, headers)
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope["error_code"] = self._code
        await super().__call__(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Map what routes raise on purpose to a response; `RequestMiddleware` answers the rest."""
    app.exception_handler(PolyprefixError)(_on_error)
    app.exception_handler(RequestValidationError)(_on_validation)
    app.exception_handler(HTTPException)(_on_http)


def error_body(error: PolyprefixError, scope: Scope) -> dict[str, Any]:
    """The error as JSON content, in the shape of the route; it repeats no key."""
    message = redact_keys(error.message)
    if _shape_of(scope) is ErrorShape.TGI:
        return {"error": message, "error_type": _TGI_TYPES.get(error.status, "validation")}
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    if error.status == 429:
        kind = "rate_limit_error"
    fields = {
        "message": message,
        "type": kind,
        "param": error.param and redact_keys(error.param),
        "code": error.code,
    }
    return {"error": fields}


def _shape_of(scope: Scope) -> ErrorShape:
    """As the route of this request says, also if the request is refused before it gets there."""
    route = scope.get("route")
    if route is None:
        routes = getattr(scope.get("app"), "routes", ())
        route = next((each for each in routes if each.matches(scope)[0] is not Match.NONE), None)
    shape: ErrorShape = getattr(route, "error_shape", ErrorShape.POLYPREFIX)
    return shape


def error_response(error: PolyprefixError, scope: Scope) -> Response:
    """The error as a response, with its headers and `Retry-After` where waiting helps."""
    if isinstance(error, InsufficientStorage):
        _storage_log.error("no room: %s (%s)", error.message, error.__cause__ or error.code)
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return ErrorResponse(error, scope, headers)


def internal_error(error: Exception, scope: Scope) -> Response:
    """The response to an error that nobody foresaw; only the log says what it was."""
    _log.error("unexpected error at %s", scope["path"], exc_info=error)
    return error_response(PolyprefixError("internal error"), scope)


async def _on_error(request: Request, error: PolyprefixError) -> Response:
    return error_response(error, request.scope)


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    """The first thing that is wrong with a body, by the name of its field."""
    is_openai = _shape_of(request.scope) is ErrorShape.OPENAI
    status = InvalidRequest.status if is_openai else Unprocessable.status
    return error_response(validation_error(error.errors(), status=status), request.scope)


async def _on_http(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: unknown methods, and bodies that its parser gave up."""
    path, headers = request.scope["path"], dict(error.headers or {})
    ours: PolyprefixError
    if error.status_code == 405:
        # of the routes of one path the framework names only the first one's method
        headers["allow"] = ", ".join(RouteAdvice.of(request.app).methods(path))
        ours = MethodNotAllowed(f"{path} takes {headers['allow']}, not {request.method[:10]}")
    else:
        # 400 is the framework's for a body that its parser gave up
        unread = (
            "the body is no JSON in UTF-8, is nested too deeply or has a number that is too long"
        )
        ours = PolyprefixError(unread if error.status_code == 400 else str(error.detail))
        ours.status, ours.code = error.status_code, "invalid_request"
    response = error_response(ours, request.scope)
    for name, value in headers.items():
        response.headers[name] = value
    return response
