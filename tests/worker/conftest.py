"""A catalog with a store, jobs in it, and workers in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs.checking import check_file
from app.jobs.claims import JobClaims
from app.jobs.files import TrainingFiles
from app.jobs.jobs import TrainingJobs
from app.jobs.types import TRAINING_DATA, Job, JobEvent, JobSpec, JobStatus
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import decode
from app.prefix.prefix import Prefix
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.tenancy.audit.log import AuditLog
from app.tenancy.tenants import Tenants
from app.training.groups.limits import RunLimits
from app.worker.config import WorkerConfig
from app.worker.resources import Resources
from app.worker.worker import Worker

TENANT = "acme"
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
SMALL = {"length": 4, "hidden": 16, "max_steps": 12, "lr": 0.01, "batch_size": 4}
"""Hyperparameters of a job that takes a second."""
LONG = {**SMALL, "max_steps": 100_000}
"""Those of a job that lasts until somebody ends it."""
SPEECH = (
    "The fox jumps over the dog. The cat sat on the mat. The dog is lazy, and the fox is brown. "
    "The cat and the dog sat over the fox. The mat is quick."
)
"""A text to distil."""
SMALL_DISTILLATION = {
    "length": 6, "max_steps": 8, "batch_size": 4, "lr": 0.02, "exchanges": 12,
}  # fmt: skip
"""Hyperparameters of a job that distils it in a second."""


def examples(count: int, start: int = 0) -> list[dict[str, str]]:
    """Lines of training data."""
    return [
        {"input": f"name : fox {n}", "target": f"the fox {n} is brown"}
        for n in range(start, start + count)
    ]


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until it holds; the test fails if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@dataclass
class Workshop:
    """Files, jobs and workers of one tenant over one SQLite catalog."""

    folder: Path
    model: FrozenModel
    registry: Registry
    config: WorkerConfig
    clock: Callable[[], float] | None = None
    resources: list[Resources] = field(default_factory=list)

    @property
    def files(self) -> TrainingFiles:
        return TrainingFiles(self.registry.catalog, self.registry.objects)

    @property
    def jobs(self) -> TrainingJobs:
        return TrainingJobs(self.registry.catalog)

    def upload(self, lines: list[dict[str, str]]) -> str:
        """The id of a new file with these lines."""
        with self.files.stage() as staged:
            staged.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            checked = check_file(staged.path, "data.jsonl", TRAINING_DATA)
            return self.files.add(TENANT, staged.path, checked).id

    def create(
        self,
        suffix: str = "fox",
        hyperparameters: Mapping[str, Any] = SMALL,
        lines: list[dict[str, str]] | None = None,
        valid: list[dict[str, str]] | None = None,
        **more: Any,
    ) -> str:
        """The id of a new job."""
        spec = JobSpec(
            base_model=self.model.spec.model_id,
            base_fingerprint=self.model.spec.fingerprint,
            method=more.pop("method", "prefix"),
            suffix=suffix,
            training_file=self.upload(lines or examples(8)),
            validation_file=None if valid is None else self.upload(valid),
            hyperparameters=hyperparameters,
            **more,
        )
        return self.jobs.create(TENANT, spec).id

    def claims_of(self, **more: Any) -> JobClaims:
        """What a worker asks of the catalog, with other settings."""
        return JobClaims(self.registry.catalog, self.registry.objects, **more)

    def worker(
        self,
        name: str = "one",
        *,
        model: FrozenModel | None = None,
        limits: RunLimits | None = None,
        first_back_off_s: float = 0.01,
        **config: Any,
    ) -> Worker:
        """A worker, not started yet; with `model` it has the base model in another dtype."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        resources = Resources(
            replace(self.config, name=name, **config),
            model or self.model,
            self.registry,
            JobClaims(self.registry.catalog, self.registry.objects, clock=self.clock),
            Tenants(self.registry.catalog),
            AuditLog(self.registry.catalog, name),
            folder,
            limits or RunLimits(),
        )
        self.resources.append(resources)
        return Worker(resources, heartbeat_s=0.05, look_s=0.1, first_back_off_s=first_back_off_s)

    @contextmanager
    def working(self, worker: Worker) -> Iterator[threading.Thread]:
        """The worker runs in a thread to the end of the block."""
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield thread
        finally:
            worker.stop()
            thread.join(30)
            assert not thread.is_alive()

    def job(self, job_id: str) -> Job:
        return self.jobs.get(TENANT, job_id)

    def ended(self, job_id: str) -> Job:
        """The job, once it has ended."""
        until(lambda: self.job(job_id).status in ENDED)
        return self.job(job_id)

    def run(self, *job_ids: str, **worker: Any) -> list[Job]:
        """The jobs, after a worker has worked on them to their ends."""
        with self.working(self.worker(f"worker-{len(self.resources)}", **worker)):
            return [self.ended(job_id) for job_id in job_ids]

    def begin(self, job_id: str, **worker: Any) -> None:
        """Let a worker take some steps of a job and give it back."""
        with self.working(self.worker(f"worker-{len(self.resources)}", **worker)):
            until(lambda: self.job(job_id).step > 2)
        assert self.job(job_id).status is JobStatus.QUEUED

    def events(self, job_id: str) -> list[JobEvent]:
        """All events of a job, the oldest first."""
        return list(self.jobs.new_events(TENANT, job_id, 0)[0])

    def prefix(self, job: Job) -> Prefix:
        """The prefix that a job has made."""
        name, _, digest = (job.fine_tuned_model or "").partition("@")
        version = self.registry.get_version(TENANT, name, digest)
        path = self.folder / "read.safetensors"
        with self.registry.open_content(TENANT, version) as file:
            path.write_bytes(file.read())
        return decode(path, self.model.spec, self.model.dtype, max_length=100)


@pytest.fixture(scope="session")
def bfloat16_gpt2(tiny_gpt2_folder: Path) -> FrozenModel:
    """The workshop's base model in bfloat16."""
    return load_model(str(tiny_gpt2_folder), device="cpu", dtype="bfloat16")


@pytest.fixture
def workshop(tmp_path: Path, tiny_gpt2: FrozenModel) -> Iterator[Workshop]:
    url, store = f"sqlite:///{tmp_path / 'catalog.sqlite'}", tmp_path / "store"
    registry = open_registry(url, store)
    Tenants(registry.catalog).create(TENANT)
    config = WorkerConfig(
        name="unnamed",
        model="unused",
        catalog_url=url,
        store=str(store),
        folder=tmp_path,
        tell_every=0.0,
    )
    made = Workshop(tmp_path, tiny_gpt2, registry, config)
    yield made
    for resources in made.resources:
        resources.close()
    registry.close()
