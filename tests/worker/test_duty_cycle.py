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


def test_there_is_no_pause_while_the_server_is_idle() -> None:
    duty = DutyCycle(lambda: 0, share=0.1, clock=seconds(0, 10, 10))
    assert duty.pause() < 0.05


def test_the_pause_leaves_the_share_of_the_time() -> None:
    duty = DutyCycle(lambda: 5, share=0.2, clock=seconds(0, 0.02, 0.02))
    assert duty.pause() == pytest.approx(0.08, abs=0.04)


def test_the_pause_ends_when_the_server_becomes_idle() -> None:
    busy = [5]
    duty = DutyCycle(lambda: len(busy), share=0.1, clock=seconds(0, 10, 10), longest_wait=60)
    threading.Timer(0.05, busy.clear).start()
    assert 0.03 < duty.pause() < 2


def test_the_end_of_the_worker_ends_every_pause() -> None:
    duty = DutyCycle(lambda: 1, share=0.01, clock=seconds(0, 100, 100, 200, 200), longest_wait=60)
    threading.Timer(0.05, duty.end).start()
    assert duty.pause() < 2
    assert duty.pause() < 2
