"""A breaker opens after a long wait for a server, refuses calls, and closes after a probe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.db.circuit_breaker import CircuitBreaker, ProbingBreaker
from app.errors import Unavailable


class Lost(Exception):
    """No answer came."""


class Server:
    """Is called through a breaker; probes wait for `answers`, which the test sets or breaks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answers = threading.Event()
        self.fault: Exception | None = None
        self.attempts: list[int] = []
        self.breaker = ProbingBreaker(
            "the server", lambda fault: isinstance(fault, Lost), self.probe, clock=lambda: self.now
        )

    def call(self, *, takes: float = 0.0, fault: Exception | None = None) -> None:
        with self.breaker.watched():
            self.now += takes
            if fault is not None:
                raise fault

    def is_refused(self) -> bool:
        try:
            self.call()
        except Unavailable:
            return True
        return False

    def probe(self, attempt: int) -> None:
        self.attempts.append(attempt)
        if len(self.attempts) < 2:
            raise Lost
        assert self.answers.wait(30)
        if self.fault is not None:
            raise self.fault

    def lose(self, takes: float) -> None:
        with pytest.raises(Lost):
            self.call(takes=takes, fault=Lost())

    def wait_until_calls_pass(self) -> None:
        pause = threading.Event()
        for _ in range(3000):
            if not self.is_refused():
                return
            pause.wait(0.01)
        raise AssertionError("the breaker stays open")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.answers.set()
    server.breaker.stop()


def test_a_quick_failure_refuses_nobody(server: Server) -> None:
    server.lose(0.1)
    assert not server.is_refused()


def test_after_a_long_wait_calls_are_refused_until_a_probe_is_answered(server: Server) -> None:
    server.lose(5)
    assert server.is_refused()
    server.now += 1000  # no call is spent on finding out, however much time passes
    assert server.is_refused()
    server.answers.set()
    server.wait_until_calls_pass()
    assert server.attempts == [1, 2]


def test_calls_that_were_lost_together_share_one_probe(server: Server) -> None:
    with suppress(Lost), server.breaker.watched():
        server.lose(5)
        raise Lost
    server.answers.set()
    server.wait_until_calls_pass()
    assert server.attempts == [1, 2]


def test_a_probe_that_fails_otherwise_has_been_answered(server: Server) -> None:
    server.fault = ValueError("the server's own error")
    server.lose(5)
    server.answers.set()
    server.wait_until_calls_pass()


def test_an_error_of_the_caller_says_nothing_about_the_server(server: Server) -> None:
    with pytest.raises(ValueError, match="mine"):
        server.call(takes=5, fault=ValueError("mine"))
    assert not server.is_refused()


def test_a_stopped_breaker_probes_no_longer(server: Server) -> None:
    server.breaker.stop()
    server.lose(5)
    server.answers.set()
    pause = threading.Event()
    pause.wait(0.7)
    assert server.attempts == []
    assert server.is_refused()


def test_a_breaker_that_starts_open_closes_and_opens_again() -> None:
    breaker = CircuitBreaker("Redis", meanwhile="limits are local", is_open=True)
    assert breaker.is_open
    breaker.close()
    assert not breaker.is_open
    breaker.open("refused")
    assert breaker.is_open
    assert breaker.faults == 1


def test_an_outage_is_one_line_in_the_log_at_its_begin_and_one_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    times = iter([1.0, 5.5])
    breaker = CircuitBreaker(
        "Redis", meanwhile="limits are local", is_open=True, clock=lambda: next(times)
    )
    breaker.close()
    for _ in range(100):
        breaker.open("refused")
    breaker.close()
    breaker.close()
    assert caplog.messages == [
        "Redis fails (refused); limits are local",
        "Redis works again after 4.5 s",
    ]
    assert breaker.faults == 100


def test_a_long_reason_is_cut_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    CircuitBreaker("Redis", meanwhile="limits are local", is_open=True).open("x" * 10_000)
    assert len(caplog.messages[0]) < 300
