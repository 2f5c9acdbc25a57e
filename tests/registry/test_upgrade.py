"""A folder, a bucket and keys of version 0.4.0 open after the upgrade, and are served as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from app.db.database import Database, migrate
from app.db.migrate import head
from app.db.schema import contents
from app.errors import InvalidKey
from app.registry.quality_gates import Unscored
from app.registry.registry import Registry
from app.registry.types import ContentKey, VersionInfo
from app.tenancy.audit.chain import verify
from app.tenancy.auth.authenticator import KeyAuthenticator
from app.tenancy.auth.failed_attempts import FailedAttempts
from app.tenancy.auth.principal import Scope
from app.tenancy.usage.ledger import UsageLedger, UsageTotals
from app.tenancy.usage.report import UsageQuery, read_usage
from tests.postgres_server import PostgresServer, postgres_server
from tests.registry.old_release import (
    GARBAGE,
    KEPT,
    KEY,
    OWNER,
    PEPPER,
    digest_of,
    fill_catalog,
    fill_store,
)
from tests.registry.stores import FolderHandles, S3Handles, StoreHandles
from tests.s3_server import S3Server

CONTENT = ContentKey(OWNER, digest_of(KEPT))
PEER = "192.0.2.1"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite+folder", "postgres+folder", "sqlite+bucket"])
def places(
    request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server
) -> tuple[str, StoreHandles]:
    """The URL of a catalog and a store, both empty."""
    database, _, store = request.param.partition("+")
    url = f"sqlite:///{tmp_path}/catalog.sqlite3"
    if database == "postgres":
        url = request.getfixturevalue("server").make_database()
        url = url.replace("postgresql://", "postgresql+psycopg://")
    return url, S3Handles(s3, tmp_path) if store == "bucket" else FolderHandles(tmp_path)


@pytest.fixture
def handles(places: tuple[str, StoreHandles]) -> StoreHandles:
    return places[1]


@pytest.fixture
def registry(places: tuple[str, StoreHandles]) -> Iterator[Registry]:
    url, handles = places
    engine = create_engine(url)
    with engine.begin() as connection:
        fill_catalog(connection)
    engine.dispose()
    fill_store(handles)
    assert migrate(url) == ("0002", head())
    registry = Registry(Database(url), handles.store)
    registry.finish_removals()
    yield registry
    registry.close()


def stored(handles: StoreHandles) -> set[str]:
    """Digests of the contents of the tenant that are in the store."""
    found = (path.partition("/") for path in handles.stored() if path.endswith(".safetensors"))
    return {name.removesuffix(".safetensors") for owner, _, name in found if owner == OWNER}


def test_needed_contents_are_noted_and_served(registry: Registry) -> None:
    with registry.catalog.read() as connection:
        rows = connection.execute(select(contents.c.owner, contents.c.digest, contents.c.state))
        assert [tuple(row) for row in rows] == [(*CONTENT, "present")]
    for name in ("one", "two", "web"):
        version = registry.get_version("demo", name, CONTENT.digest)
        with registry.open_content("demo", version) as file:
            assert file.read() == KEPT
    assert registry.pinned() == (CONTENT,)


def test_garbage_goes_and_the_rest_stays_until_nobody_needs_it(
    registry: Registry, handles: StoreHandles
) -> None:
    assert registry.collect_garbage(3600) == 0  # the file is young
    handles.get_older(7200)
    assert registry.collect_garbage(3600) == 1
    assert stored(handles) == {CONTENT.digest}
    registry.delete_prefix("demo", "one")
    assert registry.collect_garbage(0) == 0
    registry.delete_prefix("demo", "two")
    assert registry.collect_garbage(3600) == 0  # its grace begins
    assert registry.collect_garbage(0) == 1
    assert stored(handles) == set()
    version = registry.get_version("demo", "web", CONTENT.digest)
    with registry.open_content("demo", version) as file:
        assert file.read() == KEPT


def test_the_same_content_again_is_the_same_version(
    registry: Registry, info_of: Callable[..., VersionInfo], handles: StoreHandles
) -> None:
    handles.store.delete(*CONTENT)
    with registry.stage() as staged:
        staged.write(KEPT)
        version, created = registry.add_version("demo", "one", info_of(KEPT), staged.path)
    assert (version.digest, created) == (CONTENT.digest, False)
    assert stored(handles) == {CONTENT.digest, digest_of(GARBAGE)}


def test_pins_that_are_made_now_come_after_the_old_ones(
    registry: Registry, info_of: Callable[..., VersionInfo]
) -> None:
    with registry.stage() as staged:
        staged.write(b"new")
        version, _ = registry.add_version("demo", "new", info_of(b"new"), staged.path)
    registry.pin("demo", "new", version.digest)
    assert registry.pinned() == (CONTENT, ContentKey(OWNER, version.digest))
    assert registry.pinned(1) == (ContentKey(OWNER, version.digest),)


def test_aliases_keep_their_versions_histories_and_gates(
    registry: Registry, info_of: Callable[..., VersionInfo]
) -> None:
    assert registry.aliases.get("demo", "one", "stable").digest == CONTENT.digest
    assert [move.reason for move in registry.aliases.history("demo", "one", "stable")] == ["set"]
    gate = registry.gates.get("demo", "one", "stable")
    assert (gate.metric, gate.min_score) == ("bleu", 0.5)
    assert gate.examples == [{"input": "a", "output": ["b"]}]
    with registry.stage() as staged:
        staged.write(b"new")
        version, _ = registry.add_version("demo", "one", info_of(b"new"), staged.path)
    with pytest.raises(Unscored):
        registry.aliases.set("demo", "one", "stable", version.digest)
    scores = {(gate.measure, version.digest): 0.6}
    registry.aliases.set("demo", "one", "stable", version.digest, scores=scores)
    assert registry.aliases.rollback("demo", "one", "stable").digest == CONTENT.digest


def test_an_old_key_is_let_in_with_its_scopes_and_limits(registry: Registry) -> None:
    failures = FailedAttempts(60)
    principal = KeyAuthenticator(registry.catalog, PEPPER, failures).authenticate(KEY, PEER)
    assert (principal.tenant, principal.kid) == ("demo", "hLgGlFxdxg9a")
    assert principal.scopes == {Scope.GENERATE, Scope.PREFIXES_READ}
    assert (principal.limits.max_rows, principal.limits.weight) == (4, 2.0)
    other = KeyAuthenticator(registry.catalog, b"another pepper", failures)
    with pytest.raises(InvalidKey):
        other.authenticate(KEY, PEER)


def test_old_usage_and_audit_records_are_kept(registry: Registry) -> None:
    catalog = registry.catalog
    query = UsageQuery("demo", 0, 2**40, ("prefix",))
    [row] = read_usage(catalog, UsageLedger(catalog), query, None, 10).items
    assert (row.group, row.sums) == ({"prefix": "one"}, UsageTotals(2, 1, 30, 40, 5, 60))
    [report] = verify(catalog)
    assert (report.replica, report.records, report.fault) == ("first", 1, None)
