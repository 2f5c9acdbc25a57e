"""`GET /openapi.json`: the routes described for programs, to whoever has a key."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from app.api.dependencies import TenantDep, WorkersDep
from app.api.openapi import document
from app.api.routing import JSON, Answer, Router
from app.api.schemas.base import StrictJSONResponse

router = Router("operations")


@router.route("GET", "/openapi.json", answers=Answer({JSON: None}), described=False)
async def describe(request: Request, workers: WorkersDep, tenant: TenantDep) -> Response:
    """The OpenAPI description of all routes."""
    app: FastAPI = request.app
    if getattr(app.state, "description", None) is None:
        content = await workers.text.run(tenant, document, app)
        app.state.description = StrictJSONResponse(content).body
    return Response(app.state.description, media_type=JSON)
