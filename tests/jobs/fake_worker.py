"""A worker process that trains nothing: it claims jobs, reports, saves, and ends them.

Usage: fake_worker URL STORE NAME LEASE_S. A line is written after each act that counts as done.
It ends when nothing waits and nothing runs any more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from app.db.database import Database
from app.db.schema import training_jobs
from app.errors import Unavailable
from app.jobs.claims import JobClaims
from app.jobs.types import OPEN, ClaimedJob, ClaimLost, JobEvent, JobProgress, Order
from app.registry.storage.local import FolderStore

FINGERPRINT = "f" * 64
_STEPS = 3


def main() -> None:
    url, store, name, lease_s = sys.argv[1:]
    catalog = Database(url)
    claims = JobClaims(catalog, FolderStore(Path(store)), lease_s=float(lease_s))
    say("ready")
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                jobs = claims.claim(name, FINGERPRINT, 4)
                for job in jobs:
                    work(claims, name, job, Path(folder) / "state")
                if not jobs and not is_any_open(catalog):
                    return
            except Unavailable:
                continue  # the database was busy; a job that was begun is claimed again
            if not jobs:
                time.sleep(0.1)


def work(claims: JobClaims, name: str, job: ClaimedJob, state: Path) -> None:
    """Trains one job, from its checkpoint on."""
    try:
        first = int(state.read_bytes()) if claims.load_checkpoint(job, state) else 0
        for step in range(first + 1, _STEPS + 1):
            if claims.heartbeat(name, [job])[job.id] is not Order.GO_ON:
                return
            claims.report(job, JobProgress(step=step, total_steps=_STEPS, trained_tokens=step))
            claims.add_events(job, [JobEvent(message=f"step {step}", type="metrics")])
            if step == 2:
                state.write_bytes(b"%d" % step)
                claims.save_checkpoint(job, state, step, {"step": step})
        table = state.with_name("metrics.csv")
        table.write_text("step\n", encoding="utf-8")
        made = f"{job.spec.suffix}@{name}"
        claims.succeed(job, made, {}, [claims.store_result(job, table)])
        say(f"done {job.id}")
    except ClaimLost:
        say(f"lost {job.id}")


def is_any_open(catalog: Database) -> bool:
    """Whether some job has not ended."""
    waiting = training_jobs.c.status.in_([status.value for status in OPEN])
    with catalog.read() as connection:
        query = select(training_jobs.c.id).where(waiting).limit(1)
        return connection.execute(query).first() is not None


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
