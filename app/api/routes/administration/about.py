"""What a server says of itself to whoever finds it: links, its version, and that it is there."""

from __future__ import annotations

from fastapi import Request, Response

from app.api.dependencies import ModelDep
from app.api.errors import ErrorShape
from app.api.routing import Router
from app.api.schemas.server import IndexReply, PingReply, ServerVersionReply
from app.model.frozen import FrozenModel

router = Router("operations")

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


@router.route("GET", "/", answers=IndexReply, error_shape=ErrorShape.TGI)
async def index(request: Request, model: ModelDep) -> Response:
    """The server's name, and where its parts are. (`POST /` is TGI's.)"""
    return IndexReply(**_version(request, model), links=_LINKS).response()


@router.route("GET", "/version", answers=ServerVersionReply)
async def server_version(request: Request, model: ModelDep) -> Response:
    """The server's version and the base model that it serves."""
    return ServerVersionReply(**_version(request, model)).response()


@router.route("GET", "/ping", answers=PingReply, is_open=True)
async def ping() -> Response:
    """200 and nothing more, to everybody: the web server answers."""
    return PingReply().response()


def _version(request: Request, model: FrozenModel) -> dict[str, str]:
    return {"version": request.app.version, "model": model.spec.model_id}
