"""Refusals that are counted: by minute, reason and caller, and never without bound."""

from __future__ import annotations

import pytest

from app.addresses import network_of
from app.tenancy.audit.refusals import OTHERS, Refusal, Refusals

NOW = 1_800_000_030.0
MINUTE = 1_800_000_000


def test_refusals_without_a_key_are_counted_by_network_and_reason() -> None:
    denials = Refusals()
    for peer in ("192.0.2.1", "192.0.2.200", "198.51.100.1"):
        denials.add(NOW, "invalid_api_key", peer=peer)
    denials.add(NOW + 40, "invalid_api_key", peer="192.0.2.1")
    assert denials.take() == {
        Refusal(MINUTE, "", None, "192.0.2.0/24", "invalid_api_key"): 2,
        Refusal(MINUTE, "", None, "198.51.100.0/24", "invalid_api_key"): 1,
        Refusal(MINUTE + 60, "", None, "192.0.2.0/24", "invalid_api_key"): 1,
    }
    assert denials.take() == {}


def test_refusals_of_a_key_are_counted_by_key() -> None:
    denials = Refusals()
    denials.add(NOW, "insufficient_scope", tenant="acme", kid="k", peer="192.0.2.1")
    assert denials.take() == {Refusal(MINUTE, "acme", "k", None, "insufficient_scope"): 1}


def test_the_present_minute_is_kept_until_it_is_over() -> None:
    denials = Refusals()
    denials.add(NOW, "x", peer=None)
    assert denials.take(NOW + 29) == {}
    assert len(denials.take(NOW + 30)) == 1


def test_counts_that_were_not_written_are_added_again() -> None:
    denials = Refusals()
    denials.add(NOW, "x", peer=None)
    taken = denials.take()
    denials.add(NOW, "x", peer=None)
    denials.restore(taken)
    assert list(denials.take().values()) == [2]


def test_memory_is_bounded_and_no_refusal_is_forgotten() -> None:
    denials = Refusals(max_keys=20)
    for number in range(5000):
        denials.add(NOW + number, f"reason {number}", peer=f"10.{number % 256}.{number // 256}.1")
    counts = denials.take()
    assert len(counts) <= 20 + 100 + 1
    assert sum(counts.values()) == 5000
    assert any(key.reason == OTHERS for key in counts)


def test_a_key_has_so_many_records_a_minute_and_others_have_theirs() -> None:
    denials = Refusals(singly=2)
    allowed = [denials.allows_record("acme", "k", NOW) for _ in range(4)]
    assert allowed == [True, True, False, False]
    assert denials.allows_record("acme", "other", NOW)
    assert denials.allows_record("acme", "k", NOW + 60)


def test_so_many_keys_a_minute_have_records() -> None:
    denials = Refusals(max_keys=3, singly=2)
    assert [denials.allows_record("acme", f"k{n}", NOW) for n in range(5)] == [True] * 3 + [
        False
    ] * 2
    assert denials.allows_record("acme", "k0", NOW)


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("testclient", None),
        (None, None),
    ],
)
def test_networks_of_addresses(peer: str | None, network: str | None) -> None:
    assert network_of(peer) == network
