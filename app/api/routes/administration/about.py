"""What a server says of itself to whoever finds it: links, its version, and that it is there."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import requires
from app.api.errors import StrictJSONResponse
from app.api.services import ServicesDep

router = APIRouter()

_LINKS = {
    "completions": "/v1/completions",
    "models": "/v1/models",
    "prefixes": "/v1/prefixes",
    "info": "/info",
    "version": "/version",
    "health": "/health/ready",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
}


@router.get("/", dependencies=requires())
async def index(services: ServicesDep) -> Response:
    """The server's name, and where its parts are. (`POST /` is TGI's.)"""
    return StrictJSONResponse({"name": "polyprefix", **_version(services), "links": _LINKS})


@router.get("/version", dependencies=requires())
async def server_version(services: ServicesDep) -> Response:
    """The server's version and the base model that it serves."""
    return StrictJSONResponse(_version(services))


@router.get("/ping")
async def ping() -> Response:
    """200 and nothing more, to everybody: the web server answers."""
    return StrictJSONResponse({"status": "ok"})


def _version(services: ServicesDep) -> dict[str, str]:
    return {"version": services.version, "model": services.model.spec.model_id}
