"""Uploading, reading and deleting through the registry."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.errors import (
    InsufficientStorage,
    InvalidRequest,
    NotFound,
    PolyprefixError,
    PrefixNotFound,
    Unavailable,
)
from app.registry.registry import Registry
from app.registry.types import VersionInfo
from tests.registry.conftest import Upload, stored


def contents(tmp_path: Path) -> list[str]:
    """Digests of the files in the store, whoever owns them."""
    return sorted(path.stem for path in (tmp_path / "store").glob("*/*.safetensors"))


class TestUploading:
    def test_a_version_says_what_its_file_said(
        self, registry: Registry, upload: Upload, info_of: Callable[..., VersionInfo]
    ) -> None:
        version, created = upload("e2e", b"one")
        assert created
        for field in VersionInfo.__dataclass_fields__:
            assert getattr(version, field) == getattr(info_of(b"one"), field)
        assert (version.tenant, version.name, version.pinned) == ("demo", "e2e", False)
        assert version.verified
        assert abs(version.created_at - time.time()) < 60
        assert registry.get_version("demo", "e2e", version.digest) == version
        with registry.open_content("demo", version) as file:
            assert file.read() == b"one"
        assert stored(registry, version).read_bytes() == b"one"

    def test_a_file_that_names_no_base_model_is_unverified(self, upload: Upload) -> None:
        version, _ = upload("e2e", b"one", base_fingerprint=None)
        assert not version.verified

    def test_it_is_still_there_after_a_restart(
        self, upload: Upload, open_again: Callable[[], Registry]
    ) -> None:
        version, _ = upload("e2e", b"one", alias="stable")
        again = open_again()
        assert again.get_version("demo", "e2e", version.digest) == version
        assert again.get_prefix("demo", "e2e").aliases == dict.fromkeys(
            ("latest", "stable"), version.digest
        )

    def test_latest_moves_to_each_upload(self, registry: Registry, upload: Upload) -> None:
        for data in (b"one", b"two", b"one"):
            version, _ = upload("e2e", data)
            assert registry.get_prefix("demo", "e2e").latest == version.digest
        assert registry.get_prefix("demo", "e2e").versions == 2

    def test_the_same_content_again_is_the_same_version(
        self, registry: Registry, upload: Upload
    ) -> None:
        first, _ = upload("e2e", b"one")
        again, created = upload("e2e", b"one")
        assert (again, created) == (first, False)
        assert len(registry.list_versions("demo", "e2e").items) == 1

    def test_the_same_content_again_moves_a_given_alias(
        self, registry: Registry, upload: Upload
    ) -> None:
        first, _ = upload("e2e", b"one")
        upload("e2e", b"two", alias="stable")
        upload("e2e", b"one", alias="stable")
        assert registry.aliases.get("demo", "e2e", "stable").digest == first.digest

    def test_prefixes_share_a_content(
        self, registry: Registry, upload: Upload, tmp_path: Path
    ) -> None:
        first, _ = upload("e2e", b"one")
        second, created = upload("other", b"one")
        assert created
        assert (first.owner, first.digest) == (second.owner, second.digest)
        assert contents(tmp_path) == [first.digest]
        registry.delete_prefix("demo", "e2e")
        assert registry.collect_garbage(0) == 0
        assert stored(registry, second).read_bytes() == b"one"

    def test_the_first_file_of_a_content_stays_and_is_described(
        self, registry: Registry, upload: Upload, info_of: Callable[..., VersionInfo]
    ) -> None:
        digest = info_of(b"one").digest
        first, _ = upload("e2e", b"one", provenance={"by": "anna"})
        second, _ = upload("other", b"one, longer", digest=digest, provenance={"by": "ben"})
        assert second.provenance == {"by": "anna"}
        assert stored(registry, second).read_bytes() == b"one"
        assert first.digest == second.digest

    def test_a_lost_file_is_put_back_by_the_same_upload(
        self, registry: Registry, upload: Upload
    ) -> None:
        version, _ = upload("e2e", b"one")
        stored(registry, version).unlink()
        with pytest.raises(PolyprefixError, match="lost the file of 'e2e@"):
            registry.content_start("demo", version, 8)
        with pytest.raises(PolyprefixError, match="upload it again"):
            registry.open_content("demo", version)
        again, created = upload("e2e", b"one")
        assert (again, created) == (version, False)
        assert stored(registry, version).read_bytes() == b"one"

    def test_a_file_cut_short_is_put_back_and_described_anew(
        self, registry: Registry, upload: Upload, info_of: Callable[..., VersionInfo]
    ) -> None:
        digest = info_of(b"one").digest
        version, _ = upload("e2e", b"one", provenance={"by": "anna"})
        upload("other", b"one")
        stored(registry, version).write_bytes(b"o")
        again, _ = upload("e2e", b"another file", digest=digest, provenance={"by": "ben"})
        assert stored(registry, again).read_bytes() == b"another file"
        assert again.provenance == {"by": "ben"}
        assert registry.get_version("demo", "other", digest).provenance == {"by": "ben"}

    @pytest.mark.parametrize(
        "fields",
        [
            {"digest": "../../etc/passwd"},
            {"digest": "F" * 64},
            {"length": -1},
            {"nbytes": 2**60},
            {"position_offset": True},
            {"length": 1.5},
        ],
    )
    def test_a_description_that_cannot_be_is_refused(
        self, upload: Upload, tmp_path: Path, fields: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidRequest):
            upload("e2e", b"one", **fields)
        assert contents(tmp_path) == []

    def test_a_content_that_vanishes_meanwhile_is_to_be_sent_again(
        self, registry: Registry, upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(registry.objects, "commit", lambda *_: None)
            with pytest.raises(Unavailable, match="send it again"):
                upload("e2e", b"one")
        assert registry.list_prefixes("demo").items == ()
        assert upload("e2e", b"one")[1]

    def test_an_unknown_tenant_cannot_upload(self, upload: Upload, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            upload("e2e", b"one", tenant="nobody")
        assert contents(tmp_path) == []


class TestTenants:
    def test_a_tenant_is_made_once(
        self, registry: Registry, open_again: Callable[[], Registry]
    ) -> None:
        made = registry.ensure_tenant("acme")
        epoch = registry.catalog.epoch()
        assert registry.ensure_tenant("acme") == open_again().ensure_tenant("acme") == made
        assert registry.catalog.epoch() == epoch
        assert made != registry.ensure_tenant("demo")

    def test_nothing_of_another_tenant_is_seen(self, registry: Registry, upload: Upload) -> None:
        registry.ensure_tenant("acme")
        version, _ = upload("e2e", b"one", alias="stable")
        digest = version.digest
        calls: list[Callable[[str], object]] = [
            lambda tenant: registry.get_prefix(tenant, "e2e"),
            lambda tenant: registry.list_versions(tenant, "e2e"),
            lambda tenant: registry.get_version(tenant, "e2e", digest),
            lambda tenant: registry.delete_version(tenant, "e2e", digest),
            lambda tenant: registry.delete_prefix(tenant, "e2e"),
            lambda tenant: registry.aliases.get(tenant, "e2e", "stable"),
            lambda tenant: registry.aliases.set(tenant, "e2e", "stable", digest),
            lambda tenant: registry.aliases.rollback(tenant, "e2e", "stable"),
            lambda tenant: registry.aliases.history(tenant, "e2e", "stable"),
            lambda tenant: registry.pin(tenant, "e2e", digest),
            lambda tenant: registry.pin(tenant, "e2e", digest, pinned=False),
            lambda tenant: registry.content_start(tenant, version, 8),
            lambda tenant: registry.open_content(tenant, version),
        ]
        for call in calls:
            with pytest.raises(PrefixNotFound) as foreign:
                call("acme")
            with pytest.raises(PrefixNotFound) as unknown:
                call("nobody")
            assert foreign.value.message == unknown.value.message
        assert registry.list_prefixes("acme").items == ()
        assert registry.get_version("demo", "e2e", digest) == version

    def test_tenants_do_not_share_contents(
        self, registry: Registry, upload: Upload, tmp_path: Path
    ) -> None:
        registry.ensure_tenant("acme")
        mine, _ = upload("e2e", b"one")
        theirs, created = upload("e2e", b"one", tenant="acme")
        assert created
        assert mine.owner != theirs.owner
        assert contents(tmp_path) == [mine.digest] * 2
        registry.delete_prefix("demo", "e2e")
        assert registry.collect_garbage(0) == 1
        assert stored(registry, theirs).read_bytes() == b"one"


@contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """Makes the kernel refuse to let any file of this process grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def test_an_upload_that_does_not_fit_is_refused_and_deleting_goes_on(
        self, registry: Registry, upload: Upload, tmp_path: Path
    ) -> None:
        one, _ = upload("e2e", b"one")
        two, _ = upload("e2e", b"two")
        with no_file_larger_than(2**20):
            with pytest.raises(InsufficientStorage):
                upload("e2e", bytes(2**20 + 1))
            registry.delete_version("demo", "e2e", two.digest)
            assert registry.collect_garbage(0) == 1
            assert registry.get_prefix("demo", "e2e").latest == one.digest
        assert contents(tmp_path) == [one.digest]
        assert list((tmp_path / "store" / ".staging").iterdir()) == []
        assert upload("e2e", bytes(2**20 + 1))[1]

    def test_a_catalog_that_cannot_grow_is_said_and_recovers(
        self, registry: Registry, upload: Upload
    ) -> None:
        one, _ = upload("e2e", b"one")
        with no_file_larger_than(100), pytest.raises(InsufficientStorage, match="catalog"):
            upload("e2e", b"two")
        assert registry.get_prefix("demo", "e2e").latest == one.digest
        assert upload("e2e", b"two")[1]
        assert registry.get_prefix("demo", "e2e").versions == 2


