"""A catalog on PostgreSQL: made by migration, one state for readers, waits that are bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select

from app.db.database import Database, migrate
from app.db.migrate import head
from app.db.schema import metadata, tenants
from app.errors import PolyprefixError, Unavailable
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.make_database()


@pytest.fixture
def catalog(url: str) -> Iterator[Database]:
    migrate(url)
    catalog = Database(url)
    yield catalog
    catalog.close()


def test_a_replica_does_not_make_tables_by_itself(url: str) -> None:
    with pytest.raises(PolyprefixError, match="polyprefix migrate"):
        Database(url)
    assert migrate(url) == (None, head())
    Database(url).close()


def test_the_revisions_make_the_tables_that_are_declared(catalog: Database) -> None:
    with catalog.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_several_may_migrate_at_once(url: str) -> None:
    results: list[tuple[str | None, str]] = []
    threads = [threading.Thread(target=lambda: results.append(migrate(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [(head(), head())] * 3 + [(None, head())]


def test_a_reader_sees_one_state_while_others_write(catalog: Database) -> None:
    with catalog.read() as connection:
        assert connection.execute(select(tenants)).all() == []
        with catalog.write() as (writing, _):
            writing.execute(insert(tenants).values(id="new", owner="new", created_at=0))
        assert connection.execute(select(tenants)).all() == []
    with catalog.read() as connection:
        assert len(connection.execute(select(tenants)).all()) == 1


def test_writers_of_two_replicas_follow_one_another(url: str, catalog: Database) -> None:
    other = Database(url)
    seen: list[int] = []

    def writing(through: Database) -> None:
        for _ in range(20):
            with through.write() as (_, epoch):
                seen.append(epoch)

    threads = [threading.Thread(target=writing, args=(each,)) for each in (catalog, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(seen) == list(range(1, 81))


def test_a_url_that_is_none_is_refused_and_not_repeated() -> None:
    for text in ("not a url: secret", "mysql://user:secret@host/db", "postgresql+asyncpg:secret"):
        with pytest.raises(PolyprefixError, match="catalog's URL") as refused:
            Database(text)
        assert "secret" not in str(refused.value)


@pytest.mark.alone
class TestFaults:
    """Each has a server of its own to harm."""

    @pytest.fixture
    def server(self) -> Iterator[PostgresServer]:
        with postgres_server() as server:
            yield server

    def test_a_server_that_was_killed_is_unavailable_until_it_is_back(
        self, server: PostgresServer, catalog: Database
    ) -> None:
        catalog.epoch()
        server.kill()
        assert unavailable_after(catalog.epoch) < 1
        assert unavailable_after(lambda: write(catalog)) < 1
        server.start()
        assert catalog.epoch() == 0
        write(catalog)
        assert catalog.epoch() == 1

    def test_a_frozen_server_is_given_up_after_seconds(
        self, server: PostgresServer, catalog: Database
    ) -> None:
        catalog.epoch()
        server.freeze()
        assert unavailable_after(catalog.epoch) < 9
        assert unavailable_after(catalog.epoch) < 0.1
        assert unavailable_after(lambda: write(catalog)) < 0.1
        server.thaw()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(Unavailable):
                catalog.epoch()
                break
            time.sleep(0.01)
        assert catalog.epoch() == 0

    def test_a_transaction_that_loses_its_server_changes_nothing(
        self, server: PostgresServer, catalog: Database
    ) -> None:
        def losing() -> None:
            with catalog.write() as (connection, _):
                connection.execute(insert(tenants).values(id="new", owner="new", created_at=0))
                server.kill()

        unavailable_after(losing)
        server.start()
        with catalog.read() as connection:
            assert connection.execute(select(tenants)).all() == []
        assert catalog.epoch() == 0

    def test_a_writer_whose_turn_does_not_come_is_refused(
        self, url: str, catalog: Database
    ) -> None:
        other = Database(url)
        with catalog.write():
            assert unavailable_after(lambda: write(other)) < 7
        write(other)
        other.close()


def write(catalog: Database) -> None:
    with catalog.write():
        pass


def unavailable_after(call: Callable[[], object]) -> float:
    """Seconds until the call failed with Unavailable."""
    started = time.monotonic()
    with pytest.raises(Unavailable):
        call()
    return time.monotonic() - started
