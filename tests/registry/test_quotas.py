"""Quotas: counted right whatever comes and goes, enforced inside the transaction."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from app.db.migrations.versions import rev_0002_tenants as revision
from app.errors import QuotaExceeded
from app.registry.registry import Registry
from app.registry.types import SHIPPED_OWNER, Quota, VersionInfo
from app.registry.versions import stored
from tests.registry.conftest import Upload

Describe = Callable[..., VersionInfo]


def usage(registry: Registry, tenant: str = "demo") -> tuple[int, int]:
    with registry.catalog.read() as connection:
        return stored(connection, tenant)


@pytest.fixture
def add(registry: Registry, info_of: Describe) -> Callable[..., bool]:
    """Uploads under a quota; whether the version is new."""

    def adding(name: str, data: bytes, quota: Quota, registry: Registry = registry) -> bool:
        with registry.stage() as staged:
            staged.write(data)
            info = info_of(data)
            return registry.add_version("demo", name, info, staged.path, quota=quota)[1]

    return adding


def test_prefixes_and_distinct_bytes_are_counted(registry: Registry, upload: Upload) -> None:
    assert usage(registry) == (0, 0)
    upload("a", b"12345")
    upload("a", b"12345")
    upload("b", b"12345")
    upload("b", b"123")
    assert usage(registry) == (2, 8)
    digest, _ = upload("a", b"123")
    registry.delete_version("demo", "b", digest.digest)
    assert usage(registry) == (2, 8)
    registry.delete_prefix("demo", "a")
    assert usage(registry) == (1, 5)
    [left] = registry.list_versions("demo", "b").items
    registry.delete_version("demo", "b", left.digest)
    assert usage(registry) == (0, 0)


def test_tenants_are_counted_apart(registry: Registry, upload: Upload) -> None:
    registry.ensure_tenant("acme")
    upload("a", b"12345")
    upload("a", b"12345", tenant="acme")
    registry.delete_prefix("demo", "a")
    assert (usage(registry), usage(registry, "acme")) == ((0, 0), (1, 5))


def test_a_file_that_is_replaced_by_one_of_another_size_is_counted_anew(
    registry: Registry, upload: Upload, info_of: Describe, tmp_path: Path
) -> None:
    digest = info_of(b"one").digest
    upload("a", b"one")
    upload("b", b"one")
    [file] = (tmp_path / "store").glob("*/*.safetensors")
    file.write_bytes(b"o")
    upload("a", b"another file", digest=digest)
    assert usage(registry) == (2, 12)


def test_prefixes_up_to_the_quota_are_taken(registry: Registry, add: Callable[..., bool]) -> None:
    quota = Quota(max_prefixes=2)
    assert add("a", b"one", quota)
    assert add("b", b"one", quota)
    with pytest.raises(QuotaExceeded) as refused:
        add("c", b"one", quota)
    assert "quota is 2 prefixes; 2 are used" in refused.value.message
    assert (refused.value.status, refused.value.code) == (409, "quota_exceeded")
    assert [record.name for record in registry.list_prefixes("demo").items] == ["a", "b"]
    assert add("b", b"two", quota)
    registry.delete_prefix("demo", "a")
    assert add("c", b"one", quota)


def test_bytes_up_to_the_quota_are_taken_and_a_content_counts_once(
    registry: Registry, add: Callable[..., bool]
) -> None:
    quota = Quota(max_bytes=8)
    assert add("a", b"12345", quota)
    assert add("b", b"12345", quota)
    with pytest.raises(QuotaExceeded, match="quota is 8 bytes; 5 are used.* would be 9"):
        add("b", b"1234", quota)
    assert add("c", b"123", quota)
    assert not add("c", b"123", quota)
    assert usage(registry) == (3, 8)


def test_a_quota_that_was_lowered_refuses_growth_alone(add: Callable[..., bool]) -> None:
    add("a", b"12345", Quota())
    add("b", b"12345", Quota())
    lowered = Quota(max_prefixes=1, max_bytes=1)
    assert not add("a", b"12345", lowered)
    for name, data in (("c", b"12345"), ("a", b"1")):
        with pytest.raises(QuotaExceeded):
            add(name, data, lowered)


def test_a_refused_upload_leaves_nothing_for_good(
    registry: Registry, add: Callable[..., bool], tmp_path: Path
) -> None:
    with pytest.raises(QuotaExceeded):
        add("a", b"one", Quota(max_bytes=2))
    assert usage(registry) == (0, 0)
    registry.collect_garbage(0)
    assert list((tmp_path / "store").glob("*/*.safetensors")) == []


def test_of_many_uploads_at_once_only_as_many_as_fit_are_taken(
    registry: Registry, add: Callable[..., bool], open_again: Callable[[], Registry]
) -> None:
    registries = [registry, open_again()]

    def one(number: int) -> bool:
        try:
            return add(f"p{number}", b"%d" % number, Quota(max_prefixes=5), registries[number % 2])
        except QuotaExceeded:
            return False

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(one, range(12))) == 5
    assert usage(registry)[0] == 5


def test_a_catalog_of_the_first_release_is_counted_when_it_is_brought_up_to_date(
    registry: Registry, upload: Upload
) -> None:
    upload("a", b"12345")
    upload("b", b"12345")
    upload("b", b"123")
    upload("c", b"shipped")
    with registry.catalog.write() as (connection, _):
        shipped = text("UPDATE versions SET owner = :owner WHERE file_nbytes = 7")
        connection.execute(shipped, {"owner": SHIPPED_OWNER})
        connection.execute(text("UPDATE tenants SET prefix_count = 0, stored_nbytes = 0"))
        connection.execute(text(revision.COUNT))
    assert usage(registry) == (3, 8)
