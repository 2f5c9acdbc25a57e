"""Two tenants in one registry see what each of them would see if it had the registry to itself."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.errors import InvalidRequest, PolyprefixError
from app.prefix.reference import PrefixReference
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.types import Quota, VersionInfo
from app.registry.versions import stored

BOTH = ("acme", "rival")
TENANTS = st.sampled_from(BOTH)
NAMES = st.sampled_from(["a", "b", "c"])
ALIASES = st.sampled_from(["latest", "stable", "next"])
CONTENTS = st.sampled_from([b"one", b"two", b"three"])
QUOTA = Quota(2, 12)

Call = Callable[[Registry], Any]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seen(value: Any) -> Any:
    """What a tenant learns from a result; times and what is opaque are compared elsewhere."""
    if dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        hidden = {"owner", "etag", "created_at", "updated_at", "changed_at"}
        return {name: seen(each) for name, each in fields.items() if name not in hidden}
    if isinstance(value, Mapping):
        return {name: seen(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [seen(each) for each in value]
    return value


def outcome(call: Call, registry: Registry) -> Any:
    """The result, or the error to the letter."""
    try:
        return seen(call(registry))
    except PolyprefixError as error:
        return type(error), error.message, error.param


def uploading(tenant: str, name: str, data: bytes, alias: str | None) -> Call:
    info = VersionInfo(
        digest=digest_of(data), length=1, position_offset=0, dtype="float16", nbytes=len(data)
    )

    def upload(registry: Registry) -> Any:
        with registry.stage() as staged:
            staged.write(data)
            return registry.add_version(tenant, name, info, staged.path, alias=alias, quota=QUOTA)

    return upload


def everything(tenant: str) -> Call:
    """All that the tenant can list, in pages of one."""

    def pages(read: Callable[[str | None], Any]) -> list[Any]:
        page = read(None)
        found = list(page.items)
        while page.next_cursor is not None:
            page = read(page.next_cursor)
            found += page.items
        return found

    def look(registry: Registry) -> Any:
        records = pages(lambda cursor: registry.list_prefixes(tenant, cursor, 1))
        with registry.catalog.read() as connection:
            used = stored(connection, tenant)
        return {
            "used": used,
            "offered": pages(lambda cursor: registry.publications.offered(tenant, cursor, 1)),
            "prefixes": {
                record.name: [
                    record,
                    pages(
                        lambda cursor, record=record: registry.list_versions(
                            tenant, record.name, cursor, 1
                        )
                    ),
                    registry.publications.get(tenant, record.name),
                    {
                        alias: [
                            registry.aliases.get(tenant, record.name, alias),
                            registry.aliases.history(tenant, record.name, alias),
                        ]
                        for alias in record.aliases
                    },
                ]
                for record in records
            },
        }

    return look


class InterferenceMachine(RuleBasedStateMachine):
    """Each call goes to the shared registry and to one that only this tenant uses."""

    @initialize()
    def start(self) -> None:
        memory = "/dev/shm"  # nothing here is about what a disk keeps
        self.folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.shared = self.opened("shared")
        self.alone = {tenant: self.opened(tenant) for tenant in BOTH}
        self.etags: dict[tuple[Registry, str, str, str], str] = {}

    def opened(self, name: str) -> Registry:
        url = f"sqlite:///{self.folder}/{name}.sqlite3"
        registry = open_registry(url, self.folder / name)
        for tenant in BOTH:
            registry.ensure_tenant(tenant)
        return registry

    def teardown(self) -> None:
        for registry in (self.shared, *self.alone.values()):
            registry.close()
        shutil.rmtree(self.folder)

    def same(self, tenant: str, call: Call) -> None:
        assert outcome(call, self.shared) == outcome(call, self.alone[tenant])

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS, alias=st.none() | ALIASES)
    def upload(self, tenant: str, name: str, data: bytes, alias: str | None) -> None:
        self.same(tenant, uploading(tenant, name, data, alias))

    @rule(tenant=TENANTS, name=NAMES, alias=ALIASES, data=CONTENTS, condition=st.booleans())
    def set_alias(self, tenant: str, name: str, alias: str, data: bytes, condition: bool) -> None:
        def move(registry: Registry) -> Any:
            place = (registry, tenant, name, alias)
            if_match = self.etags.get(place) if condition else None
            moved = registry.aliases.set(tenant, name, alias, digest_of(data), if_match=if_match)
            self.etags[place] = moved.etag
            return moved

        self.same(tenant, move)

    @rule(tenant=TENANTS, name=NAMES, alias=ALIASES, weights=st.tuples(*[st.integers(1, 3)] * 2))
    def split_alias(self, tenant: str, name: str, alias: str, weights: tuple[int, int]) -> None:
        split = dict(zip(map(digest_of, (b"one", b"two")), weights, strict=True))
        self.same(tenant, lambda registry: registry.aliases.set(tenant, name, alias, split))

    @rule(tenant=TENANTS, name=NAMES, alias=ALIASES)
    def rollback(self, tenant: str, name: str, alias: str) -> None:
        self.same(tenant, lambda registry: registry.aliases.rollback(tenant, name, alias))

    @rule(tenant=TENANTS, name=NAMES, to=st.sampled_from([(), ("guest",), ("guest", "other")]))
    def publish_to_others(self, tenant: str, name: str, to: tuple[str, ...]) -> None:
        self.same(
            tenant, lambda registry: registry.publications.set(tenant, name, to, everyone=False)
        )

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS)
    def delete_version(self, tenant: str, name: str, data: bytes) -> None:
        digest = digest_of(data)
        self.same(tenant, lambda registry: registry.delete_version(tenant, name, digest))

    @rule(tenant=TENANTS, name=NAMES)
    def delete_prefix(self, tenant: str, name: str) -> None:
        self.same(
            tenant,
            lambda registry: sorted(key[1] for key in registry.delete_prefix(tenant, name)),
        )

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS, pinned=st.booleans())
    def pin(self, tenant: str, name: str, data: bytes, pinned: bool) -> None:
        digest = digest_of(data)
        self.same(
            tenant,
            lambda registry: registry.pin(tenant, name, digest, pinned=pinned),
        )

    @rule(
        caller=TENANTS,
        owner=st.none() | TENANTS,
        name=NAMES,
        selector=st.none() | ALIASES | CONTENTS.map(digest_of),
        user=st.sampled_from(["ann", "bob"]),
    )
    def resolve(
        self, caller: str, owner: str | None, name: str, selector: str | None, user: str
    ) -> None:
        reference = PrefixReference(name, selector, owner)
        self.same(caller, lambda registry: registry.resolve(caller, reference, user))

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS)
    def read_content(self, tenant: str, name: str, data: bytes) -> None:
        def read(registry: Registry) -> bytes:
            version = registry.get_version(tenant, name, digest_of(data))
            with registry.open_content(tenant, version) as file:
                return file.read()

        self.same(tenant, read)

    @rule()
    def collect_garbage(self) -> None:
        for registry in (self.shared, *self.alone.values()):
            registry.collect_garbage(0)

    @invariant()
    def both_see_what_they_would_see_alone(self) -> None:
        for tenant in BOTH:
            self.same(tenant, everything(tenant))


InterferenceMachine.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
TestTenantsInterleaved = InterferenceMachine.TestCase


class ManyInterleaved(InterferenceMachine):
    """The same, for longer."""


ManyInterleaved.TestCase.settings = settings(
    InterferenceMachine.TestCase.settings, max_examples=60, stateful_step_count=50
)
TestManyInterleaved = pytest.mark.slow(ManyInterleaved.TestCase)


def busy(registry: Registry) -> tuple[str, str]:
    """The ETag of an alias and the cursor of a list of versions."""
    for data in (b"one", b"two"):
        uploading("acme", "a", data, None)(registry)
    etag = registry.aliases.get("acme", "a", "latest").etag
    cursor = registry.list_versions("acme", "a", None, 1).next_cursor
    assert cursor is not None
    return etag, cursor


def test_no_count_of_all_tenants_changes_can_be_guessed_from_an_etag(registry: Registry) -> None:
    registry.ensure_tenant("acme")
    etag, _ = busy(registry)
    digest = digest_of(b"two")
    for hashed in (
        hashlib.sha256,
        hashlib.blake2b,
        lambda data: hashlib.blake2b(data, digest_size=8),
    ):
        for prefix_id in range(5):
            for revision in range(50):
                state = f"{prefix_id}/latest/{revision}/{digest}".encode()
                assert hashed(state).hexdigest()[:16] != etag.strip('"')


def test_a_cursor_is_sealed_and_its_readers_alone(registry: Registry) -> None:
    for tenant in ("acme", "rival"):
        registry.ensure_tenant(tenant)
    _, cursor = busy(registry)
    uploading("rival", "a", b"one", None)(registry)
    with pytest.raises(InvalidRequest, match="cursor"):
        registry.list_versions("rival", "a", cursor)
    with pytest.raises(InvalidRequest, match="cursor"):
        registry.list_versions("acme", "a", cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BA"))
    assert len(registry.list_versions("acme", "a", cursor).items) == 1
