"""Lists in pages: complete, in order, unmoved by what comes and goes meanwhile."""

from __future__ import annotations

import pytest

from app.db.paging import MAX_LIMIT, make_cursor
from app.errors import InvalidRequest
from app.registry.registry import Registry
from tests.registry.conftest import Upload


def walk(registry: Registry, limit: int) -> list[str]:
    names: list[str] = []
    cursor = None
    while True:
        page = registry.list_prefixes("demo", cursor, limit)
        assert len(page.items) <= limit
        names += [record.name for record in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return names


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 100])
def test_pages_hold_every_prefix_once_in_order(
    registry: Registry, upload: Upload, limit: int
) -> None:
    names = ["e2e", "a", "zz", "a.b", "a-b", "0", "webnlg"]
    for name in names:
        upload(name, name.encode())
    assert walk(registry, limit) == sorted(names)


def test_what_comes_and_goes_meanwhile_neither_repeats_nor_hides_others(
    registry: Registry, upload: Upload
) -> None:
    for name in ("b", "d", "f", "h"):
        upload(name, name.encode())
    page = registry.list_prefixes("demo", None, 2)
    registry.delete_prefix("demo", "d")  # the row that the cursor was made of
    upload("a", b"a")
    upload("e", b"e")
    rest = registry.list_prefixes("demo", page.next_cursor, 10)
    assert [record.name for record in rest.items] == ["e", "f", "h"]
    assert rest.next_cursor is None


def test_versions_come_newest_first_and_stay_so(registry: Registry, upload: Upload) -> None:
    digests = [upload("e2e", str(number).encode())[0].digest for number in range(5)]
    page = registry.list_versions("demo", "e2e", None, 2)
    assert [version.digest for version in page.items] == [digests[4], digests[3]]
    upload("e2e", b"newer")
    registry.delete_version("demo", "e2e", digests[3])
    rest = registry.list_versions("demo", "e2e", page.next_cursor, 10)
    assert [version.digest for version in rest.items] == digests[2::-1]
    assert rest.next_cursor is None


def test_a_record_counts_versions_and_names_aliases(registry: Registry, upload: Upload) -> None:
    one, _ = upload("e2e", b"one", alias="stable")
    two, _ = upload("e2e", b"two")
    upload("other", b"three")
    [record, _] = registry.list_prefixes("demo").items
    assert record == registry.get_prefix("demo", "e2e")
    assert (record.versions, record.latest) == (2, two.digest)
    assert list(record.aliases.items()) == [("latest", two.digest), ("stable", one.digest)]


def test_an_empty_list_is_one_empty_page(registry: Registry) -> None:
    page = registry.list_prefixes("demo")
    assert (page.items, page.next_cursor) == ((), None)


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1, 2**70])
def test_a_limit_out_of_bounds_is_refused(registry: Registry, upload: Upload, limit: int) -> None:
    upload("e2e", b"one")
    for listing in (
        lambda: registry.list_prefixes("demo", None, limit),
        lambda: registry.list_versions("demo", "e2e", None, limit),
    ):
        with pytest.raises(InvalidRequest, match="limit"):
            listing()


@pytest.mark.parametrize(
    "cursor", ["", " ", "é", "=", "AAA=", "a" * 1000, "\0", "../..", "gICA", "YQ==", "YR"]
)
def test_a_cursor_that_no_list_has_given_is_refused(
    registry: Registry, upload: Upload, cursor: str
) -> None:
    upload("e2e", b"one")
    for listing in (
        lambda: registry.list_prefixes("demo", cursor),
        lambda: registry.list_versions("demo", "e2e", cursor),
    ):
        with pytest.raises(InvalidRequest, match="cursor"):
            listing()


@pytest.mark.parametrize("key", ["e2e", "-1", "1.5", "²", str(2**63), "9" * 30])
def test_a_cursor_of_another_list_is_refused(registry: Registry, upload: Upload, key: str) -> None:
    upload("e2e", b"one")
    with pytest.raises(InvalidRequest, match="cursor"):
        registry.list_versions("demo", "e2e", make_cursor(key))
