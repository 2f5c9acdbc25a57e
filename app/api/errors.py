"""Errors → HTTP, once: the OpenAI shape, or TGI's on TGI's routes.

Nothing internal leaks: an error that is not ours is logged and answered as "internal error".
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.api.middleware.access_log import STORAGE
from app.api.route_advice import RouteAdvice
from app.api.schemas.validation import validation_error
from app.errors import (
    InsufficientStorage,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PolyprefixError,
    Unprocessable,
)
from app.tenancy.auth.keys import redact_keys

_log = logging.getLogger(__name__)
_storage_log = logging.getLogger(STORAGE)

TGI_PATHS = frozenset({"/", "/generate", "/generate_stream"})

OPENAI_PATHS = frozenset({"/v1/completions"})
"""Where a body of the wrong shape is answered with 400, as OpenAI does; elsewhere with 422."""

_TGI_TYPES = {429: "overloaded", 503: "overloaded", 500: "generation", 504: "generation"}


class StrictJSONResponse(JSONResponse):
    """JSON that never holds NaN."""

    def render(self, content: Any) -> bytes:
        """Compact UTF-8 JSON."""
        return json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()


class ErrorResponse(StrictJSONResponse):
    """An error as a response; it leaves its code in the scope for whoever keeps records."""

    def __init__(self, error: PolyprefixError, path: str, headers: Mapping[str, str]) -> None:
        super().__init__(error_body(error, path), error.status, headers)
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope["error_code"] = self._code
        await super().__call__(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Map what routes raise on purpose to a response; `Observe` answers what is left.

    The app has all its routes by now.
    """
    app.add_exception_handler(PolyprefixError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, partial(_on_http, RouteAdvice.of(app)))


def error_body(error: PolyprefixError, path: str) -> dict[str, Any]:
    """The error as JSON content, in the shape that `path` speaks; it repeats no key."""
    message = redact_keys(error.message)
    if path in TGI_PATHS:
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


def error_response(error: PolyprefixError, path: str) -> Response:
    """The error as a response, with its headers and `Retry-After` where waiting helps."""
    if isinstance(error, InsufficientStorage):
        _storage_log.error("no room: %s (%s)", error.message, error.__cause__ or error.code)
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return ErrorResponse(error, path, headers)


def internal_error(error: Exception, path: str) -> Response:
    """The response to an error that nobody foresaw; the log alone says what it was."""
    _log.error("unexpected error at %s", path, exc_info=error)
    return error_response(PolyprefixError("internal error"), path)


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, PolyprefixError):
        return internal_error(error, request.scope["path"])
    return error_response(error, request.scope["path"])


async def _on_validation(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body, by the name of its field."""
    if not isinstance(error, RequestValidationError):
        return internal_error(error, request.scope["path"])
    path = request.scope["path"]
    status = InvalidRequest.status if path in OPENAI_PATHS else Unprocessable.status
    return error_response(validation_error(error.errors(), status=status), path)


async def _on_http(advice: RouteAdvice, request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths and methods."""
    path = request.scope["path"]
    if not isinstance(error, HTTPException):
        return internal_error(error, path)
    headers = dict(error.headers or {})
    ours: PolyprefixError
    if error.status_code == 404:
        ours = NotFound(advice.missing(request.method, path))
    elif error.status_code == 405:
        # of the routes of one path the framework names the first one's alone
        headers["allow"] = ", ".join(advice.methods(path))
        ours = MethodNotAllowed(f"{path} takes {headers['allow']}, not {request.method[:10]}")
    else:
        # 400 is the framework's for a body that its parser gave up
        unread = (
            "the body is no JSON in UTF-8, is nested too deeply or has a number that is too long"
        )
        ours = PolyprefixError(unread if error.status_code == 400 else str(error.detail))
        ours.status, ours.code = error.status_code, "invalid_request"
    response = error_response(ours, path)
    for name, value in headers.items():
        response.headers[name] = value
    return response
