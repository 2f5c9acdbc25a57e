"""The OpenAPI document: what the framework knows of the routes, and what they answer.

Which errors a route has follows from what it takes and what it wants of a key; `replies` has the
rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from app.api.dependencies import Requires
from app.api.errors import OPENAI_PATHS, TGI_PATHS
from app.api.middleware.audit import UNRECORDED
from app.api.middleware.authentication import OPEN
from app.api.openapi.prefixes import PREFIXES
from app.api.openapi.replies import FILE, JSON, REPLIES, Replies, Reply
from app.api.openapi.serving import SERVING
from app.api.openapi.shapes import TEXT, Schema, ref
from app.api.openapi.tenants import TENANTS

_BEARER = {"type": "http", "scheme": "bearer", "description": "an API key, `pfx_…`"}
_NAME = "^[a-z0-9][a-z0-9._-]{0,63}$"
_ABOUT = (
    "One frozen language model that serves many prefixes of many tenants. A key's scopes stand at "
    "each route; what is another tenant's is answered as what does not exist."
)

_PARAMETERS: dict[str, Schema] = {
    "name": {"pattern": _NAME, "description": "a prefix's name"},
    "alias": {
        "pattern": _NAME,
        "description": "an alias: a name that does not look like a digest",
    },
    "digest": {
        "pattern": "^[0-9a-f]{6,64}$",
        "description": "a version's SHA-256, or a start of it that is unique in the prefix",
    },
    "model_id": {"description": "the base model, or a prefix as requests call it"},
    "tenant_id": {"pattern": _NAME, "description": "a tenant's id"},
    "kid": {"minLength": 1, "description": "the public part of a key"},
}
"""What parameters in paths look like; others are answered with 400 or 404."""

_ERRORS = {
    400: "Understood and impossible; `param` names the field.",
    401: "No API key, or not one that is valid now.",
    403: "The API key does not allow this.",
    404: "No such thing, or not the caller's.",
    409: "The request contradicts the present state.",
    412: "`If-Match` names another state than the present one.",
    413: "The body is too large.",
    415: "The body's content type or encoding is not accepted.",
    422: "The request does not have the shape that is described here.",
    429: "A limit of this tenant, or of failed attempts from this address, is used up.",
    500: "A fault of the server's; its log says what.",
    503: "The server cannot take the request now.",
    504: "The request's own `timeout`, or the server's, has passed.",
    507: "The store or the catalog cannot take more.",
}
"""What the statuses of errors mean."""

_ERROR_HEADERS = {
    401: ("www-authenticate",),
    429: ("retry-after",),
    503: ("retry-after",),
}


def document(app: FastAPI) -> dict[str, Any]:
    """The description of all routes that are to be described, as OpenAPI 3.1."""
    content = get_openapi(
        title=app.title, version=app.version, description=_ABOUT, routes=app.routes
    )
    for path, method, name, dependant in _operations(app):
        operation = content["paths"].get(path, {}).get(method)
        if operation is not None:
            operation["operationId"] = name
            _complete(operation, path, method, REPLIES[name], list(_wanted(dependant)))
    components = content["components"]
    known = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    components["schemas"] = dict(sorted({**known, **SERVING, **PREFIXES, **TENANTS}.items()))
    components["securitySchemes"] = {"bearer": _BEARER}
    content["security"] = [{"bearer": []}]
    return content


def _operations(app: FastAPI) -> Iterator[tuple[str, str, str, Dependant]]:
    """Path, method, function's name and dependencies of every route."""
    for context in iter_route_contexts(app.routes):
        dependant = getattr(context, "dependant", None)
        if isinstance(dependant, Dependant):
            for method in context.methods or ():
                yield str(context.path_format), method.lower(), str(context.name), dependant


def _wanted(dependant: Dependant) -> Iterator[tuple[str, ...]]:
    """Sets of scopes, of each of which a key must have one."""
    if isinstance(dependant.call, Requires) and dependant.call.scopes:
        yield tuple(dependant.call.scopes)
    for below in dependant.dependencies:
        yield from _wanted(below)


def _complete(
    operation: dict[str, Any],
    path: str,
    method: str,
    replies: Replies,
    wanted: list[tuple[str, ...]],
) -> None:
    """Adds to what the framework says of one operation."""
    operation["tags"] = [replies.tag]
    if path in OPEN:
        operation["security"] = []
    else:
        # alternatives, each with all the scopes that it takes
        chosen = [list(dict.fromkeys(scopes)) for scopes in product(*wanted)]
        operation["security"] = [{"bearer": scopes} for scopes in chosen]
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["schema"] |= _PARAMETERS[parameter["name"]]
    if operation["operationId"] == "upload_version":
        operation["requestBody"] = {
            "description": "the safetensors file itself",
            "required": True,
            "content": {FILE: {"schema": {"type": "string", "format": "binary"}}},
        }
    statuses = _errors(operation, path, method, replies, bool(wanted))
    shape = "TgiError" if path in TGI_PATHS else "Error"
    responses = {status: _error(status, shape) for status in statuses}
    for status, reply in replies.good.items():
        responses[status] = _good(status, reply, responses.get(status))
    operation["responses"] = {str(status): responses[status] for status in sorted(responses)}


def _errors(
    operation: dict[str, Any], path: str, method: str, replies: Replies, scoped: bool
) -> set[int]:
    """The statuses of the errors that the route has."""
    found = {500, *replies.errors}
    if path not in OPEN:
        found |= {401, 429, 503}
    if scoped:
        found.add(403)
    places = {parameter["in"] for parameter in operation.get("parameters", [])}
    if places or "requestBody" in operation:
        found.add(400)
    if "path" in places:
        found.add(404)
    shaped = places - {"path"} or JSON in operation.get("requestBody", {}).get("content", ())
    if shaped and path not in OPENAI_PATHS:
        found.add(422)
    if method != "get":
        found |= {413, 415}
        if operation["operationId"] not in UNRECORDED:
            found.add(507)
    return found


def _error(status: int, shape: str) -> dict[str, Any]:
    return {
        "description": _ERRORS[status],
        **_headers(_ERROR_HEADERS.get(status, ())),
        "content": {JSON: {"schema": ref(shape)}},
    }


def _good(status: int, reply: Reply, error: dict[str, Any] | None) -> dict[str, Any]:
    """A reply that a route gives by itself, where an error may have the same status."""
    content = {
        media_type: {"schema": TEXT if name is None else ref(name)}
        for media_type, name in reply.bodies.items()
    }
    described = {
        200: "Done.",
        201: "Made.",
        503: "New requests would be refused.",
    }[status]
    if error is not None:
        content[JSON] = {
            "schema": {"anyOf": [content[JSON]["schema"], error["content"][JSON]["schema"]]}
        }
    return {"description": described, **_headers(reply.headers), "content": content}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    headers = {name: {"schema": TEXT} for name in names}
    return {"headers": headers} if headers else {}
