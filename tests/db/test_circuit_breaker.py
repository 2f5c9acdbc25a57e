"""A database that does not answer: who waits for it, who is refused, who tries again."""

from __future__ import annotations

import pytest

from app.db.circuit_breaker import CircuitBreaker
from app.errors import Unavailable


class Lost(Exception):
    """No answer came."""


class Database:
    """Answers after a while, or does not, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outage = CircuitBreaker(lambda fault: isinstance(fault, Lost), clock=lambda: self.now)

    def call(self, *, takes: float = 0.0, fault: BaseException | None = None) -> None:
        with self.outage.watched():
            self.now += takes
            if fault is not None:
                raise fault

    def is_refused(self) -> bool:
        try:
            self.call()
        except Unavailable:
            return True
        return False


@pytest.fixture
def database() -> Database:
    return Database()


def lose(database: Database, takes: float) -> None:
    with pytest.raises(Lost):
        database.call(takes=takes, fault=Lost())


def test_a_fault_that_is_told_at_once_refuses_nobody(database: Database) -> None:
    lose(database, 0.1)
    assert not database.is_refused()


def test_after_a_long_wait_in_vain_others_are_refused_and_then_one_tries(
    database: Database,
) -> None:
    lose(database, 5)
    assert database.is_refused()
    database.now += 0.4
    assert database.is_refused()
    database.now += 0.2
    lose(database, 0)
    assert database.is_refused()


def test_while_one_tries_the_others_are_refused(database: Database) -> None:
    lose(database, 5)
    database.now += 1
    with database.outage.watched():
        database.now += 4
        assert database.is_refused()
    assert not database.is_refused()


def test_the_first_success_ends_it(database: Database) -> None:
    lose(database, 5)
    database.now += 1
    database.call()
    assert not database.is_refused()


def test_what_the_caller_does_wrong_says_nothing_of_the_database(database: Database) -> None:
    with pytest.raises(ValueError, match="mine"):
        database.call(takes=5, fault=ValueError("mine"))
    assert not database.is_refused()


def test_a_try_that_never_tells_how_it_ended_is_followed_by_another(database: Database) -> None:
    lose(database, 5)
    database.now += 1
    with pytest.raises(KeyboardInterrupt):
        database.call(fault=KeyboardInterrupt())
    assert database.is_refused()
    database.now += 16
    assert not database.is_refused()
