"""`polyprefix worker`: train the jobs of a catalog, on any machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.catalog import DatabaseUrl
from app.cli.configuration import base_model, check_folder, read_settings
from app.cli.serve import (
    DataDir,
    Device,
    LogFormat,
    LogLevel,
    Model,
    ServedName,
    Store,
    TrainDtype,
)
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.settings import Settings
    from app.worker.config import WorkerConfig

Threads = Annotated[
    int, typer.Option(min=0, help="Threads that compute; 0 means one for each core.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--train-jobs",
        envvar="POLYPREFIX_TRAIN_JOBS",
        help="Jobs that are trained together, in the same forward and backward passes.",
        show_default=False,
    ),
]
IdleExit = Annotated[
    float | None,
    typer.Option(min=0, help="End after so many seconds without a job; by default never."),
]
Embedded = Annotated[bool, typer.Option("--embedded", hidden=True)]


def worker(
    model: Model = None,
    served_model_name: ServedName = None,
    store: Store = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    device: Device = None,
    threads: Threads = 0,
    train_jobs: Jobs = None,
    train_dtype: TrainDtype = None,
    idle_exit: IdleExit = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    embedded: Embedded = False,
) -> None:
    """Train the jobs that are queued for one base model, many at a time.

    Any number of workers may share a catalog and a store with the servers; they need no port.
    Settings are those of `polyprefix serve`. SIGTERM or Ctrl+C saves all jobs and gives them back
    to the queue. If a worker dies, another one continues its jobs from their last checkpoints.

    Example: `POLYPREFIX_DATABASE_URL=postgresql://polyprefix@db/polyprefix polyprefix worker
    --model demo-gpt2 --store 's3://bucket/prefixes?region=eu-central-1'`
    """
    if embedded:
        _beside_a_server()
        return
    given = {
        "model": None if model is None else base_model(model),
        "served_model_name": served_model_name,
        "store": store,
        "data_dir": data_dir,
        "database_url": database_url,
        "device": device,
        "train_jobs": train_jobs,
        "train_dtype": train_dtype,
        "log_level": log_level,
        "log_format": log_format,
    }
    settings = read_settings(given)
    _check_places(settings)
    _run(_configuration(settings, threads, idle_exit))


def _configuration(settings: Settings, threads: int, idle_exit: float | None) -> WorkerConfig:
    from app.worker.config import WorkerConfig

    return WorkerConfig.of(
        settings.model_dump(),
        catalog_url=settings.catalog_url,
        threads=threads,
        idle_exit=idle_exit,
    )


def _check_places(settings: Settings) -> None:
    from app.model.source import check_source
    from app.registry.storage.url import parse_location

    check_folder(settings.data_dir, "--data-dir")
    store = parse_location(settings.store)
    if isinstance(store, Path):
        check_folder(store, "--store")
    check_source(settings.model)


def _beside_a_server() -> None:
    """Run as the server's own worker: it writes the configuration to the standard input."""
    from app.worker.config import WorkerConfig
    from app.worker.duty_cycle import take_low_priority

    try:
        config = WorkerConfig.from_json(sys.stdin.readline())
    except ValueError as error:
        raise InvalidRequest(f"--embedded is for a server's own process: {error}") from error
    if config.low_priority:
        take_low_priority()  # before threads are started, which inherit it
    _run(config, beside_a_server=True)


def _run(config: WorkerConfig, *, beside_a_server: bool = False) -> None:
    from app.cli.logs import configure_logging

    configure_logging(config.log_level, config.log_format)
    from app.model.load import hide_progress_bars
    from app.worker.process import run_worker

    if not sys.stderr.isatty():
        hide_progress_bars()
    run_worker(config, sys.stdin if beside_a_server else None)
