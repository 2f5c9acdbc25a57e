"""What version 0.4.0 left is served, repaired and collected after the upgrade."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from app.db.database import migrate
from app.db.schema import contents
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.types import ContentKey, VersionInfo
from tests.postgres_server import PostgresServer, postgres_server
from tests.registry.old_release import (
    GARBAGE,
    KEPT,
    OWNER,
    digest_of,
    fill_catalog,
    fill_store,
)

KEY = ContentKey(OWNER, digest_of(KEPT))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.sqlite3"
    made: str = request.getfixturevalue("server").make_database()
    return made.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Iterator[Registry]:
    engine = create_engine(url)
    with engine.begin() as connection:
        fill_catalog(connection)
    engine.dispose()
    fill_store(tmp_path / "store")
    assert migrate(url)[0] == "0002"
    registry = open_registry(url, tmp_path / "store")
    yield registry
    registry.close()


def stored(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in (folder / "store" / OWNER).glob("*.safetensors")}


def test_what_is_needed_is_noted_and_served(registry: Registry) -> None:
    with registry.catalog.read() as connection:
        rows = connection.execute(select(contents.c.owner, contents.c.digest, contents.c.state))
        assert [tuple(row) for row in rows] == [(*KEY, "present")]
    for name in ("one", "two", "web"):
        version = registry.get_version("demo", name, KEY.digest)
        with registry.open_content("demo", version) as file:
            assert file.read() == KEPT
    assert registry.pinned() == (KEY,)


def test_garbage_of_then_goes_and_the_rest_stays_until_nobody_needs_it(
    registry: Registry, tmp_path: Path
) -> None:
    assert registry.collect_garbage(3600) == 0  # the file is young
    then = time.time() - 7200
    os.utime(tmp_path / "store" / OWNER / f"{digest_of(GARBAGE)}.safetensors", (then, then))
    assert registry.collect_garbage(3600) == 1
    assert stored(tmp_path) == {KEPT}
    registry.delete_prefix("demo", "one")
    assert registry.collect_garbage(0) == 0
    registry.delete_prefix("demo", "two")
    assert registry.collect_garbage(3600) == 0  # its grace begins
    assert registry.collect_garbage(0) == 1
    assert stored(tmp_path) == set()
    version = registry.get_version("demo", "web", KEY.digest)
    with registry.open_content("demo", version) as file:
        assert file.read() == KEPT


def test_the_same_content_again_is_the_same_version(
    registry: Registry, info_of: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    (tmp_path / "store" / OWNER / f"{KEY.digest}.safetensors").unlink()
    with registry.stage() as staged:
        staged.write(KEPT)
        version, created = registry.add_version("demo", "one", info_of(KEPT), staged.path)
    assert (version.digest, created) == (KEY.digest, False)
    assert stored(tmp_path) == {KEPT, GARBAGE}


def test_pins_that_are_made_now_come_after_those_of_then(
    registry: Registry, info_of: Callable[..., VersionInfo]
) -> None:
    with registry.stage() as staged:
        staged.write(b"new")
        version, _ = registry.add_version("demo", "new", info_of(b"new"), staged.path)
    registry.pin("demo", "new", version.digest)
    assert registry.pinned() == (KEY, ContentKey(OWNER, version.digest))
    assert registry.pinned(1) == (ContentKey(OWNER, version.digest),)
