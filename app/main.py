"""The application: everything it needs is acquired and released in one visible place."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI

from app.api.dependencies import Limits, State
from app.api.errors import install_error_handlers
from app.api.evaluate_version import EvaluationService
from app.api.generation.generation import GenerationService
from app.api.generation.prefix_selection import PrefixSelector
from app.api.metrics import Metrics
from app.api.middleware.authentication import AuthenticationMiddleware
from app.api.middleware.http import RequestMiddleware
from app.api.publish_version import VersionPublisher
from app.api.routes.all_routes import ALL_ROUTES
from app.api.routing import no_route, open_paths
from app.api.schemas.base import StrictJSONResponse
from app.api.side_work import ConcurrencyCap, MeteredQueue, SideQueue
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.start_up import announced, prepare_engine
from app.errors import InvalidRequest
from app.jobs.services import TrainingServices
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.model.threads import run_in_fresh_thread
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.shipped.import_ import DEMO_TENANT, seed
from app.runtime.following import follow_catalog
from app.runtime.prefix_cache import PrefixCache
from app.runtime.prefix_loader import stored_prefixes
from app.runtime.workers import PeriodicThread, Workers
from app.settings import Settings
from app.tenancy.audit.log import AuditLog
from app.tenancy.auth.authenticator import Anonymous, Authentication, KeyAuthenticator
from app.tenancy.auth.failed_attempts import FailedAttempts
from app.tenancy.auth.keyring import Keyring
from app.tenancy.auth.principal import Principal, Scope
from app.tenancy.limits.limiter import Limiter
from app.tenancy.limits.shared import RedisLimits
from app.tenancy.tenants import Tenants
from app.tenancy.usage.ledger import DAY, WRITE_S, UsageLedger
from app.worker.embedded import EmbeddedWorker
from app.worker.server_side import embedded_worker

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_POLL_S = 0.45
"""Seconds between two looks at the catalog: what others write is followed within one second."""
_NOTE_USES_S = 5.0
_WRITE_REFUSALS_S = 10.0
_PRUNE_S = 3600.0
_TRAINING_S = 10.0
_HOW_TO_KEYS = (
    "set POLYPREFIX_KEY_PEPPER to a random secret of 32 characters or more and make a key with "
    "`polyprefix tenant create NAME` and `polyprefix key create NAME --admin`"
)


def create_app(settings: Settings, model: FrozenModel | None = None) -> FastAPI:
    """The ASGI app. `model` is one that is loaded already; else `settings.model` is loaded.

    Raises InvalidRequest for settings under which the server must not start.
    """
    if not (settings.is_loopback or settings.pepper or settings.allow_anonymous):
        raise InvalidRequest(
            f"refusing to listen on {settings.host!r}: there are no API keys, so anybody who "
            f"reaches the port could use and change everything; {_HOW_TO_KEYS}, or listen on "
            "127.0.0.1, or set allow_anonymous (POLYPREFIX_ALLOW_ANONYMOUS=true) if the network "
            "is trusted"
        )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            app.state.acquired = await _acquire(settings, model, stack)
            yield app.state.acquired
            app.state.acquired = None

    app = FastAPI(
        title="polyprefix",
        version=version("polyprefix"),
        lifespan=lifespan,
        default_response_class=StrictJSONResponse,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.acquired = None
    app.router.routes.extend(ALL_ROUTES)
    app.router.default = no_route
    install_error_handlers(app)
    app.add_middleware(AuthenticationMiddleware, open_paths=partial(open_paths, app.routes))
    app.add_middleware(RequestMiddleware)
    return app


async def drain(app: FastAPI, timeout: float) -> None:
    """Refuse new requests and wait for those that run, `timeout` seconds at most."""
    acquired: State | None = app.state.acquired
    if acquired is not None:
        await acquired["engine"].drain(timeout)


async def _acquire(settings: Settings, model: FrozenModel | None, stack: AsyncExitStack) -> State:
    """Everything in order; the stack releases it in reverse."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    workers = Workers()
    registry = await asyncio.to_thread(
        open_registry, settings.catalog_url, settings.store, settings.data_dir / "transit"
    )
    stack.callback(registry.close)
    stack.push_async_callback(workers.close)
    usage, audit = UsageLedger(registry.catalog), AuditLog(registry.catalog, settings.replica)
    stack.push_async_callback(_write_the_rest, usage, audit)
    keyring = Keyring(registry.catalog, settings.pepper)
    await asyncio.to_thread(_check_keys, settings, keyring)
    authentication = _authentication(settings, registry)
    limiter = _limiter(settings)
    engine = await asyncio.to_thread(run_in_fresh_thread, _prepare, settings, model)
    model = engine.model
    engine.start()
    stack.callback(engine.stop)
    await asyncio.to_thread(_import_shipped, settings, registry, model)
    tiers = _prefix_cache(settings, registry, model)
    stack.push_async_callback(tiers.close)
    stop_following = await follow_catalog(registry, tiers, workers, engine.revoke)
    stack.push_async_callback(asyncio.to_thread, stop_following)
    training = _keep_house(settings, registry, engine, authentication, usage, audit, stack)
    await _start_limiter(limiter, engine, stack)
    metrics, limits = Metrics(engine, tiers, limiter), _limits(settings)
    generations = GenerationService(
        model=model,
        engine=engine,
        selector=PrefixSelector(model.spec, registry, workers.catalog, tiers),
        limiter=limiter,
        usage=usage,
        metrics=metrics,
        text_pool=workers.text,
        max_rows=limits.max_request_rows,
        timeout=limits.request_timeout,
    )
    evaluations, publisher = _side_work(registry, tiers, generations, workers, limits)
    return State(
        model=model,
        engine=engine,
        registry=registry,
        prefix_cache=tiers,
        workers=workers,
        limiter=limiter,
        limits=limits,
        metrics=metrics,
        authentication=authentication,
        tenants=Tenants(registry.catalog),
        keyring=keyring,
        usage=usage,
        audit=audit,
        generations=generations,
        evaluations=evaluations,
        publisher=publisher,
        uploads=ConcurrencyCap("uploads"),
        streams=ConcurrencyCap("streams of events"),
        training=training,
    )


