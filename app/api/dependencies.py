"""What routes ask for in their signatures: the caller, and the parts of the server they use.

The lifespan puts the parts into the state of every request; a route names those that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypedDict, TypeVar

from fastapi import Depends, Request

from app.api.evaluate_version import EvaluationService
from app.api.generation.generation import GenerationService
from app.api.metrics import Metrics
from app.api.middleware.audit import audited_call
from app.api.publish_version import VersionPublisher
from app.api.side_work import ConcurrencyCap
from app.db.database import Actor
from app.engine.engine import Engine
from app.jobs.services import TrainingServices
from app.model.frozen import FrozenModel
from app.registry.registry import Registry
from app.runtime.prefix_cache import PrefixCache
from app.runtime.workers import Workers
from app.tenancy.audit.log import AuditLog
from app.tenancy.auth.authenticator import Authentication
from app.tenancy.auth.keyring import Keyring
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limiter import Limiter
from app.tenancy.tenants import Tenants
from app.tenancy.usage.ledger import UsageLedger

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Bytes and seconds."""

    max_body_bytes: int
    max_training_file_bytes: int
    max_request_rows: int
    max_prefix_length: int
    request_timeout: float
    stall_timeout: float


class State(TypedDict):
    """What the lifespan acquires; each request's state has all of it."""

    model: FrozenModel
    engine: Engine
    registry: Registry
    prefix_cache: PrefixCache
    workers: Workers
    publisher: VersionPublisher
    limiter: Limiter
    limits: Limits
    metrics: Metrics
    authentication: Authentication
    tenants: Tenants
    keyring: Keyring
    usage: UsageLedger
    audit: AuditLog
    uploads: ConcurrencyCap
    streams: ConcurrencyCap
    training: TrainingServices
    evaluations: EvaluationService
    generations: GenerationService


@dataclass(frozen=True)
class FromState:
    """A dependency: what the request's state has under this name."""

    name: str

    async def __call__(self, request: Request) -> Any:
        """The value; AttributeError if the lifespan did not put it there."""
        return getattr(request.state, self.name)


ModelDep = Annotated[FrozenModel, Depends(FromState("model"))]
EngineDep = Annotated[Engine, Depends(FromState("engine"))]
RegistryDep = Annotated[Registry, Depends(FromState("registry"))]
PrefixCacheDep = Annotated[PrefixCache, Depends(FromState("prefix_cache"))]
WorkersDep = Annotated[Workers, Depends(FromState("workers"))]
LimitsDep = Annotated[Limits, Depends(FromState("limits"))]
PublisherDep = Annotated[VersionPublisher, Depends(FromState("publisher"))]
MetricsDep = Annotated[Metrics, Depends(FromState("metrics"))]
TenantsDep = Annotated[Tenants, Depends(FromState("tenants"))]
KeyringDep = Annotated[Keyring, Depends(FromState("keyring"))]
UsageDep = Annotated[UsageLedger, Depends(FromState("usage"))]
UploadsDep = Annotated[ConcurrencyCap, Depends(FromState("uploads"))]
StreamsDep = Annotated[ConcurrencyCap, Depends(FromState("streams"))]
TrainingDep = Annotated[TrainingServices, Depends(FromState("training"))]
EvaluationsDep = Annotated[EvaluationService, Depends(FromState("evaluations"))]
GenerationsDep = Annotated[GenerationService, Depends(FromState("generations"))]
PrincipalDep = Annotated[Principal, Depends(FromState("principal"))]
"""The caller, as authentication knows them."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request; what they ask of the catalog runs in threads, when it is their turn."""

    principal: Principal
    actor: Actor
    workers: Workers

    @property
    def tenant(self) -> str:
        """The tenant that is asking."""
        return self.principal.tenant

    async def read(
        self,
        work: Callable[Parameters, Result],
        /,
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """What `work` answers, which reads the catalog."""
        return await self.workers.catalog.run(self.tenant, work, *arguments, **named)

    async def write(self, work: Callable[..., Result], /, *arguments: Any, **named: Any) -> Result:
        """What `work` answers, which changes the catalog and is told the `actor` who wants it."""
        pool = self.workers.writes
        return await pool.finish(self.tenant, work, *arguments, actor=self.actor, **named)


async def get_caller(request: Request) -> Caller:
    """Every route that touches a tenant's things goes through here."""
    state = request.state
    return Caller(state.principal, audited_call(request.scope, state.audit), state.workers)


CallerDep = Annotated[Caller, Depends(get_caller)]
