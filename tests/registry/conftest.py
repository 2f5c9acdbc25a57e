"""A registry over a fresh folder, an upload in one call, and an S3 server for all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import event

from app.db.database import Database
from app.prefix.reference import PrefixReference, parse_model_field
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.types import Resolved, Version, VersionInfo
from tests.s3_server import S3Server


def stored(registry: Registry, version: Version) -> Path:
    """Where the file of a version lies in a folder store."""
    with registry.objects.local(version.owner, version.digest) as path:
        assert path is not None, "the store has lost it"
        return path


def resolved(version: Version) -> Resolved:
    """A version as a reference that stands for it is answered."""
    names = [field.name for field in fields(Resolved)]
    return Resolved(**{name: getattr(version, name) for name in names})


@contextmanager
def statements(registry: Registry) -> Iterator[list[str]]:
    """The SQL that is run inside the block."""
    seen: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    engine = registry.catalog.engine
    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", listen)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Upload(Protocol):
    """Uploads bytes as a version of a prefix of tenant `demo`."""

    def __call__(
        self, name: str, data: bytes, *, tenant: str = "demo", alias: str | None = None, **info: Any
    ) -> tuple[Version, bool]: ...


@pytest.fixture
def info_of() -> Callable[..., VersionInfo]:
    """What a validated file of these bytes would be described as; a digest of the bytes."""

    def describe(data: bytes, **fields: Any) -> VersionInfo:
        known: dict[str, Any] = {
            "digest": hashlib.sha256(data).hexdigest(),
            "length": 5,
            "position_offset": 5,
            "dtype": "float32",
            "nbytes": len(data),
            "base_model": "tiny",
            "base_fingerprint": "f" * 64,
            "input_template": " {input} <|endoftext|>",
            "decoding": {"max_tokens": 20, "stop": ["\n"]},
            "provenance": {"data": "e2e"},
        }
        return VersionInfo(**(known | fields))

    return describe


@pytest.fixture
def open_again(tmp_path: Path) -> Iterator[Callable[[], Registry]]:
    """Opens a registry on the test's folder, as another process would."""
    opened = []

    def opening() -> Registry:
        registry = open_registry(f"sqlite:///{tmp_path}/data/catalog.sqlite3", tmp_path / "store")
        opened.append(registry)
        return registry

    yield opening
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_again: Callable[[], Registry]) -> Registry:
    """A registry with the tenant `demo`."""
    registry = open_again()
    registry.ensure_tenant("demo")
    return registry


@pytest.fixture
def upload(registry: Registry, info_of: Callable[..., VersionInfo]) -> Upload:
    def uploading(
        name: str, data: bytes, *, tenant: str = "demo", alias: str | None = None, **info: Any
    ) -> tuple[Version, bool]:
        with registry.stage() as staged:
            staged.write(data)
            described = info_of(data, **info)
            return registry.add_version(tenant, name, described, staged.path, alias=alias)

    return uploading


@pytest.fixture
def ref() -> Callable[[str], PrefixReference]:
    """The reference that a user's text stands for."""
    return lambda text: parse_model_field(text)[0]


@pytest.fixture(scope="session")
def running_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server; tests use buckets of their own and leave it running."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """That server, with the credentials that any client needs."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    return running_s3


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def frozen(registry: Registry, tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    """The registry as another process has it, for which no time passes by itself."""
    catalog = Database(f"sqlite:///{tmp_path}/data/catalog.sqlite3", clock=clock)
    yield Registry(catalog, registry.objects)
    catalog.close()
