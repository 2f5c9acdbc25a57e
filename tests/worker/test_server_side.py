"""The worker process of a server, as users hear of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs import workers
from app.worker import memory
from app.worker.embedded import EmbeddedWorker
from app.worker.server_side import embedded_worker
from tests.worker.conftest import TENANT, Workshop, until


def beside_server(workshop: Workshop, **more: str) -> EmbeddedWorker:
    settings = {
        "train": "auto",
        "model": "unused",
        "catalog_url": workshop.config.catalog_url,
        "store": workshop.config.store,
        "data_dir": workshop.folder,
        "replica": "server",
        **more,
    }
    engine: Any = SimpleNamespace(
        model=workshop.model, progress=lambda: SimpleNamespace(running=0, waiting=0)
    )
    return embedded_worker(settings, workshop.registry, engine)


def told(workshop: Workshop) -> list[str]:
    return [event.message for event in workshop.events(workshop.create())]


def test_a_server_without_memory_for_a_worker_lets_users_hear_that_there_is_none(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 0)
    workshop.create()
    worker = beside_server(workshop)
    worker.start()
    until(lambda: "no worker is started" in caplog.text)
    messages = told(workshop)
    worker.stop()
    assert "No worker" in messages[-1]
    assert worker.pid is None


def test_a_server_that_can_start_a_worker_counts_as_one_before_it_does(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: None)
    worker = beside_server(workshop)
    worker.start()
    until(lambda: is_announced(workshop))
    worker.stop()
    assert "No worker" not in told(workshop)[-1]


def test_a_server_starts_a_worker_in_bfloat16_where_one_in_float32_lacks_memory(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = memory.needed_bytes(workshop.model.num_parameters, "bfloat16")
    monkeypatch.setattr(memory, "available_bytes", lambda _: free)
    job_id = workshop.create()
    large = beside_server(workshop, train_dtype="float32")
    large.start()
    until(lambda: "no worker is started" in caplog.text)
    large.stop()
    assert not is_announced(workshop)
    workshop.jobs.cancel(TENANT, job_id)
    small = beside_server(workshop, train_dtype="bfloat16")
    small.start()
    until(lambda: is_announced(workshop))
    small.stop()


def is_announced(workshop: Workshop) -> bool:
    with workshop.registry.catalog.read() as connection:
        return workers.is_any(connection, workshop.model.spec.fingerprint, time.time())
