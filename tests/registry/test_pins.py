"""Which contents a process keeps in memory because somebody has pinned them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.change_feed import ChangeFeed
from app.db.change_log import ChangeKind, note
from app.db.database import Database
from app.registry.pins import PinFollower


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Database]:
    catalog = Database(f"sqlite:///{tmp_path}/catalog.sqlite3")
    yield catalog
    catalog.close()


@pytest.fixture
def feed(catalog: Database) -> ChangeFeed:
    return ChangeFeed(catalog)


@pytest.fixture
def pins(catalog: Database, feed: ChangeFeed) -> PinFollower:
    pins = PinFollower(catalog, feed, limit=10)
    pins.start(lambda: None)
    feed.poll()
    return pins


def write(catalog: Database, kind: ChangeKind) -> None:
    with catalog.write() as (connection, epoch):
        note(connection, epoch, kind, "acme", "any")


@pytest.mark.parametrize("kind", [ChangeKind.KEY, ChangeKind.CONTENT])
def test_a_change_that_is_not_about_pins_does_not_discard_a_look(
    catalog: Database, feed: ChangeFeed, pins: PinFollower, kind: ChangeKind
) -> None:
    found = pins.look()
    assert found is not None
    write(catalog, kind)
    feed.poll()
    assert pins.look() is None
    assert not pins.is_outdated(found[0])


@pytest.mark.parametrize("kind", [ChangeKind.PREFIX, ChangeKind.TENANT])
def test_a_change_of_a_prefix_discards_an_older_look_and_asks_for_another(
    catalog: Database, feed: ChangeFeed, pins: PinFollower, kind: ChangeKind
) -> None:
    found = pins.look()
    assert found is not None
    write(catalog, kind)
    feed.poll()
    assert pins.is_outdated(found[0])
    again = pins.look()
    assert again is not None
    assert not pins.is_outdated(again[0])


def test_a_look_that_saw_a_change_before_it_was_told_is_not_outdated(
    catalog: Database, feed: ChangeFeed, pins: PinFollower
) -> None:
    write(catalog, ChangeKind.PREFIX)
    found = pins.look()
    assert found is not None
    feed.poll()
    assert not pins.is_outdated(found[0])
