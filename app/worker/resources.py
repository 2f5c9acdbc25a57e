"""What a worker has open while it runs: the model, the catalog, the store, an engine for scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.jobs.claims import JobClaims
from app.model.frozen import FrozenModel
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.tenancy.audit.log import AuditLog
from app.tenancy.tenants import Tenants
from app.training.groups.limits import RunLimits
from app.worker.config import WorkerConfig
from app.worker.workspace import workspace

_SCORING = EngineConfig(max_rows=32, max_waiting=4096, kv_bytes=256 << 20)


@dataclass
class Resources:
    """Shared by all jobs of one worker; `folder` holds files in transit.

    `limits` bound each job.
    """

    config: WorkerConfig
    model: FrozenModel
    registry: Registry
    claims: JobClaims
    tenants: Tenants
    audit: AuditLog
    folder: Path
    limits: RunLimits = RunLimits()

    @property
    def recipe_dtype(self) -> str:
        """The model's dtype, as the recipes of its jobs call it."""
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    @cached_property
    def engine(self) -> Engine:
        """An engine on the model, started when a job first needs one."""
        engine = Engine(self.model, _SCORING)
        engine.start()
        return engine

    def close(self) -> None:
        """Stop the engine, if there is one."""
        if "engine" in self.__dict__:
            self.engine.stop()


@contextmanager
def opened(config: WorkerConfig, model: FrozenModel) -> Iterator[Resources]:
    """The resources of `config` to the end of the block. Raises what opening the registry does."""
    with ExitStack() as stack:
        folder = stack.enter_context(workspace(config.folder / "jobs"))
        registry = open_registry(config.catalog_url, config.store, config.folder / "transit")
        stack.callback(registry.close)
        resources = Resources(
            config,
            model,
            registry,
            JobClaims(registry.catalog, registry.objects),
            Tenants(registry.catalog),
            AuditLog(registry.catalog, config.replica),
            folder,
        )
        stack.callback(resources.close)
        yield resources
