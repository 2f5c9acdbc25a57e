"""Training files and jobs over fresh catalogs of both kinds, with time that a test lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.database import Database
from app.jobs.checking import check_file
from app.jobs.claims import JobClaims
from app.jobs.files import TrainingFiles
from app.jobs.jobs import TrainingJobs
from app.jobs.types import Job, JobSpec, TrainingFile
from app.registry.storage.local import FolderStore
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.tenants import Tenants

FINGERPRINT = "f" * 64
LINE = b'{"input": "a", "target": "b"}\n'


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Workshop:
    """A catalog and a store with what works on them, and short ways to make things."""

    def __init__(self, url: str, folder: Path, clock: Clock) -> None:
        self.catalog, self.clock = Database(url), clock
        self.store = FolderStore(folder / "store")
        self.tenants = Tenants(self.catalog, clock=clock)
        self.files = TrainingFiles(self.catalog, self.store, clock=clock)
        self.jobs = TrainingJobs(self.catalog, clock=clock)
        self.claims = JobClaims(self.catalog, self.store, lease_s=30, clock=clock)

    def tenant(self, name: str, **limits: object) -> None:
        """Makes a tenant, or changes its limits."""
        if name in {tenant.id for tenant in self.tenants.list(limit=100).items}:
            self.tenants.change(name, limits=limits)
        else:
            self.tenants.create(name, TenantLimits.from_json(limits))

    def upload(self, tenant: str, data: bytes = LINE, purpose: str = "fine-tune") -> TrainingFile:
        """Uploads bytes, checked."""
        with self.files.stage() as staged:
            staged.write(data)
            checked = check_file(staged.path, "train.jsonl", purpose)
            return self.files.add(tenant, staged.path, checked)

    def job(self, tenant: str, file: TrainingFile | None = None, **spec: object) -> Job:
        """Queues a job."""
        file = file or self.upload(tenant)
        known = {
            "base_model": "tiny",
            "base_fingerprint": FINGERPRINT,
            "method": "prefix",
            "suffix": "tone",
            "training_file": file.id,
        }
        return self.jobs.create(tenant, JobSpec(**(known | spec)))  # type: ignore[arg-type]

    def messages(self, job: Job) -> list[str]:
        """What the job's events say, the oldest first."""
        return [event.message for event in self.jobs.new_events(job.tenant, job.id, 0)[0]]


@pytest.fixture
def workshop(catalog_url: str, tmp_path: Path) -> Iterator[Workshop]:
    """A workshop with the tenants `acme` and `beta`."""
    made = Workshop(catalog_url, tmp_path, Clock())
    made.tenant("acme")
    made.tenant("beta")
    yield made
    made.catalog.close()
