"""Contenders: made once in their own process, in turns, their median round counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from app.bench.measure import Contender, contest, in_own_process
from app.errors import InvalidRequest


class Runner:
    """Writes its name into a file each time it runs, and may take a while."""

    def __init__(self, log: Path, name: str, seconds: float = 0.0) -> None:
        if name == "absent":
            raise InvalidRequest("the peer needs a package")
        self._log, self._name, self._seconds = log, name, seconds
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        time.sleep(self._seconds)
        with self._log.open("a") as file:
            file.write(self._name)


def runs_and_process(runner: Runner) -> tuple[int, int]:
    return runner.runs, os.getpid()


def test_contenders_take_turns_after_one_round_that_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    quick, slow = Contender(Runner, log, "q"), Contender(Runner, log, "s", 0.05)
    with contest([quick, slow], rounds=3):
        (quick_runs, quick_process), (slow_runs, slow_process) = (
            contender.ask(runs_and_process) for contender in (quick, slow)
        )
    assert log.read_text() == "qs" + "qsqsqs"
    assert quick_runs == slow_runs == 4
    assert len({quick_process, slow_process, os.getpid()}) == 3
    assert slow.median_seconds >= 0.05 > quick.median_seconds > 0


def test_an_error_of_a_contender_reaches_the_user_and_ends_the_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(InvalidRequest, match="needs a package"),
        contest([Contender(Runner, log, "q"), Contender(Runner, log, "absent")], rounds=1),
    ):
        pytest.fail("the contest was held")
    assert not log.exists()  # nobody ran


def test_a_contender_that_is_not_ready_says_so() -> None:
    with pytest.raises(RuntimeError, match="not ready"):
        Contender(Runner).play()


def test_in_own_process_runs_work_in_another_process() -> None:
    assert in_own_process(os.getpid) != os.getpid()
