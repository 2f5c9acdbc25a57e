"""`GET /openapi.json`: the routes described for programs, to whoever has a key."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response

from app.api.auth import requires
from app.api.errors import StrictJSONResponse

router = APIRouter(dependencies=requires())

_BEARER = {"type": "http", "scheme": "bearer", "description": "an API key, `pfx_…`"}


@router.get("/openapi.json", include_in_schema=False)
async def describe(request: Request) -> Response:
    """The OpenAPI description of all routes."""
    app: FastAPI = request.app
    content = dict(app.openapi())
    components = {**content.get("components", {}), "securitySchemes": {"bearer": _BEARER}}
    return StrictJSONResponse({**content, "components": components, "security": [{"bearer": []}]})
