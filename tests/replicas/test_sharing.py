"""What replicas count together: limits, usage, and the audit log in which each has its chain."""

from __future__ import annotations

import time
from collections import Counter
from itertools import cycle, islice

import httpx
import pytest

from app.db.database import Database
from app.tenancy.audit.chain import list_records, verify
from tests.api.helpers import until
from tests.redis_server import RedisServer
from tests.replicas.cluster import Caller, calling, make_tenant, within
from tests.replicas.conftest import Pair, Tenant

BASE = "tiny-gpt2"
PER_MINUTE = 10


def ask(*callers: Caller, times: int) -> Counter[int]:
    """Statuses of requests to these in turn."""
    turns = islice(cycle(callers), times)
    return Counter(caller.complete(BASE, max_tokens=1).status_code for caller in turns)


def test_replicas_admit_together_what_a_limit_says(pair: Pair) -> None:
    _, _, key = make_tenant(pair.admin_one, requests_per_minute=PER_MINUTE)
    with calling(pair.one.url, key) as one, calling(pair.two.url, key) as two:
        began = time.monotonic()
        found = ask(one, two, times=3 * PER_MINUTE)
        refilled = int((time.monotonic() - began) * PER_MINUTE / 60) + 1
    assert found.keys() == {200, 429}
    assert PER_MINUTE <= found[200] <= PER_MINUTE + refilled


def test_without_redis_each_admits_by_itself_and_together_again_within_a_second(
    pair: Pair, redis: RedisServer
) -> None:
    _, _, key = make_tenant(pair.admin_one, requests_per_minute=PER_MINUTE)
    replicas = pair.one.services.limiter, pair.two.services.limiter
    with calling(pair.one.url, key) as one, calling(pair.two.url, key) as two:
        redis.stop()
        try:
            found = ask(one, two, times=4 * PER_MINUTE)
            assert all(limiter.is_degraded for limiter in replicas)
        finally:
            redis.start()
        assert found.keys() == {200, 429}
        assert 2 * PER_MINUTE <= found[200] < 3 * PER_MINUTE
        within(1.0, lambda: not any(limiter.is_degraded for limiter in replicas))
        assert ask(one, two, times=2).keys() <= {200, 429}


def usage(caller: Caller) -> tuple[int, int, int]:
    """Requests, tokens in and tokens out."""
    [row] = caller.client.get("/v1/usage").json()["data"]
    return row["requests"], row["tokens_in"], row["tokens_out"]


def test_either_replica_tells_the_usage_of_both(acme: Tenant) -> None:
    for caller, times in ((acme.one, 3), (acme.two, 4)):
        for _ in range(times):
            assert caller.complete(BASE, max_tokens=2, min_tokens=2).status_code == 200
    for caller in (acme.one, acme.two):
        until(lambda caller=caller: usage(caller) == (7, 70, 14), 10)


def outcomes(pair: Pair, tenant: str) -> list[tuple[str, str]]:
    """Replica and action of each record of a tenant's calls."""
    catalog = Database(pair.cluster.database)
    try:
        records = list_records(catalog, tenant=tenant).items
    finally:
        catalog.close()
    return [(record["replica"], record["action"]) for record in records]


def test_each_replica_has_its_chain_and_all_of_them_hold(pair: Pair, acme: Tenant) -> None:
    for caller in (acme.one, acme.two):
        assert caller.client.delete("/v1/prefixes/unknown").status_code == 404
    until(lambda: len(outcomes(pair, acme.id)) == 2, 10)
    assert sorted(outcomes(pair, acme.id)) == [("one", "delete_prefix"), ("two", "delete_prefix")]
    catalog = Database(pair.cluster.database)
    try:
        reports = {report.replica: report.fault for report in verify(catalog)}
    finally:
        catalog.close()
    assert reports == {"one": None, "two": None}


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/prefixes", "/v1/published"])
def test_both_answer_alike(acme: Tenant, path: str) -> None:
    replies: list[httpx.Response] = [each.client.get(path) for each in (acme.one, acme.two)]
    assert {reply.status_code for reply in replies} == {200}
    assert replies[0].json() == replies[1].json()
