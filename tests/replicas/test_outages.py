"""What goes on while PostgreSQL or S3 does not answer, what is refused and when, and the return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from sqlalchemy import update

from app.db.schema import contents
from app.errors import Unavailable
from tests.postgres_server import PostgresServer, postgres_server
from tests.replicas.cluster import FOLLOWS_S, Caller, Sample, calling, within
from tests.replicas.conftest import Pair, Tenant
from tests.s3_server import S3Server

pytestmark = pytest.mark.alone

OUTAGE_S = 7.0
REFUSED_WITHIN_S = 9.0
BACK_WITHIN_S = 2.0
PROMPT_S = 2.0
"""What is warm is answered within this time, on a machine that does other things too."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One of this module's own, to be harmed."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One of this module's own, to be harmed."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


def warm_up(caller: Caller, known: Sample) -> None:
    """Leaves the key and the prefix in the replica's caches.

    Twice, since what was read while somebody wrote is not kept.
    """
    for _ in range(2):
        assert known.is_in(caller.complete("known"))


@dataclass
class Warm:
    """Requests at both replicas with a key and prefixes that both know, until the block ends."""

    acme: Tenant
    known: Sample
    late: list[float] = field(default_factory=list)
    wrong: list[httpx.Response] = field(default_factory=list)
    count: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Warm:
        for caller in (self.acme.one, self.acme.two):
            warm_up(caller, self.known)
        self._pool = ThreadPoolExecutor(2)
        self._running = [self._pool.submit(self._run, at) for at in (0, 1)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for running in self._running:
            running.result(60)
        self._pool.shutdown()

    def _run(self, at: int) -> None:
        caller = (self.acme.one, self.acme.two)[at]
        while not self._over.is_set():
            began = time.monotonic()
            reply = caller.complete("known")
            if time.monotonic() - began > PROMPT_S:
                self.late.append(time.monotonic() - began)
            if not self.known.is_in(reply):
                self.wrong.append(reply)
            self.count += 1
            time.sleep(0.02)

    def check(self, least: int) -> None:
        """All were answered well, none late."""
        assert [reply.text for reply in self.wrong] == []
        assert self.late == []
        assert self.count >= least


@pytest.fixture
def warm(acme: Tenant, samples: list[Sample]) -> Iterator[Warm]:
    assert acme.one.push("known", samples[0].prefix).status_code == 201
    with Warm(acme, samples[0]) as warm:
        yield warm


Ask = Callable[[], httpx.Response]


def timed(ask: Ask) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    reply = ask()
    return time.monotonic() - began, reply


def together(*asks: Ask) -> list[tuple[float, httpx.Response]]:
    """Seconds and reply of each, all sent at once."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(timed, asks))


def is_ready(pair: Pair) -> bool:
    return all(httpx.get(f"{each.url}/health/ready").is_success for each in (pair.one, pair.two))


def needing_the_catalog(acme: Tenant, samples: list[Sample]) -> list[Ask]:
    """Calls at both replicas that change something, or name what is not known there."""
    return [
        lambda: acme.one.push("new", samples[1].prefix),
        lambda: acme.two.push("new", samples[2].prefix),
        lambda: acme.one.client.delete("/v1/prefixes/known"),
        lambda: acme.two.point("known", "stable", version=samples[0].digest),
        lambda: acme.one.complete("never-asked"),
        lambda: acme.two.client.get("/v1/prefixes"),
        lambda: acme.two.client.delete("/v1/prefixes/known"),
    ]


@pytest.mark.parametrize("way", ["freeze", "kill"])
def test_without_postgres_what_is_known_is_served_and_nothing_is_changed(
    pair: Pair, acme: Tenant, samples: list[Sample], warm: Warm, way: str
) -> None:
    asks = needing_the_catalog(acme, samples)
    postgres = pair.cluster.postgres
    getattr(postgres, way)()
    began = time.monotonic()
    try:
        first = together(*asks)
        again = together(*asks)
        assert is_ready(pair)
        time.sleep(max(0.0, OUTAGE_S - (time.monotonic() - began)))
    finally:
        postgres.thaw() if way == "freeze" else postgres.start()
    back = time.monotonic()
    for took, reply in first + again:
        assert reply.status_code == 503, reply.text
        assert reply.json()["error"]["code"] == "unavailable"
        assert took < REFUSED_WITHIN_S
    # once the outage is known, nobody waits to find out
    assert max(took for took, _ in again) < PROMPT_S
    for caller in (acme.one, acme.two):
        left = BACK_WITHIN_S - (time.monotonic() - back)
        within(left, lambda caller=caller: caller.client.get("/v1/prefixes").is_success)
        [prefix] = caller.client.get("/v1/prefixes").json()["data"]
        assert prefix["name"] == "known"
        assert caller.client.get("/v1/prefixes/known/aliases/stable").status_code == 404
    assert acme.one.push("new", samples[1].prefix).status_code == 201
    assert samples[1].is_in(acme.two.complete("new"))
    warm.check(least=30)


def test_a_replica_that_is_cut_off_follows_nobody_and_serves_no_longer_than_it_may(
    pair: Pair, acme: Tenant, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acme.one.push("known", samples[0].prefix).status_code == 201
    warm_up(acme.two, samples[0])
    registry = pair.two.services.registry

    def unreachable() -> None:
        raise Unavailable("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(registry.catalog, "read", unreachable)
        gone = pair.admin_one.client.delete(f"/admin/tenants/{acme.id}/keys/{acme.kid}")
        assert gone.status_code == 200
        assert acme.one.complete("known").status_code == 401
        looks_end = time.monotonic() + 2 * FOLLOWS_S
        while time.monotonic() < looks_end:
            assert samples[0].is_in(acme.two.complete("known"))
            time.sleep(0.01)
        patch.setattr(registry.catalog.feed, "stale_s", FOLLOWS_S)
        assert acme.two.complete("known").status_code == 503
    within(BACK_WITHIN_S, lambda: acme.two.complete("known").status_code == 401)


def test_without_s3_what_is_in_memory_is_served_and_the_rest_refused(
    pair: Pair, acme: Tenant, samples: list[Sample], warm: Warm
) -> None:
    for number in (3, 4, 5):
        assert acme.one.push(f"cold-{number}", samples[number].prefix).status_code == 201
    s3 = pair.cluster.s3
    s3.freeze()
    try:
        found = together(
            lambda: acme.two.complete("cold-3"),
            lambda: acme.two.complete("cold-4"),
            lambda: acme.one.push("new", samples[1].prefix),
        )
        assert is_ready(pair)
    finally:
        s3.thaw()
    for took, reply in found:
        assert reply.status_code == 503, reply.text
        assert took < 15
    assert acme.two.client.get("/v1/prefixes/new").status_code == 404
    within(BACK_WITHIN_S, lambda: samples[3].is_in(acme.two.complete("cold-3")))
    assert acme.one.push("new", samples[1].prefix).status_code == 201
    warm.check(least=30)


def test_a_replica_collects_garbage_after_its_grace_and_nothing_else(
    pair: Pair, acme: Tenant, samples: list[Sample]
) -> None:
    cluster = pair.cluster
    with (
        cluster.replica("tidy", garbage_interval=1, garbage_grace=60) as tidy,
        calling(tidy.url, acme.key) as caller,
    ):
        assert caller.push("tone", samples[6].prefix).status_code == 201
        assert caller.push("kept", samples[7].prefix).status_code == 201
        assert caller.client.delete("/v1/prefixes/tone").status_code == 200
        time.sleep(2.5)
        assert samples[6].digest in cluster.contents()
        with tidy.services.registry.catalog.write() as (connection, _):
            connection.execute(update(contents).values(touched_at=contents.c.touched_at - 70))
        within(10, lambda: samples[6].digest not in cluster.contents())
        assert samples[7].is_in(caller.complete("kept"))
        assert samples[7].digest in cluster.contents()
