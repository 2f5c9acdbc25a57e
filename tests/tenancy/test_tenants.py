"""Tenants in the catalog: made, listed, changed and removed with all they have."""

from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select

from app.db import schema
from app.db.change_log import Change, ChangeKind, read_changes
from app.errors import Conflict, InvalidRequest, NotFound
from app.tenancy.limits.limits import TenantLimits
from tests.tenancy.house import House


def count(house: House, table: object) -> int:
    with house.catalog.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def owner_of(house: House, tenant: str) -> str:
    with house.catalog.read() as connection:
        query = select(schema.tenants.c.owner).where(schema.tenants.c.id == tenant)
        return connection.execute(query).scalar_one()


def fill(house: House, tenant: str) -> None:
    """One row in every table below a tenant."""
    digest, now = "d" * 64, 5
    with house.catalog.write() as (connection, _):

        def add(table: object, **row: object) -> int:
            return connection.execute(insert(table).values(row)).inserted_primary_key[0]

        prefix = add(schema.prefixes, tenant_id=tenant, name="e2e", created_at=now)
        version = add(
            schema.versions,
            prefix_id=prefix,
            owner=owner_of(house, tenant),
            digest=digest,
            file_nbytes=1,
            length=1,
            position_offset=0,
            dtype="float32",
            nbytes=1,
            decoding={},
            provenance={},
            pinned=False,
            created_at=now,
        )
        alias = {"prefix_id": prefix, "version_id": version}
        add(schema.aliases, name="latest", revision=1, updated_at=now, **alias)
        add(schema.alias_targets, alias="latest", weight=1, **alias)
        add(
            schema.alias_gates,
            prefix_id=prefix,
            alias="latest",
            metric="bleu",
            min_score=1.0,
            examples=[],
            updated_at=now,
        )
        add(
            schema.alias_history,
            prefix_id=prefix,
            alias="latest",
            digest=digest,
            reason="set",
            undoable=True,
            changed_at=now,
        )
        add(schema.publications, prefix_id=prefix, grantee="other", created_at=now)
        add(schema.seeded, tenant_id=tenant, name="e2e", digest=digest, added_at=now)
    house.keyring.create(tenant)


def test_a_new_tenant_is_there_with_its_limits(house: House) -> None:
    made = house.accounts.create("corp", TenantLimits(max_rows=3))
    assert made == house.accounts.get("corp")
    assert (made.id, made.created_at, made.disabled_at) == ("corp", 1_800_000_000, None)
    assert made.limits == TenantLimits(max_rows=3)


def test_a_tenant_is_made_once(house: House) -> None:
    with pytest.raises(Conflict, match="acme"):
        house.accounts.create("acme")


@pytest.mark.parametrize("name", ["", "Acme", "../etc", "a" * 65, "a/b", "é", "a\0b", "a\n"])
def test_what_is_no_name_is_no_tenant(house: House, name: str) -> None:
    with pytest.raises(InvalidRequest):
        house.accounts.create(name)
    with pytest.raises(InvalidRequest):
        house.accounts.get(name)


def test_who_is_not_there_is_not_found(house: House) -> None:
    for call in (house.accounts.get, house.accounts.delete, house.accounts.change):
        with pytest.raises(NotFound, match="corp"):
            call("corp")


def test_owners_are_random_and_not_made_of_names(house: House) -> None:
    house.accounts.create("corp")
    assert owner_of(house, "acme") != owner_of(house, "corp")
    assert "acme" not in owner_of(house, "acme")


def test_tenants_are_listed_by_name_in_pages(house: House) -> None:
    for name in ("zeta", "beta", "corp"):
        house.accounts.create(name)
    first = house.accounts.list(limit=3)
    assert [account.id for account in first.items] == ["acme", "beta", "corp"]
    rest = house.accounts.list(first.next_cursor, limit=3)
    assert ([account.id for account in rest.items], rest.next_cursor) == (["zeta"], None)


@pytest.mark.parametrize(("cursor", "limit"), [("?", 20), (None, 0), (None, 101)])
def test_a_wrong_page_is_refused(house: House, cursor: str | None, limit: int) -> None:
    with pytest.raises(InvalidRequest):
        house.accounts.list(cursor, limit)


def test_limits_change_one_by_one(house: House) -> None:
    house.accounts.change("acme", limits={"max_rows": 4, "weight": 2})
    changed = house.accounts.change("acme", limits={"max_rows": None, "max_queue": 1})
    assert changed.limits == TenantLimits(max_queue=1, weight=2.0)
    assert house.accounts.get("acme") == changed


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"weight": "2"}, {"rows": 1}])
def test_wrong_limits_change_nothing(house: House, limits: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="limits"):
        house.accounts.change("acme", limits=limits, disabled=True)
    assert house.accounts.get("acme").disabled_at is None


def test_a_disabled_tenant_remembers_since_when(house: House) -> None:
    first = house.accounts.change("acme", disabled=True)
    house.clock.now += 60
    assert house.accounts.change("acme", disabled=True).disabled_at == first.disabled_at
    assert first.disabled_at == 1_800_000_000
    assert house.accounts.change("acme", disabled=False).disabled_at is None


def test_a_deleted_tenant_takes_all_it_has_along(house: House) -> None:
    fill(house, "acme")
    house.accounts.create("corp")
    fill(house, "corp")
    gone = owner_of(house, "acme")
    house.accounts.delete("acme")
    with pytest.raises(NotFound):
        house.accounts.get("acme")
    for table in (
        *(schema.prefixes, schema.versions, schema.aliases, schema.alias_targets),
        *(schema.alias_gates, schema.alias_history, schema.publications, schema.seeded),
        *(schema.api_keys, schema.tenants),
    ):
        assert count(house, table) == 1, table.name
    with house.catalog.read() as connection:
        assert list(connection.scalars(select(schema.retired_owners.c.owner))) == [gone]


def test_a_later_tenant_of_the_name_inherits_nothing(house: House) -> None:
    house.accounts.create("other")
    fill(house, "acme")
    before = owner_of(house, "other")
    house.accounts.delete("other")
    assert count(house, schema.publications) == 0
    house.accounts.create("other")
    assert owner_of(house, "other") != before


def test_every_change_is_noted_for_other_replicas(house: House) -> None:
    before = house.catalog.epoch()
    house.accounts.create("corp")
    house.accounts.change("corp", disabled=True)
    house.accounts.delete("corp")
    with house.catalog.read() as connection:
        noted = read_changes(connection, before, house.catalog.epoch())
    assert noted == [Change(ChangeKind.TENANT, "corp", "")] * 3


def test_what_is_refused_leaves_no_trace(house: House) -> None:
    before = house.catalog.epoch()
    with pytest.raises(Conflict):
        house.accounts.create("acme")
    with pytest.raises(NotFound):
        house.accounts.delete("corp")
    assert house.catalog.epoch() == before
