"""A registry over a fresh folder, and an upload in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from app.prefix.reference import PrefixReference, parse_model_field
from app.registry.opening import open_registry
from app.registry.records import Version, VersionInfo
from app.registry.registry import Registry


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
