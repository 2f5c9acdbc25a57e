"""Health and metrics: from the engine's progress, not the web server's."""

from __future__ import annotations

from fastapi import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.api.dependencies import EngineDep, Limits, LimitsDep, MetricsDep
from app.api.routing import JSON, TEXT, Answer, Router
from app.api.schemas.server import HealthReply
from app.engine.engine import Engine
from app.tenancy.auth.principal import Scope

router = Router("operations")

_HEALTH = Answer({JSON: HealthReply})


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


def _is_live(engine: Engine, limits: Limits) -> bool:
    progress = engine.progress()
    return progress.alive and progress.last_step_age < limits.stall_timeout


def _answer(good: bool, engine: Engine) -> Response:
    progress = engine.progress()
    reply = HealthReply.of(progress, status="ok" if good else "unavailable")
    return reply.response(200 if good else 503)
