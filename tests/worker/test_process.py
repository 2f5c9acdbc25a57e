"""Workers as processes: signals, sudden ends, the configuration that they read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app as commands
from app.cli import logs
from app.jobs.types import JobStatus
from app.worker import process as worker_process
from app.worker.config import WorkerConfig
from tests.worker.conftest import ENDED, SMALL, TENANT, Workshop, until

STEPS = {**SMALL, "max_steps": 150}


def start(workshop: Workshop, model: Path, **settings: Any) -> subprocess.Popen[str]:
    """A worker process, as a server starts it."""
    config = replace(
        workshop.config,
        name="process",
        model=str(model),
        device="cpu",
        threads=1,
        checkpoint_every=0.0,
        **settings,
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


def test_a_process_goes_on_with_a_job_in_the_dtype_that_it_is_told(
    workshop: Workshop, tiny_gpt2_folder: Path
) -> None:
    job_id = workshop.create("moved", STEPS)
    workshop.begin(job_id)
    with start(workshop, tiny_gpt2_folder, train_dtype="bfloat16") as process:
        until(lambda: workshop.job(job_id).status in ENDED, 120)
        process.send_signal(signal.SIGTERM)
    job = workshop.job(job_id)
    assert job.result is not None
    assert job.result["recipe"]["dtype"] == "bf16"


def test_the_dtype_of_a_worker_is_an_option_and_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        worker_process, "run_worker", lambda config, _: told.append(config.train_dtype)
    )
    monkeypatch.setattr(logs, "configure_logging", lambda *_: None)
    command = ["worker", "--data-dir", str(tmp_path / "data"), "--store", str(tmp_path / "store")]
    option, variable = "--train-dtype", "POLYPREFIX_TRAIN_DTYPE"
    for arguments, environment in (
        ([], {}),
        ([option, "bfloat16"], {}),
        ([], {variable: "bfloat16"}),
        ([option, "float32"], {variable: "bfloat16"}),
    ):
        ran = CliRunner().invoke(commands, [*command, *arguments], env=environment)
        assert ran.exit_code == 0, ran.output
    assert told == ["float32", "bfloat16", "bfloat16", "float32"]
    refused = CliRunner().invoke(commands, [*command, option, "float16"])
    assert refused.exit_code == 1
    assert variable in refused.output


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
