"""What the routes work with, handed to them by the lifespan.

Knows nothing about routes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from app.api.evaluate_version import EvaluationService
from app.api.generation.generation import GenerationService
from app.api.generation.prefix_selection import PrefixSelector
from app.api.metrics import Metrics
from app.api.side_work.metered import MeteredQueue
from app.api.side_work.turns import ConcurrencyCap, SideQueue
from app.engine.engine import Engine
from app.model.frozen import FrozenModel
from app.registry.registry import Registry
from app.runtime.prefix_cache import PrefixCache
from app.runtime.workers import Workers
from app.tenancy.audit.log import AuditLog
from app.tenancy.auth.authenticator import Authentication
from app.tenancy.auth.keyring import Keyring
from app.tenancy.limits.limiter import Limiter
from app.tenancy.tenants import Tenants
from app.tenancy.usage.ledger import UsageLedger

DEMO_TENANT = "demo"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Bytes and seconds."""

    max_body_bytes: int
    max_request_rows: int
    max_prefix_length: int
    request_timeout: float
    stall_timeout: float


@dataclass(frozen=True)
class Services:
    """Everything that is acquired at start and shared by the routes."""

    model: FrozenModel
    engine: Engine
    registry: Registry
    authentication: Authentication
    accounts: Tenants
    keyring: Keyring
    usage: UsageLedger
    audit: AuditLog
    tiers: PrefixCache
    limiter: Limiter
    metrics: Metrics
    limits: Limits
    workers: Workers
    version: str
    aside: SideQueue = field(default_factory=SideQueue)
    uploads: ConcurrencyCap = field(default_factory=lambda: ConcurrencyCap("uploads"))

    @cached_property
    def generations(self) -> GenerationService:
        """Takes what requests ask for to the engine."""
        return GenerationService(
            model=self.model,
            engine=self.engine,
            selector=PrefixSelector(
                self.model.spec, self.registry, self.workers.catalog, self.tiers
            ),
            limiter=self.limiter,
            usage=self.usage,
            metrics=self.metrics,
            text_pool=self.workers.text,
            max_rows=self.limits.max_request_rows,
            timeout=self.limits.request_timeout,
        )

    @cached_property
    def evaluations(self) -> EvaluationService:
        """Evaluates versions on examples."""
        queue = MeteredQueue(self.aside, self.limiter, self.usage)
        return EvaluationService(self.generations, queue)


async def get_services(request: Request) -> Services:
    """The services of the app that serves `request`."""
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
