"""The cache of what the catalog answers: what it forgets, what it keeps, and its bounds."""

from __future__ import annotations

from typing import Any

import pytest

from app.db.change_log import Change, ChangeKind
from app.db.epoch_cache import ANY_TENANT, EpochCache
from tests.db.told_catalog import ToldCatalog

Cache = EpochCache[str, str]


def key(tenant: str, kid: str) -> Change:
    return Change(ChangeKind.KEY, tenant, kid)


def tenant(name: str) -> Change:
    return Change(ChangeKind.TENANT, name, "")


def depends_on(kid: str, owner: str | None) -> tuple[Change, Change]:
    return key("", kid), ANY_TENANT if owner is None else tenant(owner)


@pytest.fixture
def catalog() -> Any:
    return ToldCatalog()


@pytest.fixture
def cache(catalog: Any) -> Cache:
    """A cache of epoch 7 with keys of two tenants, a kid → its tenant, and one unknown kid."""
    cache = Cache(catalog, depends_on, known=4, unknown=2)
    catalog.feed.tell(7, None)
    for kid, owner in (("a1", "acme"), ("a2", "acme"), ("b1", "corp")):
        cache.put(kid, owner, 7)
    cache.put("none", None, 7)
    return cache


def kept(cache: Cache) -> set[str]:
    return {kid for kid in ("a1", "a2", "b1", "none") if cache.get(kid)[0]}


def test_get_returns_what_was_put(cache: Cache) -> None:
    assert cache.get("a1") == cache.get_fresh("a1") == (True, "acme")
    assert cache.get("none") == (True, None)
    assert cache.get("other") == (False, None)


def test_get_fresh_returns_nothing_while_the_feed_is_not_fresh(catalog: Any, cache: Cache) -> None:
    catalog.feed.fresh = lambda: False
    assert cache.get_fresh("a1") == (False, None)
    assert cache.get("a1") == (True, "acme")


def test_a_change_forgets_the_entries_that_depend_on_it(catalog: Any, cache: Cache) -> None:
    catalog.feed.tell(8, [key("acme", "a1")])
    assert kept(cache) == {"a2", "b1", "none"}


def test_an_unknown_key_that_appears_is_forgotten(catalog: Any, cache: Cache) -> None:
    catalog.feed.tell(8, [key("acme", "none")])
    assert kept(cache) == {"a1", "a2", "b1"}


def test_a_change_of_a_tenant_forgets_its_entries_and_all_unknown_ones(
    catalog: Any, cache: Cache
) -> None:
    catalog.feed.tell(8, [tenant("acme")])
    assert kept(cache) == {"b1"}


def test_a_change_on_which_nothing_depends_forgets_nothing(catalog: Any, cache: Cache) -> None:
    catalog.feed.tell(8, [Change(ChangeKind.PREFIX, "acme", "a1")])
    assert kept(cache) == {"a1", "a2", "b1", "none"}


def test_an_unknown_change_forgets_everything(catalog: Any, cache: Cache) -> None:
    catalog.feed.tell(8, None)
    assert cache.debug_state() == {"known": [], "unknown": [], "awaited": {}}


def test_an_answer_of_another_epoch_is_not_kept(cache: Cache) -> None:
    cache.put("old", "acme", 6)  # read before a write that has ended since
    cache.put("early", "acme", 8)  # read after a write that nobody has told of yet
    cache.put("gone", None, 6)
    assert cache.get("old") == cache.get("early") == cache.get("gone") == (False, None)


def test_a_full_cache_drops_what_was_used_least_recently(catalog: Any, cache: Cache) -> None:
    cache.get("a1")
    cache.put("b2", "corp", 7)
    cache.put("b3", "corp", 7)
    assert kept(cache) == {"a1", "b1", "none"}
    catalog.feed.tell(8, [tenant("acme")])
    assert cache.debug_state() == {
        "known": ["b2", "b3", "b1"],
        "unknown": [],
        "awaited": {
            tenant("corp"): {"b1", "b2", "b3"},
            **{key("", kid): {kid} for kid in ("b1", "b2", "b3")},
        },
    }


def test_a_flood_of_unknown_keys_displaces_no_value(cache: Cache) -> None:
    for number in range(100):
        cache.put(f"x{number}", None, 7)
    assert kept(cache) == {"a1", "a2", "b1"}
    assert cache.debug_state()["unknown"] == ["x98", "x99"]


def test_a_key_noted_as_unknown_keeps_its_value_until_it_changes(
    catalog: Any, cache: Cache
) -> None:
    cache.note_unknown("a1")
    cache.note_unknown("never-seen")
    assert (cache.is_unknown("a1"), cache.get("a1")) == (True, (True, "acme"))
    assert not cache.is_unknown("never-seen")
    catalog.feed.tell(8, [key("acme", "a1")])
    assert (cache.is_unknown("a1"), cache.get("a1")) == (False, (False, None))
