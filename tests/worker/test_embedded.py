"""The life of a server's worker process, with small programs in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import Unavailable
from app.worker.config import WorkerConfig
from app.worker.embedded import EmbeddedWorker

PATIENT = """
    import os, sys
    config = sys.stdin.readline()
    with open(FOLDER + "/pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    sys.stdin.read()
    open(FOLDER + "/drained", "a").write("x")
"""
"""Works until the server ends."""


def program(folder: Path, text: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(f"FOLDER = {str(folder)!r}\n" + textwrap.dedent(text))
    return [sys.executable, str(path)]


def config(folder: Path) -> WorkerConfig:
    return WorkerConfig(name="w", model="m", catalog_url="sqlite://", store="s", folder=folder)


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def make(folder: Path, text: str = PATIENT, **options: object) -> EmbeddedWorker:
    told = {"has_work": lambda: True, "rows": lambda: 0, "look_s": 0.01, "first_back_off_s": 0.01}
    return EmbeddedWorker(program(folder, text), config(folder), **{**told, **options})  # type: ignore[arg-type]


def test_no_process_runs_before_there_is_work(tmp_path: Path) -> None:
    asked: list[int] = []

    def has_work() -> bool:
        asked.append(1)
        return len(asked) > 5

    worker = make(tmp_path, has_work=has_work)
    worker.start()
    until(lambda: pids(tmp_path))
    assert len(asked) > 5
    worker.stop()


def test_stop_lets_the_process_drain(tmp_path: Path) -> None:
    worker = make(tmp_path)
    worker.start()
    until(lambda: pids(tmp_path))
    worker.stop()
    assert (tmp_path / "drained").exists()
    assert not is_alive(pids(tmp_path)[0])


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    worker = make(tmp_path)
    worker.start()
    until(lambda: len(pids(tmp_path)) == 1)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    until(lambda: len(pids(tmp_path)) == 2)
    worker.stop()


def test_replacements_come_at_growing_intervals(tmp_path: Path) -> None:
    failing = 'open(FOLDER + "/starts", "a").write("x"); raise SystemExit(3)'
    worker = make(tmp_path, failing, first_back_off_s=0.3)
    worker.start()
    time.sleep(1.5)
    worker.stop()
    assert 1 <= len((tmp_path / "starts").read_text()) <= 3


def test_an_obstacle_and_a_catalog_that_fails_keep_it_from_starting(tmp_path: Path) -> None:
    def fails() -> bool:
        raise Unavailable("the catalog is busy")

    for options in ({"obstacle": lambda: "too little memory"}, {"has_work": fails}):
        worker = make(tmp_path, **options)
        worker.start()
        time.sleep(0.1)
        worker.stop()
        assert not pids(tmp_path)


def test_the_process_reads_the_load_of_the_server(tmp_path: Path) -> None:
    reader = """
        import json, os, sys, mmap
        fd = json.loads(sys.stdin.readline())["load_fd"]
        memory = mmap.mmap(fd, 1)
        while memory[0] != 7:
            pass
        open(FOLDER + "/seen", "w").write("x")
        sys.stdin.read()
    """
    worker = make(tmp_path, reader, rows=lambda: 7)
    worker.start()
    until((tmp_path / "seen").exists)
    worker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(
        textwrap.dedent(f"""
            import sys, time
            from pathlib import Path
            sys.path.insert(0, {str(Path(__file__).parents[2])!r})
            from tests.worker.test_embedded import make
            make(Path({str(tmp_path)!r})).start()
            time.sleep(60)
        """)
    )
    process = subprocess.Popen([sys.executable, str(server)])
    until(lambda: pids(tmp_path), 30)
    process.kill()
    process.wait()
    until(lambda: not is_alive(pids(tmp_path)[0]))
