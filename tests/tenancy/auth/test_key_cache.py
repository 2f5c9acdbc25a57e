"""The cache of keys: what it forgets, what it keeps, and its bounds."""

from __future__ import annotations

import pytest

from app.db.change_log import Change, ChangeKind
from app.tenancy.auth.key_cache import Entry, KeyCache
from app.tenancy.auth.principal import Principal


def entry(kid: str, tenant: str = "acme") -> Entry:
    return Entry("d" * 64, None, None, Principal(tenant, kid, frozenset()), 0.0)


def key(tenant: str, kid: str) -> Change:
    return Change(ChangeKind.KEY, tenant, kid)


@pytest.fixture
def cache() -> KeyCache:
    """A cache of epoch 7 with two tenants' keys and one kid that nobody has."""
    cache = KeyCache(known=4, unknown=2)
    cache.forget(7, None)
    for kid, tenant in (("a1", "acme"), ("a2", "acme"), ("b1", "corp")):
        cache.put(kid, entry(kid, tenant), 7)
    cache.put("none", None, 7)
    return cache


def kept(cache: KeyCache) -> set[str]:
    return {kid for kid in ("a1", "a2", "b1", "none") if cache.get(kid)[0]}


def test_what_was_put_is_there(cache: KeyCache) -> None:
    assert cache.get("a1") == (True, entry("a1"))
    assert cache.get("none") == (True, None)
    assert cache.get("other") == (False, None)


def test_a_changed_key_is_forgotten_alone(cache: KeyCache) -> None:
    cache.forget(8, [key("acme", "a1")])
    assert kept(cache) == {"a2", "b1", "none"}


def test_a_kid_that_is_now_a_key_is_forgotten(cache: KeyCache) -> None:
    cache.forget(8, [key("acme", "none")])
    assert kept(cache) == {"a1", "a2", "b1"}


def test_with_a_tenant_all_its_keys_are_forgotten(cache: KeyCache) -> None:
    cache.forget(8, [Change(ChangeKind.TENANT, "acme", "")])
    assert kept(cache) == {"b1"}


def test_changes_of_prefixes_change_nothing(cache: KeyCache) -> None:
    cache.forget(8, [Change(ChangeKind.PREFIX, "acme", "a1")])
    assert kept(cache) == {"a1", "a2", "b1", "none"}


def test_if_anything_may_have_changed_all_is_forgotten(cache: KeyCache) -> None:
    cache.forget(8, None)
    assert kept(cache) == set()
    assert not cache._by_tenant


def test_an_answer_of_another_epoch_is_not_kept(cache: KeyCache) -> None:
    cache.put("old", entry("old"), 6)
    cache.put("gone", None, 6)
    assert cache.get("old") == cache.get("gone") == (False, None)


def test_it_is_bounded_and_drops_what_was_used_least(cache: KeyCache) -> None:
    cache.get("a1")
    cache.put("b2", entry("b2", "corp"), 7)
    cache.put("b3", entry("b3", "corp"), 7)
    assert kept(cache) == {"a1", "b1", "none"}
    cache.forget(8, [Change(ChangeKind.TENANT, "acme", "")])
    assert set(cache._by_tenant) == {"corp"}


def test_a_flood_of_unknown_kids_displaces_no_key(cache: KeyCache) -> None:
    for number in range(100):
        cache.put(f"x{number}", None, 7)
    assert kept(cache) == {"a1", "a2", "b1"}
    assert len(cache._unknown) == 2
