"""A real Redis for the tests of shared limits; a catalog for those of tenants and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.database import Database
from tests.redis_server import RedisServer, redis_server
from tests.tenancy.house import House, open_house


@pytest.fixture(scope="session")
def _one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def shared_redis(_one_redis: RedisServer) -> RedisServer:
    """A Redis without keys; it is to be left running as it was."""
    _one_redis.command("FLUSHALL")
    return _one_redis


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A process on a fresh catalog with the tenant `acme`."""
    house = open_house(tmp_path)
    house.accounts.create("acme")
    yield house
    house.catalog.close()


@pytest.fixture
def any_catalog(catalog_url: str) -> Iterator[Database]:
    """A fresh catalog, in each kind of database."""
    catalog = Database(catalog_url)
    yield catalog
    catalog.close()
