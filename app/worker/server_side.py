"""The worker process of a server, from its settings and its engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from app.engine.engine import Engine
from app.jobs.claims import JobClaims
from app.registry.registry import Registry
from app.worker.config import WorkerConfig
from app.worker.embedded import EmbeddedWorker
from app.worker.memory import memory_obstacle

_COMMAND = (sys.executable, "-P", "-m", "app.cli", "worker", "--embedded")
_IDLE_EXIT_S = 60.0
"""Seconds after which a process without jobs gives its memory back."""


def embedded_worker(
    settings: Mapping[str, Any], registry: Registry, engine: Engine
) -> EmbeddedWorker:
    """That of a server with these settings, which trains jobs for the engine's base model.

    The setting `train` is "auto" or the number of its threads; "auto" is half of the cores, and no
    process where memory lacks.
    """
    train = settings["train"]
    model, claims = engine.model, JobClaims(registry.catalog, registry.objects)
    checked = train == "auto"
    config = WorkerConfig.of(
        settings,
        threads=max(1, (os.cpu_count() or 1) // 2) if checked else int(train),
        idle_exit=_IDLE_EXIT_S,
        low_priority=True,
    )

    def rows() -> int:
        progress = engine.progress()
        return progress.running + progress.waiting

    return EmbeddedWorker(
        _COMMAND,
        config,
        has_work=partial(claims.look, model.spec.fingerprint),
        rows=rows,
        obstacle=partial(memory_obstacle, model, config.train_dtype) if checked else lambda: None,
        announce=partial(claims.announce, config.name, model.spec.fingerprint),
    )
