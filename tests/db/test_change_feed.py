"""What replicas learn of each other's writes: all of it, once, and how old their knowledge is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app.db import change_log as module
from app.db.change_feed import ChangeFeed
from app.db.change_log import Change, ChangeKind, note
from app.db.database import Database
from app.errors import Unavailable


class Listener:
    """What a cache was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Sequence[Change] | None]] = []

    def __call__(self, epoch: int, changes: Sequence[Change] | None) -> None:
        self.told.append((epoch, changes))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Database]:
    catalog = Database(f"sqlite:///{tmp_path}/catalog.sqlite3")
    yield catalog
    catalog.close()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def feed(catalog: Database, now: list[float]) -> ChangeFeed:
    return ChangeFeed(catalog, check_s=1.0, stale_s=30.0, clock=lambda: now[0])


def write(catalog: Database, *names: str) -> None:
    with catalog.write() as (connection, epoch):
        for name in names:
            note(connection, epoch, ChangeKind.PREFIX, "acme", name)


def unreadable() -> None:
    raise Unavailable("gone")


def prefix(name: str) -> Change:
    return Change(ChangeKind.PREFIX, "acme", name)


def test_a_listener_is_told_what_changed_since_the_last_look(
    catalog: Database, feed: ChangeFeed
) -> None:
    listener = Listener()
    feed.poll()
    feed.subscribe(listener)
    write(catalog, "a", "b")
    write(catalog, "c")
    feed.poll()
    feed.poll()
    assert listener.told == [(0, None), (2, [prefix("a"), prefix("b"), prefix("c")])]


def test_the_first_look_tells_of_everything(catalog: Database, feed: ChangeFeed) -> None:
    listener = Listener()
    feed.subscribe(listener)
    write(catalog, "a")
    feed.poll()
    assert listener.told == [(-1, None), (1, None)]


def test_a_write_that_notes_nothing_counts_as_everything(
    catalog: Database, feed: ChangeFeed
) -> None:
    listener = Listener()
    feed.poll()
    feed.subscribe(listener)
    write(catalog, "a")
    write(catalog)
    feed.poll()
    assert listener.told[1:] == [(2, None)]


def test_who_was_away_for_long_forgets_everything(
    catalog: Database, feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    feed.poll()
    feed.subscribe(listener)
    monkeypatch.setattr(module, "_READ_LIMIT", 2)
    for name in ("a", "b", "c"):
        write(catalog, name)
    feed.poll()
    assert listener.told[1:] == [(3, None)]


def test_old_notes_are_dropped_and_their_lack_is_noticed(
    catalog: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_EPOCHS", 200)
    for number in range(257):
        write(catalog, f"p{number}")
    with catalog.read() as connection:
        assert module.read_changes(connection, 200, 257) is not None
        assert module.read_changes(connection, 50, 60) is None
        assert module.read_changes(connection, 57, 60) == [prefix(f"p{n}") for n in (57, 58, 59)]


def test_an_append_is_nobodys_change(catalog: Database, feed: ChangeFeed) -> None:
    feed.poll()
    with catalog.append():
        pass
    feed.poll()
    assert feed.epoch == 0


def test_knowledge_is_fresh_for_a_second(feed: ChangeFeed, now: list[float]) -> None:
    assert not feed.fresh()
    feed.poll()
    assert feed.fresh()
    now[0] += 0.99
    assert feed.fresh()
    now[0] += 0.02
    assert not feed.fresh()


def test_while_the_catalog_does_not_answer_knowledge_lasts_longer(
    catalog: Database, feed: ChangeFeed, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.poll()
    now[0] += 2

    def failing() -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(catalog, "read", failing)
    assert not feed.fresh()
    with pytest.raises(Unavailable):
        feed.poll()
    assert feed.fresh()
    now[0] += 29
    assert not feed.fresh()
    monkeypatch.undo()
    feed.poll()
    now[0] += 1.01
    assert not feed.fresh()


def test_a_look_from_before_a_doubt_does_not_settle_it(
    feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = feed.observe

    def doubting(connection: object) -> int:
        feed.doubt()
        return observe(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(feed, "observe", doubting)
    feed.poll()
    assert not feed.fresh()
    monkeypatch.undo()
    feed.poll()
    assert feed.fresh()


def test_a_failing_look_is_no_fault_while_knowledge_may_be_used(
    catalog: Database, feed: ChangeFeed, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.poll()
    now[0] += 2
    monkeypatch.setattr(catalog, "read", unreadable)
    feed.refresh()
    now[0] += 28.5
    with pytest.raises(Unavailable):
        feed.refresh()


def test_a_write_in_doubt_hides_nothing_while_the_catalog_does_not_answer(
    catalog: Database, feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.poll()
    feed.doubt()
    assert not feed.fresh()
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "read", unreadable)
        feed.refresh()
        assert feed.fresh()
    feed.poll()
    assert feed.fresh()


def test_what_was_written_last_is_forgotten_here_even_if_the_catalog_is_gone_then(
    catalog: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    feed = catalog.feed
    feed.poll()
    feed.subscribe(listener)
    with catalog.write() as (connection, epoch):
        note(connection, epoch, ChangeKind.PREFIX, "acme", "a")
        monkeypatch.setattr(catalog, "read", unreadable)
    assert listener.told[1:] == [(0, [prefix("a")])]
    monkeypatch.undo()
    feed.poll()
    assert listener.told[2:] == [(1, [prefix("a")])]
