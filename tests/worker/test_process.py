"""Workers as processes: signals, sudden ends, the configuration that they read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app as commands
from app.jobs.types import JobStatus
from app.worker.config import WorkerConfig
from tests.worker.conftest import SMALL, TENANT, Workshop, until

STEPS = {**SMALL, "max_steps": 150}


def start(workshop: Workshop, model: Path) -> subprocess.Popen[str]:
    """A worker process, as a server starts it."""
    config = replace(
        workshop.config,
        name="process",
        model=str(model),
        device="cpu",
        threads=1,
        checkpoint_every=0.0,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "worker", "--embedded"], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(config.to_json() + "\n")
    process.stdin.flush()
    return process


def wait_for_checkpoint(workshop: Workshop, job_id: str) -> None:
    until(lambda: workshop.jobs.checkpoints(TENANT, job_id).items, 120)


def test_what_a_killed_worker_has_begun_another_one_ends_with_the_same_result(
    workshop: Workshop, tiny_gpt2_folder: Path
) -> None:
    job_id = workshop.create("killed", STEPS)
    with start(workshop, tiny_gpt2_folder) as process:
        wait_for_checkpoint(workshop, job_id)
        process.kill()
    assert workshop.job(job_id).status is JobStatus.RUNNING
    workshop.clock = lambda: time.time() + 61  # its lease has run out
    killed, whole = workshop.run(job_id, workshop.create("whole", STEPS))
    assert killed.status is JobStatus.SUCCEEDED
    assert workshop.prefix(killed).digest == workshop.prefix(whole).digest
    messages = [event.message for event in workshop.events(job_id)]
    assert any("worker is lost" in message for message in messages)


@pytest.mark.parametrize("how", ["SIGTERM", "the server ends"])
def test_a_worker_that_is_ended_saves_its_jobs_first(
    workshop: Workshop, tiny_gpt2_folder: Path, how: str
) -> None:
    job_id = workshop.create("drained", {**STEPS, "max_steps": 100_000})
    with start(workshop, tiny_gpt2_folder) as process:
        wait_for_checkpoint(workshop, job_id)
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        elif process.stdin is not None:
            process.stdin.close()
        assert process.wait(30) == 0
    job = workshop.job(job_id)
    assert job.status is JobStatus.QUEUED
    assert workshop.jobs.checkpoints(TENANT, job_id).items[0].step == job.step


def test_the_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = WorkerConfig(
        name="w", model="m", catalog_url="sqlite://", store="s", folder=tmp_path, load_fd=3
    )
    assert WorkerConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="not the configuration"):
        WorkerConfig.from_json('{"unknown": 1}')


def test_embedded_without_a_configuration_is_refused() -> None:
    ran = CliRunner().invoke(commands, ["worker", "--embedded"], input="{}\n")
    assert ran.exit_code == 1
    assert "not the configuration of a worker" in ran.output
