"""Killed processes lose five seconds of usage at most, and nothing of the audit log."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.database import Database, migrate
from app.db.schema import audit_log, tenants, usage_hours
from app.tenancy.audit.chain import verify
from app.tenancy.usage.ledger import WRITE_S

RUNS = 20
DRIVER = Path(__file__).parents[1] / "killed_driver.py"


def killed(url: str, what: str, seconds: float) -> list[str]:
    """What a process that was killed after so many seconds had said."""
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), url, what],
        stdout=subprocess.PIPE,
        text=True,
        cwd=DRIVER.parent.parent.parent,
        env={"PYTHONPATH": ".", "PATH": ""},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lines: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines.append(process.stdout.readline())
    process.kill()
    lines += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    return [line.strip() for line in lines if line.endswith("\n")]


def test_a_killed_process_loses_five_seconds_of_usage_at_most(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    lines = killed(url, "usage", 2 * WRITE_S + 0.7)
    times = {int(number): float(at) for number, at in (line.split() for line in lines)}
    catalog = Database(url)
    with catalog.read() as connection:
        kept = connection.scalar(select(usage_hours.c.requests)) or 0
    catalog.close()
    assert 0 < kept <= max(times) + 1
    # a pause in which the whole process stood still is not time in which it could write
    lost = [at for number, at in times.items() if number >= kept]
    assert sum(min(0.1, after - before) for before, after in pairwise(lost)) <= 5


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.slow
def test_chains_and_changes_agree_whenever_a_process_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    if database == "postgresql":
        url = request.getfixturevalue("_postgres").make_database()
    migrate(url)
    catalog = Database(url)
    done: list[str] = []
    for run in range(RUNS):
        done += killed(url, "audit", random.Random(run).uniform(0.02, 0.25))
        [report] = verify(catalog)
        assert report.fault is None
        with catalog.read() as connection:
            made = set(connection.scalars(select(tenants.c.id)))
            records = len(connection.execute(select(audit_log.c.sequence)).all())
        assert len(made) == records == report.records
        assert set(done) <= made
    assert len(done) > 3 * RUNS
    catalog.close()
