"""Usage is summed in memory, added to the catalog once, and written before it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, func, insert, select

from app.db.database import Database
from app.db.schema import usage_batches, usage_hours
from app.errors import InvalidRequest, Unavailable
from app.tenancy.usage.ledger import OTHERS, UsageLedger, UsageTotals
from app.tenancy.usage.report import UsageQuery, UsageRow, read_usage
from tests.tenancy.house import Clock

HOUR = 3600
DAY = 24 * HOUR
NOON = 1_800_000_000 // DAY * DAY + 12 * HOUR
ONE = UsageTotals(1, 0, 5, 7, 20, 100)


class FlakyCatalog:
    """A catalog whose appends fail as is asked: before they begin, or after they are committed."""

    def __init__(self, catalog: Database) -> None:
        self._catalog, self.fails = catalog, ""

    def read(self) -> object:
        return self._catalog.read()

    @contextmanager
    def append(self) -> Iterator[Connection]:
        if self.fails == "before":
            raise Unavailable("the catalog is busy")
        with self._catalog.append() as connection:
            yield connection
        if self.fails == "after":
            raise Unavailable("the catalog is busy: connection lost")


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON + 100.5)


@pytest.fixture
def flaky(any_catalog: Database) -> FlakyCatalog:
    return FlakyCatalog(any_catalog)


@pytest.fixture
def ledger(flaky: FlakyCatalog, clock: Clock) -> UsageLedger:
    return UsageLedger(flaky, clock=clock)


def stored(catalog: Database) -> dict[tuple[object, ...], tuple[int, ...]]:
    with catalog.read() as connection:
        rows = connection.execute(select(usage_hours)).all()
    return {tuple(row[:4]): tuple(row[4:-1]) for row in rows if row.tokens_trained == 0}


def everything(tenant: str = "acme", **changes: object) -> UsageQuery:
    return UsageQuery(tenant, **{"start": 0, "end": 2**40, **changes})


def rows_of(catalog: Database, ledger: UsageLedger, query: UsageQuery) -> list[UsageRow]:
    return list(read_usage(catalog, ledger, query, None, 100).items)


def total(catalog: Database, ledger: UsageLedger, tenant: str = "acme") -> UsageTotals:
    rows = rows_of(catalog, ledger, everything(tenant))
    return rows[0].sums if rows else UsageTotals()


# --- writing ------------------------------------------------------------------------------


def test_requests_are_summed_by_tenant_hour_and_what_served(
    any_catalog: Database, ledger: UsageLedger, clock: Clock
) -> None:
    ledger.add("acme", ["e2e", "other/alice"], ["aa", "bb"], ONE)
    ledger.add("acme", ["e2e", "other/alice"], ["aa", "bb"], UsageTotals(1, 1, 3, 0))
    ledger.add("acme", [], [], ONE)
    ledger.add("zeta", [], [], ONE)
    clock.now += HOUR
    ledger.add("acme", [], [], ONE)
    ledger.flush()
    assert stored(any_catalog) == {
        ("acme", NOON, "e2e+other/alice", "aa,bb"): (2, 1, 8, 7, 20, 100),
        ("acme", NOON, "", ""): (1, 0, 5, 7, 20, 100),
        ("acme", NOON + HOUR, "", ""): (1, 0, 5, 7, 20, 100),
        ("zeta", NOON, "", ""): (1, 0, 5, 7, 20, 100),
    }


def test_later_batches_and_other_processes_are_added_to_what_is_there(
    any_catalog: Database, ledger: UsageLedger, clock: Clock
) -> None:
    other = UsageLedger(any_catalog, clock=clock)
    for _ in range(3):
        for each in (ledger, other):
            each.add("acme", [], [], ONE)
            each.flush()
    assert stored(any_catalog) == {("acme", NOON, "", ""): (6, 0, 30, 42, 120, 600)}


def test_nothing_to_write_writes_nothing(any_catalog: Database, ledger: UsageLedger) -> None:
    ledger.flush()
    with any_catalog.read() as connection:
        assert connection.scalar(select(func.count()).select_from(usage_batches)) == 0


def test_a_batch_whose_answer_was_lost_is_not_counted_twice(
    any_catalog: Database, flaky: FlakyCatalog, ledger: UsageLedger
) -> None:
    ledger.add("acme", [], [], ONE)
    flaky.fails = "after"
    for _ in range(3):
        with pytest.raises(Unavailable):
            ledger.flush()
        ledger.add("acme", [], [], ONE)
    with pytest.raises(Unavailable):
        total(any_catalog, ledger)
    flaky.fails = ""
    assert total(any_catalog, ledger).requests == 4
    assert stored(any_catalog) == {("acme", NOON, "", ""): (4, 0, 20, 28, 80, 400)}


def test_what_cannot_be_written_is_kept(
    any_catalog: Database, flaky: FlakyCatalog, ledger: UsageLedger
) -> None:
    flaky.fails = "before"
    for _ in range(5):
        ledger.add("acme", [], [], ONE)
        with pytest.raises(Unavailable):
            ledger.flush()
    assert stored(any_catalog) == {}
    with pytest.raises(Unavailable):
        total(any_catalog, ledger)
    flaky.fails = ""
    assert total(any_catalog, ledger).requests == 5
    assert stored(any_catalog) == {("acme", NOON, "", ""): (5, 0, 25, 35, 100, 500)}


def test_close_writes_what_is_left_and_says_so_if_it_cannot(
    any_catalog: Database,
    flaky: FlakyCatalog,
    ledger: UsageLedger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger.add("acme", [], [], ONE)
    flaky.fails = "before"
    ledger.close()
    assert "the last usage could not be written" in caplog.text
    flaky.fails = ""
    ledger.close()
    assert stored(any_catalog) == {("acme", NOON, "", ""): (1, 0, 5, 7, 20, 100)}


def test_memory_is_bounded_and_sums_stay_whole_within_the_bound(
    any_catalog: Database, flaky: FlakyCatalog, clock: Clock
) -> None:
    ledger = UsageLedger(flaky, max_keys=10, clock=clock)
    flaky.fails = "before"
    for number in range(1000):
        ledger.add("acme", [f"p{number}"], ["d"], ONE)
        ledger.add("zeta", [f"p{number}"], ["d"], ONE)
    with pytest.raises(Unavailable):
        ledger.flush()
    assert len(ledger) <= 20
    assert ledger.lost == 0
    flaky.fails = ""
    ledger.flush()
    found = stored(any_catalog)
    assert len(found) == 12
    assert ("acme", NOON, OTHERS, OTHERS) in found
    assert total(any_catalog, ledger).requests == 1000
    assert total(any_catalog, ledger, "zeta").requests == 1000


def test_what_is_beyond_the_bound_is_counted_as_lost(flaky: FlakyCatalog, clock: Clock) -> None:
    ledger = UsageLedger(flaky, max_keys=10, clock=clock)
    for number in range(50):
        ledger.add(f"tenant{number}", [], [], ONE)
    assert len(ledger) == 20
    assert ledger.lost == 30


def test_many_different_sums_are_written_early(ledger: UsageLedger) -> None:
    called: list[int] = []
    ledger.on_crowded = lambda: called.append(1)
    for number in range(999):
        ledger.add("acme", [f"p{number}"], ["d"], ONE)
    assert not called
    ledger.add("acme", ["last"], ["d"], ONE)
    assert called


def test_nothing_is_lost_or_doubled_while_many_add_and_flush(
    any_catalog: Database, ledger: UsageLedger
) -> None:
    done = threading.Event()
    seen: list[int] = []

    def adding() -> None:
        for number in range(500):
            ledger.add("acme", [f"p{number % 7}"], ["d"], ONE)

    def watching() -> None:
        while not done.is_set():
            ledger.flush()
            seen.append(total(any_catalog, ledger).requests)

    watchers = [threading.Thread(target=watching) for _ in range(2)]
    adders = [threading.Thread(target=adding) for _ in range(4)]
    for thread in (*watchers, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    done.set()
    for thread in watchers:
        thread.join()
    ledger.flush()
    assert total(any_catalog, ledger) == UsageTotals(2000, 0, 10_000, 14_000, 40_000, 200_000)
    assert max(seen) <= 2000


def test_old_hours_and_writers_are_forgotten(
    any_catalog: Database, ledger: UsageLedger, clock: Clock
) -> None:
    ledger.add("acme", [], [], ONE)
    ledger.flush()
    clock.now += 3 * DAY
    ledger.add("acme", [], [], ONE)
    ledger.flush()
    with any_catalog.append() as connection:
        row = {"writer": "dead", "sequence": 9, "written_at": clock.now - 8 * DAY}
        connection.execute(insert(usage_batches).values(row))
    ledger.prune(2 * DAY)
    assert list(stored(any_catalog)) == [("acme", NOON + 3 * DAY, "", "")]
    with any_catalog.read() as connection:
        assert connection.scalars(select(usage_batches.c.writer)).all() == [ledger.writer]


# --- reading ------------------------------------------------------------------------------


@pytest.fixture
def filled(ledger: UsageLedger, clock: Clock) -> UsageLedger:
    """Two days and two versions; half is in the catalog and half is not."""
    for day in range(2):
        for hour in range(3):
            clock.now = NOON + day * DAY + hour * HOUR
            for name, version in (("e2e", "aa"), ("e2e", "bb"), ("alice", "cc")):
                ledger.add("acme", [name], [version], ONE)
            ledger.add("zeta", ["e2e"], ["zz"], ONE)
            if (day + hour) % 2:
                ledger.flush()
    return ledger


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        ((), 1),
        (("hour",), 6),
        (("day",), 2),
        (("prefix",), 2),
        (("version",), 3),
        (("day", "version"), 6),
        (("hour", "prefix", "version"), 18),
    ],
)
def test_groups_add_up_to_the_whole_in_pages_of_any_size(
    any_catalog: Database, filled: UsageLedger, groups: tuple[str, ...], count: int
) -> None:
    query = everything(groups=groups)
    whole = rows_of(any_catalog, filled, query)
    assert len(whole) == count
    assert sum(row.sums.requests for row in whole) == 18
    for size in (1, 2, 5):
        found: list[UsageRow] = []
        cursor: str | None = None
        while True:
            page = read_usage(any_catalog, filled, query, cursor, size)
            assert len(page.items) <= size
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == whole


def test_a_report_may_be_of_a_time_and_of_a_prefix(
    any_catalog: Database, filled: UsageLedger
) -> None:
    hours = everything(start=NOON + HOUR, end=NOON + DAY, groups=("hour",))
    found = rows_of(any_catalog, filled, hours)
    assert [row.group for row in found] == [{"hour": NOON + HOUR}, {"hour": NOON + 2 * HOUR}]
    versions = rows_of(any_catalog, filled, everything(groups=("version",), prefix="e2e"))
    assert [(row.group["version"], row.sums.requests) for row in versions] == [("aa", 6), ("bb", 6)]


def test_nothing_used_is_no_row(any_catalog: Database, filled: UsageLedger) -> None:
    assert rows_of(any_catalog, filled, everything("nobody")) == []
    assert rows_of(any_catalog, filled, everything("nobody", groups=("day",))) == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "W10", "WzFd", "WyJhIl0", "bnVsbA", "W3RydWVd", "A" * 5000]
)
def test_a_foreign_cursor_is_refused(
    any_catalog: Database, filled: UsageLedger, cursor: str
) -> None:
    query = everything(groups=("hour", "prefix"))
    with pytest.raises(InvalidRequest, match="cursor"):
        read_usage(any_catalog, filled, query, cursor, 10)
