"""How long a worker pauses while its server has work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from app.worker.duty_cycle import DutyCycle


def seconds(*values: float) -> Callable[[], float]:
    """A clock that says these values."""
    told: Iterator[float] = iter(values)
    return lambda: next(told)


def idle_clock() -> float:
    """A clock that stands still."""
    return 0.0


def test_there_is_no_pause_while_the_server_is_idle() -> None:
    duty = DutyCycle(lambda: 0, share=0.1, work_clock=seconds(0, 10, 10), clock=idle_clock)
    assert duty.pause() < 0.05


def test_work_and_pause_together_leave_the_share_of_the_time() -> None:
    for processors, expected in ((1, 0.3), (2, 0.1)):
        duty = DutyCycle(
            lambda: 5,
            processors=processors,
            share=0.2,
            work_clock=seconds(0, 0.08, 0.08),
            clock=seconds(0, 0.1, 0.4),
        )
        assert duty.pause() == pytest.approx(expected, abs=0.06)


def test_what_others_have_slowed_down_needs_no_pause() -> None:
    duty = DutyCycle(lambda: 5, share=0.2, work_clock=seconds(0, 0.1, 0.1), clock=seconds(0, 1, 1))
    assert duty.pause() < 0.05


def test_the_pause_ends_when_the_server_becomes_idle() -> None:
    busy = [5]
    duty = DutyCycle(
        lambda: len(busy),
        share=0.1,
        work_clock=seconds(0, 10, 10),
        clock=idle_clock,
    )
    threading.Timer(0.05, busy.clear).start()
    assert 0.03 < duty.pause() < 5


def test_a_moment_between_two_requests_does_not_end_the_pause() -> None:
    said = iter([5, 0, 0])
    duty = DutyCycle(
        lambda: next(said, 5),
        share=0.25,
        work_clock=seconds(0, 0.1, 0.1),
        clock=seconds(0, 0.1, 0.4),
    )
    assert duty.pause() == pytest.approx(0.3, abs=0.06)


def test_a_long_piece_of_work_is_followed_by_a_pause_as_long_as_its_share_demands() -> None:
    busy = threading.Event()
    busy.set()
    duty = DutyCycle(
        lambda: int(busy.is_set()), share=0.25, work_clock=seconds(0, 2, 2), clock=seconds(0, 2, 8)
    )
    waited: list[float] = []
    thread = threading.Thread(target=lambda: waited.append(duty.pause()))
    thread.start()
    thread.join(2.5)
    assert thread.is_alive()  # 6 s are due
    busy.clear()
    thread.join(5)
    assert 2.4 < waited[0] < 5


def test_the_pause_ends_when_the_worker_is_wanted() -> None:
    wanted = threading.Event()
    duty = DutyCycle(lambda: 1, share=0.01, work_clock=seconds(0, 9, 9), clock=idle_clock)
    threading.Timer(0.05, wanted.set).start()
    assert 0.03 < duty.pause(wanted.is_set) < 5


def test_the_end_of_the_worker_ends_every_pause() -> None:
    clock = seconds(0, 100, 100, 200, 200)
    duty = DutyCycle(lambda: 1, share=0.01, work_clock=clock, clock=idle_clock)
    threading.Timer(0.05, duty.end).start()
    assert duty.pause() < 5
    assert duty.pause() < 5
