"""Jobs that are made over HTTP and trained by a worker on the server's catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs.types import JobStatus
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.worker.config import WorkerConfig
from tests.api.guarded import Guarded, guarding
from tests.tiny import random_prefix
from tests.worker.conftest import Workshop

LINES = b"".join(b'{"input": "name : fox %d", "target": "a fox"}\n' % n for n in range(6))
SMALL = {"length": 2, "hidden": 8, "max_steps": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("served")) as guarded:
        yield guarded


@pytest.fixture
def crew(guarded: Guarded, tiny_gpt2: FrozenModel, tmp_path: Path) -> Iterator[Workshop]:
    """Workers on the server's catalog, for the tenant `acme`."""
    config = WorkerConfig(
        name="unnamed", model="unused", catalog_url="unused", store="unused", folder=tmp_path
    )
    made = Workshop(tmp_path, tiny_gpt2, guarded.server.services.registry, config)
    yield made
    for resources in made.resources:
        resources.close()


@pytest.fixture
def support(guarded: Guarded, tiny_gpt2: FrozenModel) -> Prefix:
    """The version of `support` that the tenant `rival` publishes to `acme`."""
    prefix = random_prefix(tiny_gpt2, 3, seed=77)
    assert guarded.push("support", prefix, guarded.key("rival")).status_code in (200, 201)
    publish(guarded, ["acme"])
    return prefix


def publish(guarded: Guarded, tenants: list[str]) -> None:
    with guarded.client(guarded.key("rival")) as rival:
        body = {"tenants": tenants}
        assert rival.put("/v1/prefixes/support/publication", json=body).status_code == 200


def create(client: httpx.Client, model: FrozenModel, **more: Any) -> httpx.Response:
    file = client.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("foxes.jsonl", LINES)}
    )
    body = {
        "model": model.spec.model_id,
        "training_file": file.json()["id"],
        "method": {"type": "prefix", "prefix": {"hyperparameters": SMALL}},
    }
    return client.post("/v1/fine_tuning/jobs", json=body | more)


def test_a_prefix_is_trained_behind_one_that_another_tenant_publishes(
    guarded: Guarded, tiny_gpt2: FrozenModel, crew: Workshop, support: Prefix
) -> None:
    with guarded.client(guarded.key()) as client:
        made = create(client, tiny_gpt2, on="rival/support", suffix="alice").json()
        assert made["on"] == f"rival/support@{support.digest}"
        (job,) = crew.run(made["id"])
        assert job.status is JobStatus.SUCCEEDED
        prefix = crew.prefix(job)
        assert prefix.metadata.provenance["on"]["digest"] == support.digest
        both = {"model": "rival/support+alice", "prompt": "name : fox 1", "max_tokens": 2}
        assert client.post("/v1/completions", json=both).status_code == 200


def test_a_publication_that_is_withdrawn_meanwhile_fails_the_job_and_says_so(
    guarded: Guarded, tiny_gpt2: FrozenModel, crew: Workshop, support: Prefix
) -> None:
    with guarded.client(guarded.key()) as client:
        made = create(client, tiny_gpt2, on="rival/support").json()
        publish(guarded, [])
        (job,) = crew.run(made["id"])
        refused = create(client, tiny_gpt2, on="rival/support")
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("prefix_not_found", "on")
    assert f"rival/support@{support.digest} cannot be used any more" in job.error.message
    assert refused.status_code == 404
    assert refused.json()["error"]["param"] == "on"
