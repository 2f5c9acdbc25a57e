"""Tenants and keys in a catalog that several processes share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from app.db.database import Database, migrate
from app.errors import Conflict, InvalidKey
from app.tenancy.auth import keyring as module
from tests.postgres_server import postgres_url
from tests.tenancy.house import PEER, Clock, House
from tests.tenancy.test_tenants import fill

NOW = 1_800_000_000


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres_url() as url:
        migrate(url)
        yield url


@pytest.fixture
def houses(url: str) -> Iterator[tuple[House, House]]:
    """Two processes on one catalog without tenants."""
    clock = Clock()
    both = House(Database(url, clock=clock), clock), House(Database(url, clock=clock), clock)
    for account in both[0].accounts.list().items:
        both[0].accounts.delete(account.id)
    yield both
    for house in both:
        house.catalog.close()


def test_a_key_of_one_is_let_in_by_the_other_until_it_is_revoked(
    houses: tuple[House, House],
) -> None:
    one, other = houses
    one.accounts.create("acme")
    info, key = one.keyring.create("acme", label="über")
    assert other.authenticator.authenticate(key.text, PEER).kid == info.kid
    other.authenticator.note_uses()
    assert one.keyring.get("acme", info.kid).last_used_at == NOW
    one.keyring.revoke("acme", info.kid)
    other.feed.poll()
    with pytest.raises(InvalidKey):
        other.authenticator.authenticate(key.text, PEER)


def test_a_deleted_tenant_takes_all_it_has_along(houses: tuple[House, House]) -> None:
    one, other = houses
    for tenant in ("acme", "corp"):
        one.accounts.create(tenant)
        fill(one, tenant)
    other.accounts.delete("acme")
    assert [account.id for account in one.accounts.list().items] == ["corp"]
    assert len(one.keyring.list("corp").items) == 1


def test_the_bound_on_keys_holds_for_both_at_once(
    houses: tuple[House, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LIVE", 10)
    houses[0].accounts.create("acme")
    refused: list[Conflict] = []

    def make(house: House) -> None:
        for _ in range(10):
            try:
                house.keyring.create("acme")
            except Conflict as error:
                refused.append(error)

    threads = [threading.Thread(target=make, args=(house,)) for house in houses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(houses[0].keyring.list("acme").items) == 10
    assert len(refused) == 10


def test_a_tenant_is_made_once_by_both_at_once(houses: tuple[House, House]) -> None:
    outcomes: list[str] = []

    def make(house: House) -> None:
        try:
            house.accounts.create("acme")
            outcomes.append("made")
        except Conflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=make, args=(house,)) for house in houses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made", "refused"]