def _side_work(
    registry: Registry,
    prefix_cache: PrefixCache,
    generations: GenerationService,
    workers: Workers,
    limits: Limits,
) -> tuple[EvaluationService, VersionPublisher]:
    """What computes beside the engine, in one queue."""
    queue = SideQueue()
    metered = MeteredQueue(queue, generations.limiter, generations.usage)
    evaluations = EvaluationService(generations, metered)
    publisher = VersionPublisher(
        registry=registry,
        prefix_cache=prefix_cache,
        engine=generations.engine,
        evaluations=evaluations,
        side_queue=queue,
        workers=workers,
        max_length=limits.max_prefix_length,
        timeout=limits.request_timeout,
    )
    return evaluations, publisher


def _import_shipped(settings: Settings, registry: Registry, model: FrozenModel) -> None:
    fingerprint, publish = model.spec.fingerprint, settings.pepper is not None
    imported = seed(
        registry, settings.shipped, DEMO_TENANT, base_fingerprint=fingerprint, publish=publish
    )
    _log.info("imported %d shipped prefixes", imported)


def _prefix_cache(settings: Settings, registry: Registry, model: FrozenModel) -> PrefixCache:
    return PrefixCache(
        stored_prefixes(registry, model, settings.max_prefix_length),
        host_bytes=settings.host_cache * _MIB,
        device_bytes=settings.device_cache * _MIB,
        device=model.device,
        dtype=model.dtype,
    )


def _check_keys(settings: Settings, keyring: Keyring) -> None:
    """InvalidRequest if nobody could use a server that everybody can reach."""
    if settings.pepper is None or keyring.has_live():
        return
    problem = f"there is no API key that could be used; {_HOW_TO_KEYS}"
    if not settings.is_loopback:
        raise InvalidRequest(f"refusing to listen on {settings.host!r}: {problem}")
    _log.warning(problem)


