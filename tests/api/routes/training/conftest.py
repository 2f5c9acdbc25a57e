"""A server with training jobs, and what a worker does to them without any training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app.jobs.types import ClaimedJob
from app.model.frozen import FrozenModel
from tests.server import RunningServer, serving

EXAMPLES = [{"input": f"name : {n}", "target": f"{n} is a place"} for n in range(6)]


def lines(*records: Any) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture(scope="module")
def trained(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server without keys and without a worker."""
    with serving(tiny_gpt2, tmp_path_factory.mktemp("trained"), max_training_file=2) as server:
        yield server


@pytest.fixture
def client(trained: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{trained.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def base(tiny_gpt2: FrozenModel) -> str:
    """What clients call the base model."""
    return tiny_gpt2.spec.model_id


@pytest.fixture
def claim(trained: RunningServer, tiny_gpt2: FrozenModel) -> Callable[[str], ClaimedJob]:
    """Claims everything that waits, and gives the job with this id."""

    def claiming(job_id: str) -> ClaimedJob:
        claims = trained.services.training.claims
        found = claims.claim("w1", tiny_gpt2.spec.fingerprint, 1000)
        return next(job for job in found if job.id == job_id)

    return claiming


@pytest.fixture
def uploaded(client: openai.OpenAI) -> Callable[..., str]:
    """Uploads examples; the file's id."""

    def uploading(data: bytes | None = None, name: str = "train.jsonl", **more: Any) -> str:
        content = lines(*EXAMPLES) if data is None else data
        made = client.files.create(file=(name, content), **({"purpose": "fine-tune"} | more))
        return made.id

    return uploading


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file that stands for a checkpoint."""
    path = tmp_path / "state"
    path.write_bytes(b"state")
    return path
