"""`GET /openapi.json`: the routes described for programs, to whoever has a key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI, Request, Response

from app.api.dependencies import requires
from app.api.errors import StrictJSONResponse
from app.api.openapi.document import document

router = APIRouter(dependencies=requires())


@router.get("/openapi.json", include_in_schema=False)
async def describe(request: Request) -> Response:
    """The OpenAPI description of all routes."""
    app: FastAPI = request.app
    if getattr(app.state, "description", None) is None:
        content = await asyncio.to_thread(document, app)
        app.state.description = StrictJSONResponse(content).body
    return Response(app.state.description, media_type="application/json")
