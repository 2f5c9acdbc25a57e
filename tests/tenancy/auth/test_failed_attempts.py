"""How failures of an address add up, wear off, and stay apart from those of others."""

from __future__ import annotations

import pytest

from app.errors import RateLimited
from app.tenancy.auth.failed_attempts import FailedAttempts
from tests.tenancy.house import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def exhaust(failures: FailedAttempts, peer: str, count: int = 10) -> None:
    for _ in range(count):
        failures.check(peer)
        failures.count(peer)


def test_as_many_failures_pass_as_are_allowed(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "192.0.2.1")
    with pytest.raises(RateLimited) as refused:
        failures.check("192.0.2.1")
    assert refused.value.retry_after == pytest.approx(6)
    with pytest.raises(RateLimited):
        failures.count("192.0.2.1")


def test_they_wear_off_evenly(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "192.0.2.1")
    clock.now += 6.01
    exhaust(failures, "192.0.2.1", 1)
    with pytest.raises(RateLimited):
        failures.check("192.0.2.1")
    clock.now += 61
    exhaust(failures, "192.0.2.1", 10)


def test_going_on_does_not_make_the_wait_longer_than_it_is(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "192.0.2.1")
    for _ in range(100):
        with pytest.raises(RateLimited):
            failures.count("192.0.2.1")
    clock.now += 6.01
    failures.check("192.0.2.1")


def test_other_addresses_are_not_concerned(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "192.0.2.1")
    failures.check("192.0.2.2")
    failures.count("192.0.2.2")


def test_a_network_of_ipv6_counts_as_one_address(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    for number in range(10):
        failures.count(f"2001:db8::{number:x}:1")
    with pytest.raises(RateLimited):
        failures.check("2001:db8::ffff")
    failures.check("2001:db8:0:1::1")


def test_ipv4_in_ipv6_counts_as_itself(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "::ffff:192.0.2.1")
    failures.check("::ffff:192.0.2.2")
    with pytest.raises(RateLimited):
        failures.check("192.0.2.1")


def test_what_is_no_address_counts_too(clock: Clock) -> None:
    failures = FailedAttempts(10, clock=clock)
    exhaust(failures, "unknown")
    with pytest.raises(RateLimited):
        failures.check("unknown")


def test_the_table_is_bounded_and_forgets_the_oldest(clock: Clock) -> None:
    failures = FailedAttempts(1, addresses=3, clock=clock)
    for last in range(1, 5):
        failures.count(f"192.0.2.{last}")
    failures.check("192.0.2.1")
    for last in (2, 3, 4):
        with pytest.raises(RateLimited):
            failures.check(f"192.0.2.{last}")


def test_looking_leaves_nothing_behind(clock: Clock) -> None:
    failures = FailedAttempts(1, addresses=2, clock=clock)
    failures.count("192.0.2.1")
    for last in range(2, 50):
        failures.check(f"192.0.2.{last}")
    with pytest.raises(RateLimited):
        failures.check("192.0.2.1")