def test_pinning_is_a_mark_on_a_version(registry: Registry, upload: Upload) -> None:
    version, _ = upload("e2e", b"one")
    upload("e2e", b"two")
    assert registry.pin("demo", "e2e", version.digest[:6]).pinned
    assert [pinned.digest for pinned in registry.pinned()] == [version.digest]
    assert registry.get_version("demo", "e2e", version.digest).pinned
    assert not registry.pin("demo", "e2e", version.digest, pinned=False).pinned
    assert registry.pinned() == ()


def test_several_versions_that_begin_alike_are_ambiguous(
    registry: Registry, upload: Upload
) -> None:
    for last in "01":
        upload("e2e", last.encode(), digest="abcdef" + "0" * 57 + last)
    with pytest.raises(InvalidRequest, match="ambiguous"):
        registry.get_version("demo", "e2e", "abcdef")
    with pytest.raises(InvalidRequest, match="ambiguous"):
        registry.delete_version("demo", "e2e", "abcdef00")
    found = registry.get_version("demo", "e2e", "abcdef" + "0" * 57 + "1")
    assert found.digest.endswith("1")


def test_of_too_many_pins_those_that_were_made_last_are_kept(
    registry: Registry, upload: Upload
) -> None:
    made = [upload("e2e", bytes([number]))[0] for number in range(5)]
    order = [made[at] for at in (4, 0, 3, 1, 2)]
    for version in order:
        registry.pin("demo", "e2e", version.digest)
    registry.pin("demo", "e2e", order[0].digest)  # again
    assert [pin.digest for pin in registry.pinned(3)] == [
        order[3].digest,
        order[4].digest,
        order[0].digest,
    ]


def test_no_tenant_takes_the_place_of_anothers_pins(registry: Registry, upload: Upload) -> None:
    registry.ensure_tenant("rival")
    modest, _ = upload("e2e", b"modest", tenant="rival")
    registry.pin("rival", "e2e", modest.digest)
    for number in range(6):
        version, _ = upload("e2e", bytes([number]))
        registry.pin("demo", "e2e", version.digest)
    kept = registry.pinned(3)
    assert (modest.owner, modest.digest) in kept
    assert len(kept) == 3
