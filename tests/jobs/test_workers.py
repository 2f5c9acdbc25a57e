"""Real worker processes that are killed: every job ends, once, whatever dies when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.db.schema import job_events, training_jobs, usage_hours
from app.jobs.types import JobSpec
from app.registry.registry import Registry
from tests.jobs.conftest import FINGERPRINT, Clock, Workshop

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3


class Crew:
    """Three workers, one of which is killed now and then and replaced."""

    def __init__(self, url: str, store: Path, lease_s: float, output: Path) -> None:
        self._command = [sys.executable, "-m", "tests.jobs.fake_worker", url, str(store)]
        self._lease_s, self._output = lease_s, output
        self._number = 0
        self.workers = [self._start() for _ in range(3)]
        self.killed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        self._number += 1
        name = f"w{self._number}"
        with (self._output / name).open("wb") as output:
            return subprocess.Popen(
                [*self._command, name, str(self._lease_s)],
                stdout=output,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def run(self, kill_every_s: float) -> None:
        """Until all workers have ended by themselves, which they do when no job is open."""
        chosen = random.Random(7)
        last = time.monotonic()
        while any(worker.poll() is None for worker in self.workers):
            time.sleep(0.05)
            alive = [n for n, worker in enumerate(self.workers) if worker.poll() is None]
            if time.monotonic() - last >= kill_every_s and len(alive) == len(self.workers):
                victim = chosen.choice(alive)
                self.workers[victim].send_signal(signal.SIGKILL)
                self.workers[victim].wait()
                self.workers[victim] = self._start()
                self.killed += 1
                last = time.monotonic()
        assert [worker.returncode for worker in self.workers] == [0, 0, 0]

    def said(self) -> list[str]:
        """All lines that the workers have written whole."""
        return [
            line
            for path in sorted(self._output.iterdir())
            for line in path.read_text().splitlines()
        ]


def run_jobs(url: str, folder: Path, count: int, *, lease_s: float, kill_every_s: float) -> Crew:
    """Queues jobs of two tenants, has them trained by a crew, and checks how all have ended."""
    workshop = Workshop(url, folder, Clock())
    for tenant in ("acme", "beta"):
        workshop.tenant(tenant)
        file = workshop.upload(tenant)
        spec = JobSpec(
            base_model="tiny",
            base_fingerprint=FINGERPRINT,
            method="prefix",
            suffix="tone",
            training_file=file.id,
        )
        for _ in range(count // 2):
            workshop.jobs.create(tenant, spec)
    output = folder / "output"
    output.mkdir()
    crew = Crew(url, folder / "store", lease_s, output)
    crew.run(kill_every_s)
    check(workshop, crew, count)
    workshop.catalog.close()
    return crew


def check(workshop: Workshop, crew: Crew, count: int) -> None:
    with workshop.catalog.read() as connection:
        rows = connection.execute(select(training_jobs)).all()
        made = job_events.c.message.like("The job has made%")
        ends = dict(
            connection.execute(
                select(job_events.c.job_id, func.count()).where(made).group_by(job_events.c.job_id)
            ).all()  # type: ignore[arg-type]
        )
        tokens = connection.scalar(select(func.sum(usage_hours.c.tokens_trained)))
    assert len(rows) == count
    assert Counter(row.status for row in rows) == {"succeeded": count}
    assert ends == {row.id: 1 for row in rows}, "a job has ended twice or not at all"
    assert all(row.trained_tokens == STEPS for row in rows)
    assert tokens == STEPS * count, "tokens that were trained again are counted once"
    told = Counter(line.split()[1] for line in crew.said() if line.startswith("done "))
    assert set(told.values()) == {1}, "two workers were told that they have ended one job"
    assert set(told) <= {row.public_id for row in rows}
    assert len(told) >= count - crew.killed
    registry = Registry(workshop.catalog, workshop.store)
    registry.collect_garbage(-5.0)
    left = len({file for row in rows for file in row.result_files})
    assert left == count, "each job leaves one file"
    stored = len(list(workshop.store.root.glob("*/*.safetensors")))
    assert stored == 2 + count, "the two training files and what the jobs leave"


def test_a_killed_workers_jobs_end_elsewhere(catalog_url: str, tmp_path: Path) -> None:
    crew = run_jobs(catalog_url, tmp_path, 12, lease_s=1.5, kill_every_s=1.0)
    assert crew.killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_jobs_end_once_while_workers_are_killed(
    catalog_url: str, tmp_path: Path
) -> None:
    crew = run_jobs(catalog_url, tmp_path, 1000, lease_s=10.0, kill_every_s=5.0)
    assert crew.killed >= 1
