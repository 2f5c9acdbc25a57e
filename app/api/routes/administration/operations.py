"""What a server says of itself: its version, links, health, metrics, and its routes described.

Health is that of the engine's progress, not of the web server.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.api.dependencies import CallerDep, EngineDep, Limits, LimitsDep, MetricsDep, ModelDep
from app.api.errors import ErrorShape
from app.api.openapi import document
from app.api.routing import JSON, TEXT, Answer, Router
from app.api.schemas.base import StrictJSONResponse
from app.api.schemas.server import HealthReply, IndexReply, PingReply, ServerVersionReply
from app.engine.engine import Engine
from app.model.frozen import FrozenModel
from app.tenancy.auth.principal import Scope

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
_HEADERS = {
    "cache-control": "max-age=3600",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_HEALTH = Answer({JSON: HealthReply})
_OURS, _SWAGGER = "app.api", "fastapi_offline"


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


@router.route("GET", "/health/live", answers=_HEALTH, statuses=[200, 503], is_open=True)
async def live(engine: EngineDep, limits: LimitsDep) -> Response:
    """503 once the engine's loop has ended or hangs: the process should be replaced."""
    return _answer(_is_live(engine, limits), engine)


@router.route("GET", "/health/ready", answers=_HEALTH, statuses=[200, 503], is_open=True)
async def ready(engine: EngineDep, limits: LimitsDep) -> Response:
    """503 while new requests would be refused: draining, hanging, ended or full."""
    progress = engine.progress()
    full = progress.waiting >= engine.config.max_waiting > 0
    return _answer(_is_live(engine, limits) and not progress.draining and not full, engine)


@router.route("GET", "/health", answers=_HEALTH, statuses=[200, 503])
async def health(engine: EngineDep, limits: LimitsDep) -> Response:
    """TGI's name for readiness."""
    return _answer(_is_live(engine, limits) and not engine.progress().draining, engine)


@router.route("GET", "/metrics", answers=Answer({TEXT: None}), scopes=[Scope.ADMIN])
async def metrics(collected: MetricsDep) -> Response:
    """Prometheus' text format."""
    return Response(collected.render(), media_type=CONTENT_TYPE_LATEST)


@router.route("GET", "/openapi.json", answers=Answer({JSON: None}), described=False)
async def describe(request: Request, caller: CallerDep) -> Response:
    """The OpenAPI description of all routes, for programs that have a key."""
    app: FastAPI = request.app
    if getattr(app.state, "description", None) is None:
        content = await caller.workers.text.run(caller.tenant, document, app)
        app.state.description = StrictJSONResponse(content).body
    return Response(app.state.description, media_type=JSON)


def _is_live(engine: Engine, limits: Limits) -> bool:
    progress = engine.progress()
    return progress.alive and progress.last_step_age < limits.stall_timeout


def _answer(good: bool, engine: Engine) -> Response:
    progress = engine.progress()
    reply = HealthReply.of(progress, status="ok" if good else "unavailable")
    return reply.response(200 if good else 503)


def _version(request: Request, model: FrozenModel) -> dict[str, str]:
    return {"version": request.app.version, "model": model.spec.model_id}


def _serve(path: str, package: str, name: str, media_type: str) -> None:
    """Makes an open route of a file in the folder `static` of an installed package.

    These are the parts of `GET /docs`, Swagger UI, which fetches `/openapi.json` with the key that
    one types in.
    """
    file = Path(str(files(package))) / "static" / name

    async def docs() -> FileResponse:
        return FileResponse(file, headers=_HEADERS, media_type=media_type)

    router.route("GET", path, answers=Answer({TEXT: None}), is_open=True, described=False)(docs)


_serve("/docs", _OURS, "docs.html", "text/html")
_serve("/docs/page.css", _OURS, "page.css", "text/css")
_serve("/docs/page.js", _OURS, "page.js", "text/javascript")
_serve("/docs/swagger-ui.css", _SWAGGER, "swagger-ui.css", "text/css")
_serve("/docs/swagger-ui-bundle.js", _SWAGGER, "swagger-ui-bundle.js", "text/javascript")
