"""A real Redis for the tests of shared limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def _one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def shared_redis(_one_redis: RedisServer) -> RedisServer:
    """A Redis without keys; it is to be left running as it was."""
    _one_redis.command("FLUSHALL")
    return _one_redis
