"""The worker process of a server: started when a job waits, restarted if it dies, ended with it."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from app.errors import PolyprefixError
from app.worker.config import WorkerConfig
from app.worker.load_signal import LoadSignal

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Seconds between two looks into the queue while there is no process."""
_SAMPLE_S = 0.01
"""Seconds between two samples of the server's load while there is one."""
_LONGEST_BACK_OFF_S = 60.0
_DRAIN_S = 20.0
"""Seconds that the process gets to save its jobs at the end."""


class EmbeddedWorker:
    """Keeps at most one worker process, in a thread that computes nothing.

    `command` starts a process that reads a `WorkerConfig` from its standard input and ends when
    that is closed, so it never outlives this process. `has_work` tells whether a job waits, `rows`
    how many rows the server has, and `obstacle` why no process can be started now (None: it can).
    `announce` is called now and then as long as a process can be started: users are not told then
    that there is no worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: WorkerConfig,
        *,
        has_work: Callable[[], bool],
        rows: Callable[[], int],
        obstacle: Callable[[], str | None] = lambda: None,
        announce: Callable[[], None] = lambda: None,
        look_s: float = _LOOK_S,
        first_back_off_s: float = 1.0,
    ) -> None:
        self._command, self._config = tuple(command), config
        self._has_work, self._rows, self._obstacle = has_work, rows, obstacle
        self._announce = announce
        self._look_s, self._first_back_off_s = look_s, first_back_off_s
        self._process: subprocess.Popen[str] | None = None
        self._signal = LoadSignal.create()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedded worker", daemon=True)
        self._failures, self._not_before = 0, 0.0
        self._told: str | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Begin to look for work."""
        self._thread.start()

    def stop(self) -> None:
        """End the process; it gives its jobs back with checkpoints, or is killed if that takes too
        long."""
        self._ended.set()
        self._thread.join()
        if self._process is not None:
            self._end(self._process)
        self._signal.close()

    def _run(self) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            if self._process is not None:
                self._signal.rows = self._rows()
                self._notice_end(self._process)
            elif time.monotonic() >= self._not_before and self._is_wanted():
                self._spawn()
            wait = self._look_s if self._process is None else _SAMPLE_S

    def _is_wanted(self) -> bool:
        try:
            obstacle = self._obstacle()
            if obstacle is None:
                self._announce()
            if not self._has_work():
                return False
        except PolyprefixError as error:
            obstacle = str(error)
        if obstacle is not None and obstacle != self._told:
            _log.warning("jobs wait and no worker is started: %s", obstacle)
        self._told = obstacle
        return obstacle is None

    def _spawn(self) -> None:
        config = replace(self._config, load_fd=self._signal.fd)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._signal.fd],
                process_group=0,  # Ctrl+C is for the server, which then ends the worker
                text=True,
            )
        except OSError as error:
            self._back_off(f"it cannot be started: {error}")
            return
        self._process, self._spawned = process, time.monotonic()
        _log.info("a job waits: starting the worker process %d", process.pid)
        try:
            if process.stdin is not None:
                process.stdin.write(config.to_json() + "\n")
                process.stdin.flush()
        except OSError as error:  # it has ended already; the next look sees it
            _log.debug("the worker process took no configuration: %s", error)

    def _notice_end(self, process: subprocess.Popen[str]) -> None:
        code = process.poll()
        if code is None:
            return
        self._close(process)
        self._process = None
        if code == 0:
            _log.info("the worker process has ended: there was no job for a while")
            self._failures = 0
            return
        if time.monotonic() - self._spawned > _LONGEST_BACK_OFF_S:
            self._failures = 0
        self._back_off(f"it has ended with status {code}")

    def _back_off(self, problem: str) -> None:
        wait = min(self._first_back_off_s * 2.0**self._failures, _LONGEST_BACK_OFF_S)
        self._failures += 1
        self._not_before = time.monotonic() + wait
        _log.warning("the worker process: %s; the next one starts in %.0f s", problem, wait)

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._close(process)
        try:
            process.wait(_DRAIN_S)
        except subprocess.TimeoutExpired:
            _log.warning("the worker process does not end and is killed; its jobs go on elsewhere")
            process.kill()
            process.wait()

    @staticmethod
    def _close(process: subprocess.Popen[str]) -> None:
        try:
            if process.stdin is not None:
                process.stdin.close()
        except OSError as error:
            _log.debug("the worker process took no configuration: %s", error)
