"""Death and failing disks at every call of an operation: the old state or the new one, never a mix.

The work is done by `crash_driver`, in children of its own; the slow tests go through every
operation, and through every call of SQLite to the operating system as well.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
FAST = ["upload-new-version", "delete-version", "collect-and-upload-it-again"]
CALLS_OF_AN_UPLOAD = 40
DURABLE_CALLS = (
    "write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat,"
    "mkdir,mkdirat,utimensat"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory if there is one: a process that dies takes nothing unsynced with it."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name) / "crashes"


def drive(*arguments: str | Path) -> Any:
    done = subprocess.run(
        [sys.executable, DRIVER, *arguments], check=True, stdout=subprocess.PIPE, timeout=1500
    )
    return json.loads(done.stdout)


def check(kind: str, folder: Path, *operations: str) -> None:
    report = drive(kind, folder, *operations)
    assert {
        name: found["violations"] for name, found in report.items() if found["violations"]
    } == {}
    assert report["upload-new-version"]["points"] >= CALLS_OF_AN_UPLOAD
    assert len(report) == len(operations) or not operations


def test_killed_at_any_call_the_state_is_the_old_or_the_new(folder: Path) -> None:
    check("kill", folder, *FAST)


@pytest.mark.parametrize("kind", ["ENOSPC-once", "EIO-forever"])
def test_a_disk_that_fails_at_any_call_changes_nothing_by_half(folder: Path, kind: str) -> None:
    check(kind, folder, "upload-new-version")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind",
    [
        "kill",
        *(
            f"{code}-{extent}"
            for code in ("ENOSPC", "EIO", "EINTR")
            for extent in ("once", "forever")
        ),
    ],
)
def test_every_operation_at_every_call(folder: Path, kind: str) -> None:
    check(kind, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("operation", FAST)
def test_killed_at_any_durable_system_call_of_the_whole_process(
    folder: Path, operation: str
) -> None:
    drive("prepare", folder, operation)
    tracing = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={DURABLE_CALLS}"]
    killed = 0
    while True:
        shutil.rmtree(folder / "work")
        shutil.copytree(folder / "template", folder / "work")
        injection = f"inject={DURABLE_CALLS}:signal=SIGKILL:when={killed + 1}"
        ended = subprocess.run(
            [*tracing, "-e", injection, sys.executable, "-B", DRIVER, "do", folder, operation],
            check=False,
        )
        if ended.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            break
        killed += 1
        assert drive("check", folder, operation) == [], f"killed at call {killed}"
    assert ended.returncode == 0
    assert killed >= 8
