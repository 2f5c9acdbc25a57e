"""The breaker: open at first and after one fault, logged once."""

from __future__ import annotations

import logging

import pytest

from app.tenancy.limits.breaker import Breaker


def test_it_starts_open_and_one_fault_opens_it_again() -> None:
    breaker = Breaker("Redis", meanwhile="limits are local")
    assert breaker.is_open
    breaker.mend()
    assert not breaker.is_open
    breaker.trip("refused")
    assert breaker.is_open
    assert breaker.faults == 1


def test_a_long_failure_is_one_line_at_its_begin_and_one_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    times = iter([0.0, 1.0, 5.5])
    breaker = Breaker("Redis", meanwhile="limits are local", clock=lambda: next(times))
    breaker.mend()
    for _ in range(100):
        breaker.trip("refused")
    breaker.mend()
    breaker.mend()
    assert caplog.messages == [
        "Redis fails (refused); limits are local",
        "Redis works again after 4.5 s",
    ]
    assert breaker.faults == 100


def test_a_reason_is_logged_shortly(caplog: pytest.LogCaptureFixture) -> None:
    Breaker("Redis", meanwhile="limits are local").trip("x" * 10_000)
    assert len(caplog.messages[0]) < 300
