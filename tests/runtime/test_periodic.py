"""Work beside the requests: again and again, whatever it raises, until the end."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from app.runtime.workers import PeriodicThread


def test_it_is_done_at_once_and_then_in_each_period() -> None:
    times: list[float] = []
    done = threading.Event()

    def work() -> None:
        times.append(time.monotonic())
        if len(times) == 4:
            done.set()

    background = PeriodicThread("counting", 0.05, work)
    begun = time.monotonic()
    background.start()
    assert done.wait(10)
    background.stop()
    assert times[0] - begun < 0.05 + 1
    assert times[3] - times[0] >= 0.14


def test_the_first_time_may_come_later_and_the_end_does_not_wait_for_it() -> None:
    done = threading.Event()
    soon = PeriodicThread("counting", 60, done.set, delay_s=0.05)
    late = PeriodicThread("counting", 60, lambda: 1 / 0, delay_s=60)
    begun = time.monotonic()
    late.start()
    soon.start()
    assert done.wait(10)
    assert time.monotonic() - begun >= 0.05
    late.stop()
    soon.stop()
    assert time.monotonic() - begun < 10


def test_nothing_is_done_after_the_end() -> None:
    calls: list[int] = []
    background = PeriodicThread("counting", 0.01, lambda: calls.append(1))
    background.start()
    time.sleep(0.05)
    background.stop()
    counted = len(calls)
    time.sleep(0.05)
    assert len(calls) == counted > 0


def test_the_end_does_not_wait_for_a_long_period() -> None:
    background = PeriodicThread("sleeping", 3600, lambda: None)
    background.start()
    begun = time.monotonic()
    background.stop()
    assert time.monotonic() - begun < 5


def test_what_fails_is_tried_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    done = threading.Event()

    def work() -> None:
        calls.append(1)
        if len(calls) <= 5:
            raise ValueError("no luck")
        if len(calls) > 8:
            done.set()

    with caplog.at_level(logging.INFO):
        background = PeriodicThread("trying", 0.001, work)
        background.start()
        assert done.wait(10)
        background.stop()
    said = [record.getMessage() for record in caplog.records if "trying" in record.getMessage()]
    assert said == ["trying fails and is tried again: no luck", "trying works again"]


def test_work_on_demand_is_done_once_for_each_time_that_it_is_woken() -> None:
    calls: list[int] = []
    done = threading.Event()

    def work() -> None:
        calls.append(1)
        done.set()

    background = PeriodicThread("waiting", 0.001, work, on_demand=True)
    background.start()
    time.sleep(0.05)
    assert calls == []
    for number in (1, 2):
        done.clear()
        background.wake()
        assert done.wait(10)
        time.sleep(0.05)
        assert len(calls) == number
    background.stop()
    assert len(calls) == 2


def test_work_on_demand_that_fails_is_tried_again_without_being_woken() -> None:
    calls: list[int] = []
    done = threading.Event()

    def work() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("no luck")
        done.set()

    background = PeriodicThread("trying", 0.01, work, on_demand=True)
    background.start()
    background.wake()
    assert done.wait(10)
    time.sleep(0.05)
    background.stop()
    assert len(calls) == 3
