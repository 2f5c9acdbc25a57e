"""Keys in the catalog: what is kept of them, how many there are, and their end."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.change_log import Change, ChangeKind, read_changes
from app.db.schema import api_keys
from app.errors import Conflict, InvalidRequest, NotFound
from app.tenancy.auth import keyring as module
from app.tenancy.auth.keyring import Keyring
from app.tenancy.auth.keys import digest
from app.tenancy.auth.principal import TENANT_SCOPES, Scope
from tests.tenancy.house import PEPPER, House

NOW = 1_800_000_000


def test_a_key_is_kept_as_its_digest_alone(house: House, tmp_path: Path) -> None:
    info, key = house.keyring.create("acme", label="the shop's")
    with house.catalog.read() as connection:
        row = connection.execute(select(api_keys)).one()
    assert row.digest == digest(PEPPER, key.text)
    secret = key.text[17:49].encode()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes()
    assert secret.decode() not in repr(info)


def test_a_key_is_what_was_asked_for(house: House) -> None:
    made, key = house.keyring.create(
        "acme",
        scopes=[Scope.GENERATE, Scope.ADMIN],
        label="laptop",
        not_before=NOW + 5,
        expires_at=NOW + 10,
    )
    assert made == house.keyring.get("acme", key.kid)
    assert made.scopes == {Scope.GENERATE, Scope.ADMIN}
    assert (made.label, made.created_at) == ("laptop", NOW)
    assert [made.state(NOW + after) for after in (0, 5, 10)] == ["pending", "live", "expired"]


def test_a_key_may_do_all_but_administer_unless_it_is_said(house: House) -> None:
    made, _ = house.keyring.create("acme")
    assert made.scopes == TENANT_SCOPES
    assert Scope.ADMIN not in made.scopes


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": []},
        {"label": "a" * 129},
        {"label": "a\nb"},
        {"label": "pfx_hLgGlFxdxg9a_IfyMBGOWX6t6RB0fqzGYaZJ4YXaoAyE7_1pkWDP"},
        {"expires_at": NOW},
        {"expires_at": NOW + 5, "not_before": NOW + 5},
        {"expires_at": -1},
        {"not_before": 2**50},
    ],
    ids=str,
)
def test_a_key_of_no_use_is_not_made(house: House, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        house.keyring.create("acme", **wrong)
    assert house.keyring.list("acme").items == ()


def test_no_key_without_a_tenant(house: House) -> None:
    for call in (house.keyring.create, house.keyring.list):
        with pytest.raises(NotFound, match="corp"):
            call("corp")


def test_no_key_without_a_pepper(house: House) -> None:
    with pytest.raises(Conflict, match="POLYPREFIX_KEY_PEPPER"):
        Keyring(house.catalog, None).create("acme")


def test_keys_are_their_tenant_s_alone(house: House) -> None:
    house.accounts.create("corp")
    made, _ = house.keyring.create("acme")
    for call in (house.keyring.get, house.keyring.revoke):
        with pytest.raises(NotFound):
            call("corp", made.kid)
    assert house.keyring.list("corp").items == ()
    assert house.keyring.get("acme", made.kid).revoked_at is None


@pytest.mark.parametrize("kid", ["", "a" * 12, "a\0b", "é" * 12, "' OR 1=1 --", "a" * 5000])
def test_a_kid_that_is_not_there_is_not_found(house: House, kid: str) -> None:
    for call in (house.keyring.get, house.keyring.revoke):
        with pytest.raises(NotFound):
            call("acme", kid)


def test_a_revoked_key_stays_listed_with_the_time(house: House) -> None:
    made, _ = house.keyring.create("acme")
    house.clock.now += 60
    revoked = house.keyring.revoke("acme", made.kid)
    assert (revoked.revoked_at, revoked.state(NOW)) == (NOW + 60, "revoked")
    house.clock.now += 60
    assert house.keyring.revoke("acme", made.kid) == revoked
    assert house.keyring.list("acme").items == (revoked,)


def test_keys_are_listed_in_pages(house: House) -> None:
    made = sorted(house.keyring.create("acme")[0].kid for _ in range(5))
    seen: list[str] = []
    cursor = None
    while True:
        page = house.keyring.list("acme", cursor, 2)
        seen += [info.kid for info in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made


def test_live_keys_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LIVE", 3)
    first, _ = house.keyring.create("acme")
    for _ in range(2):
        house.keyring.create("acme", expires_at=NOW + 10)
    with pytest.raises(Conflict, match="3 live keys"):
        house.keyring.create("acme")
    house.accounts.create("corp")
    house.keyring.create("corp")
    house.keyring.revoke("acme", first.kid)
    house.keyring.create("acme")
    house.clock.now += 10
    house.keyring.create("acme")


def test_dead_keys_are_bounded_and_the_oldest_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_DEAD", 2)
    dead = []
    for _ in range(4):
        house.clock.now += 1
        made, _ = house.keyring.create("acme")
        dead.append(house.keyring.revoke("acme", made.kid).kid)
    house.keyring.create("acme")
    listed = {info.kid for info in house.keyring.list("acme").items if info.revoked_at}
    assert listed == set(dead[-2:])


def test_it_is_known_whether_anybody_could_get_in(house: House) -> None:
    assert not house.keyring.has_live()
    made, _ = house.keyring.create("acme", expires_at=NOW + 10)
    assert house.keyring.has_live()
    house.accounts.change("acme", disabled=True)
    assert not house.keyring.has_live()
    house.accounts.change("acme", disabled=False)
    house.clock.now += 10
    assert not house.keyring.has_live()
    house.clock.now -= 10
    house.keyring.revoke("acme", made.kid)
    assert not house.keyring.has_live()


def test_every_change_is_noted_for_other_replicas(house: House) -> None:
    before = house.catalog.epoch()
    made, _ = house.keyring.create("acme")
    house.keyring.revoke("acme", made.kid)
    with house.catalog.read() as connection:
        noted = read_changes(connection, before, house.catalog.epoch())
    assert noted == [Change(ChangeKind.KEY, "acme", made.kid)] * 2
