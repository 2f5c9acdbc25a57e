"""A worker as a process of its own: its model, its signals, and its end with its server."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import TextIO

import torch

from app.model.load import load_model
from app.worker.config import WorkerConfig
from app.worker.duty_cycle import DutyCycle
from app.worker.load_signal import LoadSignal
from app.worker.resources import opened
from app.worker.worker import Worker

_log = logging.getLogger(__name__)

_GRACE_S = 15.0
"""Seconds to save all jobs when the server beside this process has gone."""


def run_worker(config: WorkerConfig, parent: TextIO | None = None) -> None:
    """Load the model and work until SIGTERM, SIGINT, or `idle_exit` seconds without a job.

    `parent` is a pipe from the process that this one must not outlive: its end ends the worker too.
    """
    ended = threading.Event()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent, ended), daemon=True).start()
    if config.threads:
        torch.set_num_threads(config.threads)
    _log.info("loading base model %s", config.model)
    model = load_model(
        config.model,
        device=config.device,
        dtype=config.train_dtype,
        served_name=config.served_model_name,
    )
    load = None if config.load_fd is None else LoadSignal.open(config.load_fd)
    threads = torch.get_num_threads()
    duty = DutyCycle() if load is None else DutyCycle(lambda: load.rows, processors=threads)
    with opened(config, model) as resources:
        worker = Worker(resources, duty)

        def stop(number: int, _: FrameType | None) -> None:
            _log.info("signal %d: every job goes back to the queue with a checkpoint", number)
            worker.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        threading.Thread(target=_stop_when, args=(ended, worker), daemon=True).start()
        _log.info("worker %s is ready for jobs of %s", config.name, model.spec.model_id)
        worker.run()
    _log.info("worker %s ends", config.name)


def _follow(parent: TextIO, ended: threading.Event) -> None:
    """Wait for the end of the pipe; whatever happens then, this process ends soon."""
    while parent.read(1):
        pass
    ended.set()
    threading.Event().wait(_GRACE_S)
    os._exit(1)


def _stop_when(ended: threading.Event, worker: Worker) -> None:
    ended.wait()
    worker.stop()
