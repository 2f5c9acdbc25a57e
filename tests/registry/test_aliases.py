"""Aliases: moving them under a condition, and taking moves back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.errors import (
    Conflict,
    InUse,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    PrefixNotFound,
)
from app.prefix.reference import PrefixReference
from app.registry.aliases import MAX_ALIASES, MAX_HISTORY
from app.registry.registry import Registry
from tests.registry.conftest import Upload


@pytest.fixture
def digests(upload: Upload) -> list[str]:
    """Three versions of `e2e`, the oldest first."""
    return [upload("e2e", data)[0].digest for data in (b"one", b"two", b"three")]


def history(registry: Registry, alias: str) -> list[tuple[str, str]]:
    changes = registry.aliases.history("demo", "e2e", alias)
    return [(change.digest, change.reason) for change in changes]


def test_an_alias_is_made_and_moved(registry: Registry, digests: list[str]) -> None:
    for digest in digests:
        assert registry.aliases.set("demo", "e2e", "stable", digest).digest == digest
        assert registry.aliases.get("demo", "e2e", "stable").digest == digest
    assert registry.get_prefix("demo", "e2e").aliases == {
        "latest": digests[2],
        "stable": digests[2],
    }


def test_a_version_may_be_named_by_a_unique_start(registry: Registry, digests: list[str]) -> None:
    assert registry.aliases.set("demo", "e2e", "stable", digests[0][:6]).digest == digests[0]


def test_latest_can_be_moved_and_follows_uploads_again(
    registry: Registry, digests: list[str], upload: Upload
) -> None:
    registry.aliases.set("demo", "e2e", "latest", digests[0])
    assert registry.get_prefix("demo", "e2e").latest == digests[0]
    version, _ = upload("e2e", b"four")
    assert registry.get_prefix("demo", "e2e").latest == version.digest


@pytest.mark.usefixtures("digests")
@pytest.mark.parametrize("target", ["0" * 64, "latest", "0", "", "x" * 64])
def test_an_alias_points_at_a_version_that_exists(registry: Registry, target: str) -> None:
    with pytest.raises(PrefixNotFound):
        registry.aliases.set("demo", "e2e", "stable", target)
    with pytest.raises(NotFound):
        registry.aliases.get("demo", "e2e", "stable")


@pytest.mark.parametrize("alias", ["", "A", "a b", "abcdef", "0123456789", "../x", "a" * 65])
def test_an_alias_that_breaks_the_rules_is_refused(
    registry: Registry, digests: list[str], upload: Upload, alias: str
) -> None:
    with pytest.raises(InvalidRequest):
        registry.aliases.set("demo", "e2e", alias, digests[0])
    with pytest.raises(InvalidRequest):
        registry.aliases.get("demo", "e2e", alias)
    with pytest.raises(InvalidRequest):
        upload("e2e", b"four", alias=alias)
    assert registry.get_prefix("demo", "e2e").versions == 3


def test_a_prefix_has_a_bounded_number_of_aliases(registry: Registry, digests: list[str]) -> None:
    for number in range(MAX_ALIASES - 1):
        registry.aliases.set("demo", "e2e", f"alias-{number}", digests[0])
    with pytest.raises(Conflict, match="at most"):
        registry.aliases.set("demo", "e2e", "one-more", digests[0])
    registry.aliases.set("demo", "e2e", "alias-0", digests[1])


class TestConditions:
    def test_the_etag_changes_with_every_move_and_only_then(
        self, registry: Registry, digests: list[str], open_again: Callable[[], Registry]
    ) -> None:
        etags = [
            registry.aliases.set("demo", "e2e", "stable", digest).etag
            for digest in (digests[0], digests[1], digests[0])
        ]
        assert len(set(etags)) == 3
        assert all(etag.startswith('"') and etag.endswith('"') for etag in etags)
        assert registry.aliases.set("demo", "e2e", "stable", digests[0]).etag == etags[2]
        assert open_again().aliases.get("demo", "e2e", "stable").etag == etags[2]

    def test_a_name_made_again_does_not_repeat_an_etag(
        self, registry: Registry, upload: Upload
    ) -> None:
        upload("e2e", b"one", alias="stable")
        before = registry.aliases.get("demo", "e2e", "stable").etag
        registry.delete_prefix("demo", "e2e")
        upload("e2e", b"one", alias="stable")
        assert registry.aliases.get("demo", "e2e", "stable").etag != before

    def test_a_move_under_the_present_etag_succeeds_once(
        self, registry: Registry, digests: list[str]
    ) -> None:
        etag = registry.aliases.set("demo", "e2e", "stable", digests[0]).etag
        registry.aliases.set("demo", "e2e", "stable", digests[1], if_match=etag)
        with pytest.raises(PreconditionFailed):
            registry.aliases.set("demo", "e2e", "stable", digests[2], if_match=etag)
        assert registry.aliases.get("demo", "e2e", "stable").digest == digests[1]

    def test_one_of_several_etags_is_enough(self, registry: Registry, digests: list[str]) -> None:
        etag = registry.aliases.set("demo", "e2e", "stable", digests[0]).etag
        moved = registry.aliases.set("demo", "e2e", "stable", digests[1], if_match=f'"x" , {etag}')
        assert moved.digest == digests[1]

    def test_a_star_wants_the_alias_to_exist(self, registry: Registry, digests: list[str]) -> None:
        with pytest.raises(PreconditionFailed):
            registry.aliases.set("demo", "e2e", "stable", digests[0], if_match="*")
        registry.aliases.set("demo", "e2e", "stable", digests[0])
        registry.aliases.set("demo", "e2e", "stable", digests[1], if_match="*")

    @pytest.mark.parametrize("condition", ["", '""', '"x"', "W/{}", "{}x"])
    def test_other_conditions_fail(
        self, registry: Registry, digests: list[str], condition: str
    ) -> None:
        etag = registry.aliases.set("demo", "e2e", "stable", digests[0]).etag
        for change in (
            lambda match: registry.aliases.set("demo", "e2e", "stable", digests[1], if_match=match),
            lambda match: registry.aliases.rollback("demo", "e2e", "stable", if_match=match),
        ):
            with pytest.raises(PreconditionFailed):
                change(condition.format(etag))
        assert registry.aliases.get("demo", "e2e", "stable").etag == etag


class TestRollback:
    def test_it_returns_to_where_the_alias_was_and_then_further_back(
        self, registry: Registry, digests: list[str]
    ) -> None:
        for digest in digests:
            registry.aliases.set("demo", "e2e", "stable", digest)
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == digests[1]
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == digests[0]
        with pytest.raises(Conflict, match="no earlier version"):
            registry.aliases.rollback("demo", "e2e", "stable")
        assert history(registry, "stable") == [
            (digests[0], "rollback"),
            (digests[1], "rollback"),
            (digests[2], "set"),
            (digests[1], "set"),
            (digests[0], "set"),
        ]

    def test_after_a_rollback_a_new_move_continues_from_there(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, three = digests
        for digest in (one, two):
            registry.aliases.set("demo", "e2e", "stable", digest)
        registry.aliases.rollback("demo", "e2e", "stable")
        registry.aliases.set("demo", "e2e", "stable", three)
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == one

    def test_latest_can_be_rolled_back(self, registry: Registry, digests: list[str]) -> None:
        assert registry.aliases.rollback("demo", "e2e", "latest").digest == digests[1]
        assert history(registry, "latest")[0] == (digests[1], "rollback")

    def test_versions_that_were_deleted_are_passed_over(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, three = digests
        for digest in (one, two, three):
            registry.aliases.set("demo", "e2e", "stable", digest)
        registry.delete_version("demo", "e2e", two)
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == one

    def test_a_version_that_came_back_after_its_deletion_is_not_returned_to(
        self, registry: Registry, digests: list[str], upload: Upload
    ) -> None:
        one, two, three = digests
        for digest in (one, two, three):
            registry.aliases.set("demo", "e2e", "stable", digest)
        registry.delete_version("demo", "e2e", two)
        upload("e2e", b"two")
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == one

    def test_after_a_fallback_latest_returns_to_what_was_before(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, three = digests
        registry.aliases.set("demo", "e2e", "latest", one)
        registry.delete_version("demo", "e2e", one)
        assert registry.get_prefix("demo", "e2e").latest == three
        assert history(registry, "latest")[0] == (three, "fallback")
        assert registry.aliases.rollback("demo", "e2e", "latest").digest == two

    @pytest.mark.usefixtures("digests")
    def test_what_does_not_exist_cannot_be_rolled_back(self, registry: Registry) -> None:
        with pytest.raises(NotFound, match="no alias 'stable'"):
            registry.aliases.rollback("demo", "e2e", "stable")
        with pytest.raises(NotFound):
            registry.aliases.history("demo", "e2e", "stable")
        with pytest.raises(PrefixNotFound):
            registry.aliases.rollback("demo", "other", "latest")

    def test_the_history_is_bounded_and_keeps_the_latest(
        self, registry: Registry, digests: list[str]
    ) -> None:
        for turn in range(MAX_HISTORY + 20):
            registry.aliases.set("demo", "e2e", "stable", digests[turn % 2])
        remembered = history(registry, "stable")
        assert len(remembered) == MAX_HISTORY
        assert remembered[0] == (digests[1], "set")
        for turn in range(MAX_HISTORY // 2):
            assert registry.aliases.rollback("demo", "e2e", "stable").digest == digests[turn % 2]


class TestSplits:
    def test_a_split_is_shown_and_listed_with_its_heaviest_version(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, three = digests
        made = registry.aliases.set("demo", "e2e", "stable", {one[:8]: 5, two: 90, three: 5})
        assert (made.digest, made.split) == (two, {two: 90, one: 5, three: 5})
        assert registry.aliases.get("demo", "e2e", "stable") == made
        record = registry.get_prefix("demo", "e2e")
        assert record.aliases == {"latest": three, "stable": two}
        assert record.splits == {"stable": made.split}
        assert registry.list_prefixes("demo").items == (record,)

    def test_requests_are_shared_out_and_users_stay(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, _ = digests
        registry.aliases.set("demo", "e2e", "stable", {one: 1, two: 1})
        reference = PrefixReference("e2e", "stable")
        served = {
            user: registry.resolve("demo", reference, user).digest for user in map(str, range(60))
        }
        assert set(served.values()) == {one, two}
        for user, digest in served.items():
            assert registry.resolve("demo", reference, user).digest == digest
        drawn = {registry.resolve("demo", reference).digest for _ in range(60)}
        assert drawn == {one, two}

    def test_the_same_split_again_changes_nothing_and_another_weight_does(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, _ = digests
        first = registry.aliases.set("demo", "e2e", "stable", {one: 9, two: 1})
        assert registry.aliases.set("demo", "e2e", "stable", {two: 1, one: 9}) == first
        assert len(history(registry, "stable")) == 1
        assert registry.aliases.set("demo", "e2e", "stable", {one: 8, two: 1}).etag != first.etag
        assert len(history(registry, "stable")) == 2

    def test_only_who_knows_the_state_splits_it(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, three = digests
        etag = registry.aliases.set("demo", "e2e", "stable", one).etag
        split = registry.aliases.set("demo", "e2e", "stable", {one: 9, two: 1}, if_match=etag)
        for change in (
            lambda: registry.aliases.set("demo", "e2e", "stable", {two: 9, one: 1}, if_match=etag),
            lambda: registry.aliases.set("demo", "e2e", "stable", three, if_match=etag),
        ):
            with pytest.raises(PreconditionFailed):
                change()
        assert registry.aliases.get("demo", "e2e", "stable") == split

    def test_rollback_passes_through_splits(self, registry: Registry, digests: list[str]) -> None:
        one, two, three = digests
        registry.aliases.set("demo", "e2e", "stable", one)
        registry.aliases.set("demo", "e2e", "stable", {one: 95, two: 5})
        registry.aliases.set("demo", "e2e", "stable", {one: 50, two: 50})
        registry.aliases.set("demo", "e2e", "stable", three)
        assert registry.aliases.rollback("demo", "e2e", "stable").split == {one: 50, two: 50}
        assert registry.aliases.rollback("demo", "e2e", "stable").split == {one: 95, two: 5}
        back = registry.aliases.rollback("demo", "e2e", "stable")
        assert (back.digest, back.split) == (one, None)
        with pytest.raises(Conflict):
            registry.aliases.rollback("demo", "e2e", "stable")
        changes = registry.aliases.history("demo", "e2e", "stable")
        assert [change.split for change in changes] == [
            None,
            {one: 95, two: 5},
            {one: 50, two: 50},
            None,
            {one: 50, two: 50},
            {one: 95, two: 5},
            None,
        ]

    def test_a_plain_pointer_to_the_main_version_ends_a_split(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, _ = digests
        registry.aliases.set("demo", "e2e", "stable", {one: 9, two: 1})
        assert registry.aliases.set("demo", "e2e", "stable", one).split is None
        assert registry.get_prefix("demo", "e2e").splits == {}
        registry.delete_version("demo", "e2e", two)

    @pytest.mark.parametrize("alias", ["stable", "latest"])
    def test_no_version_of_a_split_can_be_deleted(
        self, registry: Registry, digests: list[str], alias: str
    ) -> None:
        one, two, three = digests
        registry.aliases.set("demo", "e2e", alias, {one: 9, two: 1})
        for digest in (one, two):
            with pytest.raises(InUse, match=f"alias '{alias}' of 'e2e'"):
                registry.delete_version("demo", "e2e", digest)
        registry.delete_version("demo", "e2e", three)

    def test_a_split_with_a_version_that_was_deleted_is_passed_over(
        self, registry: Registry, digests: list[str], upload: Upload
    ) -> None:
        one, two, three = digests
        registry.aliases.set("demo", "e2e", "stable", one)
        registry.aliases.set("demo", "e2e", "stable", {one: 9, two: 1})
        registry.aliases.set("demo", "e2e", "stable", three)
        registry.delete_version("demo", "e2e", two)
        upload("e2e", b"two")
        assert registry.aliases.rollback("demo", "e2e", "stable").digest == one

    def test_an_upload_ends_a_split_of_latest_and_a_rollback_restores_it(
        self, registry: Registry, digests: list[str], upload: Upload
    ) -> None:
        one, two, _ = digests
        registry.aliases.set("demo", "e2e", "latest", {one: 9, two: 1})
        new, _ = upload("e2e", b"four")
        assert registry.get_prefix("demo", "e2e").latest == new.digest
        assert registry.resolve("demo", PrefixReference("e2e")).digest == new.digest
        assert registry.aliases.rollback("demo", "e2e", "latest").split == {one: 9, two: 1}

    def test_the_versions_of_a_split_exist_and_are_named_once(
        self, registry: Registry, digests: list[str]
    ) -> None:
        one, two, _ = digests
        with pytest.raises(PrefixNotFound):
            registry.aliases.set("demo", "e2e", "stable", {one: 1, "0" * 64: 1})
        with pytest.raises(InvalidRequest, match="twice"):
            registry.aliases.set("demo", "e2e", "stable", {one: 1, two: 1, one[:9]: 1})
        with pytest.raises(NotFound):
            registry.aliases.get("demo", "e2e", "stable")

    def test_a_prefix_goes_with_its_splits(
        self, registry: Registry, digests: list[str], upload: Upload
    ) -> None:
        registry.aliases.set("demo", "e2e", "stable", {digests[0]: 1, digests[1]: 1})
        registry.delete_prefix("demo", "e2e")
        upload("e2e", b"one", alias="stable")
        assert registry.aliases.get("demo", "e2e", "stable").split is None
