"""Users by the hundred thousand: what one user's lists and erasure cost does not grow with others.

Work is counted in steps of SQLite's virtual machine, which no busy machine changes; one slow test
measures times, on both databases.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.jobs.erasure import UserErasure
from tests.db.plans import plans, scanned, steps
from tests.jobs.conftest import FINGERPRINT, Clock, Workshop
from tests.jobs.many import TABLES, count_rows, fill, user_of

FEW, MANY, SLOW_MANY = 300, 10_000, 100_000
BIG = {table.name for table in TABLES}


@pytest.fixture
def crowded(workshop: Workshop) -> Workshop:
    """A catalog in which a few thousand users have something."""
    fill(workshop.catalog, "acme", 3000, FINGERPRINT)
    return workshop


def erase(workshop: Workshop, user: str) -> None:
    """Erases a user of `fill` whose file another user's open job needs, as the route does."""
    erasure = UserErasure(workshop.catalog, workshop.store, clock=workshop.clock)
    erased = erasure.forget("acme", user)
    assert (len(erased.prefixes), erased.versions, len(erased.training_files)) == (1, 1, 1)
    assert (len(erased.training_jobs), len(erased.cancelled)) == (1, 1)
    assert len(erased.begun) == erasure.remove(erased) == 3


def test_lists_of_a_user_are_read_in_order_by_an_index(crowded: Workshop) -> None:
    file = crowded.files.list("acme", user=user_of(7)).items[0]
    job = crowded.jobs.list("acme", user=user_of(7)).items[0]
    with plans(crowded.catalog.engine) as found:
        crowded.files.list("acme", user=user_of(9), after=file.id)
        crowded.files.list("acme", user=user_of(9), after=file.id, oldest_first=True)
        crowded.jobs.list("acme", user=user_of(9), after=job.id)
    lists = {sql: plan for sql, plan in found.items() if "ORDER BY" in sql}
    assert len(lists) == 3
    for sql, plan in lists.items():
        words = " ".join(plan)
        assert "_by_user" in words, (sql, plan)
        assert "Sort" not in words, (sql, plan)
        assert "TEMP B-TREE" not in words, (sql, plan)
    assert not set().union(*map(scanned, found.values())) & BIG


def test_erasing_a_user_scans_no_table(crowded: Workshop) -> None:
    with plans(crowded.catalog.engine) as found:
        erase(crowded, user_of(8))
    assert len(found) > 10
    for sql, plan in found.items():
        assert not scanned(plan) & BIG, (sql, plan)


def test_one_users_lists_and_erasure_take_no_more_steps_where_there_are_more_users(
    tmp_path: Path,
) -> None:
    few, many = (_steps_of_calls(tmp_path / str(count), count) for count in (FEW, MANY))
    assert all(few.values()), few
    grown = {name: (few[name], many[name]) for name in few if many[name] > 1.1 * few[name] + 5}
    assert grown == {}


def _steps_of_calls(folder: Path, count: int) -> dict[str, int]:
    """The steps of each call about one of so many users."""
    folder.mkdir()
    workshop = Workshop(f"sqlite:///{folder}/catalog.sqlite", folder, Clock())
    workshop.tenant("acme")
    fill(workshop.catalog, "acme", count, FINGERPRINT)
    calls: dict[str, Callable[[], object]] = {
        "list files": lambda: workshop.files.list("acme", user=user_of(8)),
        "list jobs": lambda: workshop.jobs.list("acme", user=user_of(8)),
        "erase": lambda: erase(workshop, user_of(8)),
    }
    taken = {}
    for name, call in calls.items():
        with steps(workshop.catalog.engine) as seen:
            call()
        taken[name] = seen[0]
    workshop.catalog.close()
    return taken


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_a_hundred_thousand_users_one_is_erased_as_fast_as_with_few(
    workshop: Workshop,
) -> None:
    fill(workshop.catalog, "acme", FEW, FINGERPRINT)
    few = erase_some(workshop, first=0)
    fill(workshop.catalog, "acme", SLOW_MANY, FINGERPRINT, first=FEW)
    many = erase_some(workshop, first=FEW)
    assert many.rows > 100 * few.rows
    for erased in (few, many):
        assert erased.left < erased.rows
    assert many.median_ms <= 2 * few.median_ms + 10, (few, many)


@dataclass(frozen=True)
class Erased:
    """The rows before and after 20 users were erased, and the median of what one took."""

    rows: int
    left: int
    median_ms: float


def erase_some(workshop: Workshop, first: int) -> Erased:
    """Erases 20 of the users from the number `first` on; the store has none of their files."""
    with workshop.catalog.read() as connection:
        rows = count_rows(connection)
    times = []
    for number in range(first + 8, first + 88, 4):
        started = time.perf_counter()
        erase(workshop, user_of(number))
        times.append(time.perf_counter() - started)
    with workshop.catalog.read() as connection:
        return Erased(rows, count_rows(connection), 1000 * statistics.median(times))
