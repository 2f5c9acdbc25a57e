"""Health and metrics: from the engine's progress, not the web server's."""

from __future__ import annotations

from fastapi import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.api.routing import JSON, TEXT, Answer, Router
from app.api.schemas.server import HealthReply
from app.api.services import Services, ServicesDep
from app.tenancy.auth.principal import Scope

router = Router("operations")

_HEALTH = Answer({JSON: HealthReply})


@router.route("GET", "/health/live", answers=_HEALTH, statuses=[200, 503], is_open=True)
async def live(services: ServicesDep) -> Response:
    """503 once the engine's loop has ended or hangs: the process should be replaced."""
    return _answer(_is_live(services), services)


@router.route("GET", "/health/ready", answers=_HEALTH, statuses=[200, 503], is_open=True)
async def ready(services: ServicesDep) -> Response:
    """503 while new requests would be refused: draining, hanging, ended or full."""
    progress = services.engine.progress()
    full = progress.waiting >= services.engine.config.max_waiting > 0
    return _answer(_is_live(services) and not progress.draining and not full, services)


@router.route("GET", "/health", answers=_HEALTH, statuses=[200, 503])
async def health(services: ServicesDep) -> Response:
    """TGI's name for readiness."""
    return _answer(_is_live(services) and not services.engine.progress().draining, services)


@router.route("GET", "/metrics", answers=Answer({TEXT: None}), scopes=[Scope.ADMIN])
async def metrics(services: ServicesDep) -> Response:
    """Prometheus' text format."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _is_live(services: Services) -> bool:
    progress = services.engine.progress()
    return progress.alive and progress.last_step_age < services.limits.stall_timeout


def _answer(good: bool, services: Services) -> Response:
    progress = services.engine.progress()
    reply = HealthReply.of(progress, status="ok" if good else "unavailable")
    return reply.response(200 if good else 503)
