"""Users by the hundred thousand: what one user's lists cost does not grow with the others."""

from __future__ import annotations

import pytest

from tests.db.plans import plans, scanned
from tests.jobs.conftest import FINGERPRINT, Workshop
from tests.jobs.many import TABLES, fill, user_of

BIG = {table.name for table in TABLES}


@pytest.fixture
def crowded(workshop: Workshop) -> Workshop:
    """A catalog in which a few thousand users have something."""
    fill(workshop.catalog, "acme", 3000, FINGERPRINT)
    return workshop


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