def _authentication(settings: Settings, registry: Registry) -> Authentication:
    """By keys once there is a pepper; else everybody is the one tenant."""
    if settings.pepper is None:
        everybody = Principal(DEMO_TENANT, None, frozenset(Scope))
        return Anonymous(registry.catalog, everybody)
    failures = FailedAttempts(settings.auth_failures_per_minute)
    return KeyAuthenticator(registry.catalog, settings.pepper, failures)


def _keep_house(
    settings: Settings,
    registry: Registry,
    engine: Engine,
    authentication: Authentication,
    usage: UsageLedger,
    audit: AuditLog,
    stack: AsyncExitStack,
) -> TrainingServices:
    """What goes on beside the requests until the stack ends it; the services of training."""
    training = TrainingServices.over(registry)
    ended, poll = threading.Event(), registry.catalog.feed.poll
    collect = partial(registry.collect_garbage, settings.garbage_grace, ended.is_set)
    every_s = settings.garbage_interval
    prune = partial(usage.prune, settings.usage_days * DAY)
    write_usage = PeriodicThread("writing down usage", WRITE_S, usage.flush)
    usage.on_crowded = write_usage.wake
    threads: list[PeriodicThread | EmbeddedWorker] = [
        PeriodicThread("following the catalog", _POLL_S, poll),
        write_usage,
        PeriodicThread("writing down refusals", _WRITE_REFUSALS_S, audit.flush),
        PeriodicThread("forgetting old usage", _PRUNE_S, prune),
        PeriodicThread("looking after training jobs", _TRAINING_S, training.keep_house),
        PeriodicThread("collecting garbage", every_s, collect, delay_s=every_s / 10),
    ]
    if isinstance(authentication, KeyAuthenticator):
        note_uses = authentication.note_uses
        threads.append(PeriodicThread("noting the use of keys", _NOTE_USES_S, note_uses))
    if settings.train != "off":
        facts = {**settings.model_dump(), "catalog_url": settings.catalog_url}
        threads.append(embedded_worker(facts, registry, engine))
    for thread in threads:
        thread.start()
        stack.push_async_callback(asyncio.to_thread, thread.stop)
    stack.callback(ended.set)
    return training


async def _start_limiter(limiter: Limiter, engine: Engine, stack: AsyncExitStack) -> None:
    limiter.rows_wait = engine.admission.rows_wait
    stack.push_async_callback(limiter.close)
    await limiter.start()


async def _write_the_rest(usage: UsageLedger, audit: AuditLog) -> None:
    await asyncio.sleep(0)  # first whoever was cut off when the engine stopped hears of it
    await asyncio.to_thread(usage.close)
    await asyncio.to_thread(audit.close)


def _prepare(settings: Settings, model: FrozenModel | None) -> Engine:
    """Everything that computes before the engine does, in the thread of the caller."""
    if model is None:
        with announced("loading base model %s", settings.model):
            model = load_model(
                settings.model,
                device=settings.device,
                dtype=settings.dtype,
                served_name=settings.served_model_name,
            )
    return prepare_engine(model, _engine_config(settings))


def _engine_config(settings: Settings) -> EngineConfig:
    return EngineConfig(
        max_rows=settings.max_rows,
        max_waiting=settings.max_waiting,
        kv_bytes=settings.kv_memory * _MIB,
        max_step_tokens=settings.max_step_tokens,
        max_prefix_length=settings.max_prefix_length,
        decode_attention=settings.decode_attention,
        # without keys there is one tenant, and nobody else to keep anything for
        reserve=0.0 if settings.pepper is None else settings.reserve,
    )


def _limiter(settings: Settings) -> Limiter:
    if settings.redis_url is None:
        return Limiter()
    return Limiter(RedisLimits(settings.redis_url, timeout=settings.redis_timeout))


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_body_bytes=settings.max_body_kib * 1024,
        max_training_file_bytes=settings.max_training_file * _MIB,
        max_request_rows=min(settings.max_request_rows, settings.max_rows),
        max_prefix_length=settings.max_prefix_length,
        request_timeout=settings.request_timeout,
        stall_timeout=settings.stall_timeout,
    )
