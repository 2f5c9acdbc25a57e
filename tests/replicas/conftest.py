"""Two replicas for the tests of a module; PostgreSQL, S3 and Redis for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.model.frozen import FrozenModel
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import RedisServer, redis_server
from tests.replicas.cluster import Caller, Cluster, Sample, calling, make_samples, make_tenant
from tests.s3_server import S3Server
from tests.server import RunningServer

LENGTHS = [3, 17, 40, 8, 1, 29, 12, 21]


@pytest.fixture(scope="session")
def samples(tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path) -> list[Sample]:
    """Prefixes of different lengths, each with its text."""
    return make_samples(tiny_gpt2, tiny_gpt2_folder, LENGTHS)


@pytest.fixture(scope="package")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="package")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="package")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(
    tiny_gpt2: FrozenModel,
    tiny_gpt2_folder: Path,
    postgres: PostgresServer,
    s3: S3Server,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("replicas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        yield Cluster(tiny_gpt2, tiny_gpt2_folder, postgres, s3, redis, root)


@dataclass(frozen=True)
class Pair:
    """Two replicas, and the operator at each."""

    cluster: Cluster
    one: RunningServer
    two: RunningServer
    admin_one: Caller
    admin_two: Caller


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Iterator[Pair]:
    with (
        cluster.replica("one") as one,
        cluster.replica("two") as two,
        calling(one.url, cluster.admin) as admin_one,
        calling(two.url, cluster.admin) as admin_two,
    ):
        yield Pair(cluster, one, two, admin_one, admin_two)


@dataclass(frozen=True)
class Tenant:
    """A tenant with one key, at each of the two replicas."""

    id: str
    kid: str
    key: str
    one: Caller
    two: Caller


@pytest.fixture
def acme(pair: Pair) -> Iterator[Tenant]:
    """A tenant of the test's own."""
    tenant, kid, key = make_tenant(pair.admin_one)
    with calling(pair.one.url, key) as one, calling(pair.two.url, key) as two:
        yield Tenant(tenant, kid, key, one, two)
