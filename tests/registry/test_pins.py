"""Which contents a process keeps in memory because somebody has pinned them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.change_log import ChangeKind, note
from app.db.database import Database
from app.registry.versions import PinFollower


@pytest.fixture
def catalogs(tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    """One catalog, as two processes have it."""
    both = tuple(Database(f"sqlite:///{tmp_path}/catalog.sqlite3") for _ in range(2))
    yield both
    for catalog in both:
        catalog.close()


@pytest.fixture
def wakes() -> list[None]:
    return []


@pytest.fixture
def pins(catalogs: tuple[Database, Database], wakes: list[None]) -> PinFollower:
    """What the first process follows, from its first look at the catalog on."""
    pins = PinFollower(catalogs[0], limit=10)
    pins.start(lambda: wakes.append(None))
    catalogs[0].feed.poll()
    wakes.clear()
    return pins


def write(catalog: Database, kind: ChangeKind) -> None:
    with catalog.write() as (connection, epoch):
        note(connection, epoch, kind, "acme", "any")


@pytest.mark.parametrize("kind", [ChangeKind.KEY, ChangeKind.CONTENT])
def test_a_change_that_is_not_about_pins_outdates_no_look_and_asks_for_none(
    catalogs: tuple[Database, Database], pins: PinFollower, wakes: list[None], kind: ChangeKind
) -> None:
    epoch, _ = pins.look()
    write(catalogs[0], kind)
    assert not wakes
    assert not pins.is_outdated(epoch)


@pytest.mark.parametrize("kind", [ChangeKind.PREFIX, ChangeKind.TENANT])
@pytest.mark.parametrize("writer", [0, 1])
def test_a_change_of_a_prefix_outdates_a_look_and_asks_for_another(
    catalogs: tuple[Database, Database],
    pins: PinFollower,
    wakes: list[None],
    kind: ChangeKind,
    writer: int,
) -> None:
    epoch, _ = pins.look()
    write(catalogs[writer], kind)
    catalogs[0].feed.poll()
    assert len(wakes) == 1
    assert pins.is_outdated(epoch)
    again, _ = pins.look()
    assert not pins.is_outdated(again)


def test_a_look_that_saw_a_change_before_it_was_told_is_not_outdated(
    catalogs: tuple[Database, Database], pins: PinFollower
) -> None:
    write(catalogs[1], ChangeKind.PREFIX)
    epoch, _ = pins.look()
    catalogs[0].feed.poll()
    assert not pins.is_outdated(epoch)
