"""What the routes work with, handed to them by the lifespan.

Knows nothing about routes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.metrics import Metrics
from app.api.side_work.concurrency_cap import ConcurrencyCap
from app.api.side_work.turns import SideQueue
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
from app.tenancy.usage.recorder import UsageLedger

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
    evaluations: ConcurrencyCap = field(default_factory=lambda: ConcurrencyCap("evaluations"))

    @property
    def system_fingerprint(self) -> str:
        """Replicas with the same one compute the same numbers."""
        model = self.model
        dtype = str(model.dtype).removeprefix("torch.")
        parts = [
            model.spec.fingerprint[:12],
            model.device.type,
            dtype,
            self.engine.decode_attention,
        ]
        if "few_rows" in model.notes:
            parts.append(f"{model.notes['few_rows']}-rows")
        return "-".join(parts)


async def get_services(request: Request) -> Services:
    """The services of the app that serves `request`."""
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
