"""What tenants ask about their jobs, on both databases."""

from __future__ import annotations

from functools import partial

import pytest

from app.errors import InUse, PrefixNotFound
from app.jobs.rows import check_unneeded
from app.registry.registry import Registry
from app.registry.types import VersionInfo
from tests.db.plans import plans, scanned
from tests.jobs.conftest import FINGERPRINT, Workshop
from tests.jobs.many import fill


@pytest.fixture
def registry(workshop: Workshop) -> Registry:
    return Registry(workshop.catalog, workshop.store, clock=workshop.clock)


def push(registry: Registry, tenant: str, name: str, content: str) -> str:
    """Makes `content` a version of a prefix; the digest."""
    digest = f"{sum(content.encode()) * 7919:064x}"
    info = VersionInfo(digest=digest, length=1, position_offset=1, dtype="float32", nbytes=4)
    with registry.stage() as staged:
        staged.write(content.encode())
        registry.add_version(tenant, name, info, staged.path)
    return digest


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a'b", "$.a", "a.b", "a[0]", "é", "😀", "", "%"])
def test_jobs_are_found_by_metadata_whatever_its_name_is(workshop: Workshop, name: str) -> None:
    file = workshop.upload("acme")
    wanted = workshop.job("acme", file, metadata={name: 'v"\\', "more": "x"})
    workshop.job("acme", file, metadata={name: "other", "more": "x"})
    workshop.job("acme", file, metadata={"more": 'v"\\'})
    workshop.job("acme", file)
    found = workshop.jobs.list("acme", metadata={name: 'v"\\', "more": "x"})
    assert [job.id for job in found.items] == [wanted.id]


def test_a_version_is_kept_while_an_open_job_is_trained_behind_it(
    workshop: Workshop, registry: Registry
) -> None:
    old, new = (push(registry, "acme", "support", content) for content in ("old", "newer"))
    push(registry, "beta", "support", "old")
    job = workshop.job("acme", on=f"support@{old}")
    guard = partial(check_unneeded, "acme", "support")
    told = f"the job {job.id} has not ended and is trained behind support@{old}; cancel the job"
    with pytest.raises(InUse, match=told):
        registry.delete_version("acme", "support", old[:-1], guard=guard)
    with pytest.raises(InUse, match=told):
        registry.delete_prefix("acme", "support", guard=guard)
    registry.delete_version("acme", "support", new, guard=guard)
    registry.delete_prefix("beta", "support", guard=partial(check_unneeded, "beta", "support"))
    workshop.jobs.cancel("acme", job.id)
    assert registry.delete_prefix("acme", "support", guard=guard) != []


def test_a_job_is_not_queued_behind_a_version_that_was_deleted_meanwhile(
    workshop: Workshop, registry: Registry
) -> None:
    digest = push(registry, "acme", "support", "old")
    with pytest.raises(PrefixNotFound, match=f"on: the prefix acme/support@{digest}") as caught:
        workshop.job("beta", on=f"acme/support@{digest}")
    assert caught.value.param == "on"
    registry.publications.set("acme", "support", ["beta"], everyone=False)
    assert workshop.job("beta", on=f"acme/support@{digest}").spec.on == f"acme/support@{digest}"
    registry.delete_prefix("acme", "support")
    with pytest.raises(PrefixNotFound):
        workshop.job("beta", on=f"acme/support@{digest}")


def test_jobs_behind_a_version_are_found_by_an_index(
    workshop: Workshop, registry: Registry
) -> None:
    fill(workshop.catalog, "acme", 3000, FINGERPRINT)
    digest = push(registry, "acme", "support", "old")
    with plans(workshop.catalog.engine) as found:
        registry.delete_version(
            "acme", "support", digest, guard=partial(check_unneeded, "acme", "support")
        )
    asked = [plan for sql, plan in found.items() if "on_prefix IN" in sql]
    assert asked
    for plan in asked:
        assert "training_jobs" not in scanned(plan), plan
