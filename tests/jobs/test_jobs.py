"""What tenants ask about their jobs, on both databases."""

from __future__ import annotations

import pytest

from tests.jobs.conftest import Workshop


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a'b", "$.a", "a.b", "a[0]", "é", "😀", "", "%"])
def test_jobs_are_found_by_metadata_whatever_its_name_is(workshop: Workshop, name: str) -> None:
    file = workshop.upload("acme")
    wanted = workshop.job("acme", file, metadata={name: 'v"\\', "more": "x"})
    workshop.job("acme", file, metadata={name: "other", "more": "x"})
    workshop.job("acme", file, metadata={"more": 'v"\\'})
    workshop.job("acme", file)
    found = workshop.jobs.list("acme", metadata={name: 'v"\\', "more": "x"})
    assert [job.id for job in found.items] == [wanted.id]
