"""The OpenAPI document: what the framework knows of the routes, and what they say they answer.

Which errors a route has follows from what it takes and from what it wants of a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from app.api.errors import ErrorShape
from app.api.routing import FILE, FORM, JSON, READING, Events, Route
from app.api.schemas.base import ErrorReply, TgiErrorReply
from app.api.schemas.patterns import DIGEST_START, NAME
from app.jobs.ids import FILE_ID, JOB_ID

Schema = dict[str, Any]

_ABOUT = (
    "One frozen language model that serves many prefixes of many tenants. Each route lists the "
    "scopes that a key needs. Another tenant's resources look exactly like resources that do not "
    "exist."
)
_BEARER = {"type": "http", "scheme": "bearer", "description": "an API key, `pfx_…`"}
_REFS = "#/components/schemas/{model}"
_TEXT: Schema = {"type": "string"}
_PARAMETERS: dict[str, Schema] = {
    "name": {"pattern": NAME, "description": "a prefix's name"},
    "alias": {
        "pattern": NAME,
        "description": "an alias: a name that does not look like a digest",
    },
    "digest": {
        "pattern": DIGEST_START,
        "description": "a version's SHA-256, or a start of it that is unique in the prefix",
    },
    "model_id": {"description": "the base model, or a prefix as requests call it"},
    "tenant_id": {"pattern": NAME, "description": "a tenant's id"},
    "kid": {"minLength": 1, "description": "the public part of a key"},
    "file_id": {"pattern": FILE_ID, "description": "a file's id"},
    "job_id": {"pattern": JOB_ID, "description": "a fine-tuning job's id"},
}
"""What parameters in paths look like; others are answered with 400 or 404."""

_DONE = {200: "Done.", 201: "Made.", 503: "New requests would be refused."}
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
"""What the statuses mean."""

_ERROR_HEADERS = {
    401: ("www-authenticate",),
    429: ("retry-after",),
    503: ("retry-after",),
}


class _Names(GenerateJsonSchema):
    """Schemas are called after what they describe: `Version`, not `VersionReply`."""

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("Reply")


def document(app: FastAPI) -> dict[str, Any]:
    """The description of all routes that are to be described, as OpenAPI 3.1."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.include_in_schema]
    content = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=routes)
    refs, schemas = _reply_schemas(routes)
    for route in routes:
        operation = content["paths"][route.path_format][route.method.lower()]
        _complete(operation, route, refs)
    components = content["components"]
    known = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    components["schemas"] = dict(sorted({**known, **schemas}.items()))
    components["securitySchemes"] = {"bearer": _BEARER}
    content["security"] = [{"bearer": []}]
    return content


def _reply_schemas(
    routes: Iterable[Route],
) -> tuple[Mapping[type[BaseModel], Schema], dict[str, Schema]]:
    """A reference to the schema of each class of replies and of errors; and all schemas by name."""
    models: dict[type[BaseModel], None] = {ErrorReply: None, TgiErrorReply: None}
    for route in routes:
        for item in route.answers.content.values():
            model = item.item if isinstance(item, Events) else item
            if model is not None:
                models[model] = None
    found, definitions = models_json_schema(
        [(model, "serialization") for model in models],
        ref_template=_REFS,
        schema_generator=_Names,
    )
    return {model: found[model, "serialization"] for model in models}, definitions["$defs"]


def _complete(
    operation: dict[str, Any], route: Route, refs: Mapping[type[BaseModel], Schema]
) -> None:
    """Adds to what the framework says of one operation."""
    if route.is_open:
        operation["security"] = []
    else:
        # alternatives, each with all the scopes that it takes
        chosen = product(*(sorted(wanted) for wanted in route.scopes))
        operation["security"] = [{"bearer": list(dict.fromkeys(scopes))} for scopes in chosen]
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["schema"] |= _PARAMETERS.get(parameter["name"], {})
    if route.takes_file:
        operation["requestBody"] = {
            "description": "the safetensors file itself",
            "required": True,
            "content": {FILE: {"schema": {"type": "string", "format": "binary"}}},
        }
    if route.takes_form is not None:
        schema = route.takes_form.model_json_schema(ref_template=_REFS)
        operation["requestBody"] = {"required": True, "content": {FORM: {"schema": schema}}}
    error = refs[TgiErrorReply if route.error_shape is ErrorShape.TGI else ErrorReply]
    responses = {status: _error(status, error) for status in _statuses(operation, route)}
    good = {
        media_type: {"schema": _schema(item, refs, error)}
        for media_type, item in route.answers.content.items()
    }
    for status in route.statuses:
        content = good
        if status in responses:  # an error may have the status of a good reply
            either = {"schema": {"anyOf": [good[JSON]["schema"], error]}}
            content = {**good, JSON: either}
        headers = _headers(route.answers.headers)
        responses[status] = {"description": _DONE[status], **headers, "content": content}
    operation["responses"] = {str(status): responses[status] for status in sorted(responses)}


def _statuses(operation: Mapping[str, Any], route: Route) -> set[int]:
    """The statuses of the errors that the route has."""
    found = {500, *route.errors}
    if not route.is_open:
        found |= {401, 429, 503}
    if route.scopes:
        found.add(403)
    places = {parameter["in"] for parameter in operation.get("parameters", [])}
    if places or "requestBody" in operation:
        found.add(400)
    if "path" in places:
        found.add(404)
    shaped = places - {"path"} or JSON in operation.get("requestBody", {}).get("content", ())
    if shaped and route.error_shape is not ErrorShape.OPENAI:
        found.add(422)
    if route.method not in READING:
        found |= {413, 415}
        if route.audited:
            found.add(507)
    return found


def _schema(
    item: type[BaseModel] | Events | None, refs: Mapping[type[BaseModel], Schema], error: Schema
) -> Schema:
    """What one media type of a reply holds."""
    if item is None:
        return _TEXT
    if not isinstance(item, Events):
        return refs[item]
    data: Schema = {
        "contentMediaType": JSON,
        "contentSchema": {"anyOf": [refs[item.item], error]},
    }
    shape = data if item.end is None else {"anyOf": [{"enum": [item.end]}, data]}
    return {"type": "object", "properties": {"data": {**_TEXT, **shape}}}


def _error(status: int, schema: Schema) -> dict[str, Any]:
    headers = _headers(_ERROR_HEADERS.get(status, ()))
    return {"description": _ERRORS[status], **headers, "content": {JSON: {"schema": schema}}}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    headers = {name: {"schema": _TEXT} for name in names}
    return {"headers": headers} if headers else {}
