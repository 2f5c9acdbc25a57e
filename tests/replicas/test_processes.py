"""Replicas as processes, as an operator starts them; one is killed under load and started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.replicas.cluster import (
    PEPPER,
    Caller,
    Cluster,
    Sample,
    calling,
    make_tenant,
    within,
)
from tests.tiny import random_prefix

pytestmark = pytest.mark.alone

POLYPREFIX = [str(Path(sys.executable).with_name("polyprefix"))]
LEASE_S = 30.0
MAX_ROWS = 4


def environment(cluster: Cluster, name: str) -> dict[str, str]:
    """All that a process needs to be a replica."""
    clean = {key: value for key, value in os.environ.items() if "POLYPREFIX" not in key}
    settings = {**cluster.settings(name), "model": cluster.folder, "dtype": "float32", "port": 0}
    mine = {f"POLYPREFIX_{key.upper()}": str(value) for key, value in settings.items()}
    return {**clean, **mine, "POLYPREFIX_REDIS_TIMEOUT": "1", "COLUMNS": "200"}


def run(cluster: Cluster, *arguments: str) -> str:
    """What a command prints that ends by itself."""
    done = subprocess.run(
        [*POLYPREFIX, *arguments],
        env=environment(cluster, "operator"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Process:
    """`polyprefix serve`, ready at `url`."""

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        """As a crash of the machine would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def started(cluster: Cluster, *names: str) -> Iterator[list[Process]]:
    """Replicas that start at the same time."""
    processes = [
        subprocess.Popen(
            [*POLYPREFIX, "serve"],
            env=environment(cluster, name),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    try:
        yield [Process(process, _url(process)) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=60)


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        found = re.search(r"polyprefix at (http://127\.0\.0\.1:\d+)", said)
        if found:
            return found[1]
    raise AssertionError(said)


@dataclass
class Uploads:
    """Somebody who uploads version after version; `acknowledged` ones must never be lost."""

    caller: Caller
    cluster: Cluster
    acknowledged: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until it is over, or the replica is gone."""
        seed = 1000
        while not self.over.is_set():
            seed += 1
            prefix = random_prefix(self.cluster.model, 2 + seed % 7, seed=seed, position_offset=0)
            try:
                reply = self.caller.push("stream", prefix)
            except httpx.TransportError:
                return
            if reply.status_code in (200, 201):
                self.acknowledged.append(prefix.digest)


@pytest.mark.slow
def test_a_replica_that_is_killed_takes_nothing_with_it(
    cluster: Cluster, samples: list[Sample]
) -> None:
    known = samples[0]
    with (
        started(cluster, "one", "two") as (one, two),
        calling(two.url, cluster.admin) as admin,
    ):
        _, _, key = make_tenant(admin, max_rows=MAX_ROWS)
        _, _, other = make_tenant(admin)
        with (
            calling(one.url, key) as limited_one,
            calling(two.url, key) as limited_two,
            calling(one.url, other) as caller_one,
            calling(two.url, other) as caller_two,
            ThreadPoolExecutor(3 + MAX_ROWS) as pool,
        ):
            assert caller_one.push("known", known.prefix).status_code == 201
            uploads = Uploads(caller_one, cluster)
            uploading = pool.submit(uploads.run)
            over, wrong = threading.Event(), []

            def load() -> int:
                count = 0
                while not over.is_set():
                    reply = caller_two.complete("known")
                    count += 1
                    if not known.is_in(reply):
                        wrong.append(reply.text)
                return count

            loading = pool.submit(load)
            endless = {"max_tokens": 100, "min_tokens": 100, "n": 1}
            deadline = time.monotonic() + 60

            def hold_rows() -> None:
                while time.monotonic() < deadline:
                    try:
                        limited_one.complete("tiny-gpt2", **endless)
                    except httpx.TransportError:
                        return

            holding = [pool.submit(hold_rows) for _ in range(MAX_ROWS)]
            within(30, lambda: len(uploads.acknowledged) >= 5)
            within(30, lambda: limited_two.complete("tiny-gpt2", n=2).status_code == 429)
            one.kill()
            killed = time.monotonic()
            for future in (uploading, *holding):
                future.result(60)
            for digest in uploads.acknowledged:
                reply = caller_two.complete(f"stream@{digest}", max_tokens=1)
                assert reply.headers["x-prefix-version"] == digest, reply.text
            # the rows that died with it come free when nobody renews their leases
            within(
                LEASE_S + 10,
                lambda: (
                    limited_two.complete("tiny-gpt2", n=MAX_ROWS, max_tokens=1).status_code == 200
                ),
            )
            assert time.monotonic() - killed < LEASE_S + 10
            with started(cluster, "one") as [again], calling(again.url, other) as caller:
                assert httpx.get(f"{again.url}/health/ready").is_success
                assert known.is_in(caller.complete("known"))
                newest = uploads.acknowledged[-1]
                assert caller.version_of("stream@" + newest) == newest
            over.set()
            assert loading.result(60) > 20
            assert wrong == []
    audit = json.loads(run(cluster, "audit", "verify", "--json"))
    assert audit["sound"]
    assert {"one", "two"} <= {chain["replica"] for chain in audit["chains"]}


def test_an_operator_starts_replicas_with_commands_alone(cluster: Cluster) -> None:
    database = cluster.postgres.make_database()
    fresh = {"POLYPREFIX_DATABASE_URL": database, "POLYPREFIX_KEY_PEPPER": PEPPER}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "database", database)
        assert fresh.items() <= environment(cluster, "one").items()
        assert "none →" in run(cluster, "migrate")
        run(cluster, "tenant", "create", "acme")
        key = run(cluster, "key", "create", "acme", "--admin")
        with started(cluster, "one", "two") as replicas:
            for replica in replicas:
                with calling(replica.url, key) as caller:
                    assert caller.client.get("/v1/models").is_success
                    assert caller.complete("tiny-gpt2").status_code == 200
