"""The registry against a model of dicts and lists, over drawn sequences of operations."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.errors import (
    Conflict,
    InUse,
    NotFound,
    PolyprefixError,
    PreconditionFailed,
    PrefixNotFound,
)
from app.prefix.reference import PrefixReference
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.types import VersionInfo
from app.registry.versions import stored

Result = TypeVar("Result")

State = frozenset[tuple[str, int]]
"""Where an alias points: digests with weights, of one alone weight 1."""

TENANTS = st.sampled_from(["demo", "acme"])
NAMES = st.sampled_from(["a", "b"])
ALIASES = st.sampled_from(["latest", "stable", "next"])
CONTENTS = st.sampled_from([b"one", b"two", b"three"])


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SIZES = {digest_of(data): len(data) for data in (b"one", b"two", b"three")}


def at(digest: str) -> State:
    return frozenset({(digest, 1)})


def main(state: State) -> str:
    return min(state, key=lambda pair: (-pair[1], pair[0]))[0]


def split(state: State) -> dict[str, int] | None:
    return dict(state) if len(state) > 1 else None


@dataclass
class Prefix:
    """What the registry should know of one name: versions oldest first, aliases as stacks."""

    versions: list[str] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    stacks: dict[str, list[State]] = field(default_factory=dict)
    grantees: set[str] = field(default_factory=set)

    def move(self, alias: str, state: State) -> None:
        stack = self.stacks.setdefault(alias, [])
        if not stack or stack[-1] != state:
            stack.append(state)

    def top(self, alias: str) -> State:
        return self.stacks[alias][-1] if alias in self.stacks else frozenset()

    def undo(self, alias: str) -> State | None:
        """Where a rollback leads, None if nowhere; moves there."""
        stack = self.stacks[alias]
        for depth in range(len(stack) - 1, -1, -1):
            if stack[depth] != stack[-1]:
                del stack[depth + 1 :]
                return stack[-1]
        return None

    def needs(self, digest: str) -> bool:
        """Whether an alias keeps the version from being deleted."""
        return any(
            digest in dict(self.top(alias)) and (alias != "latest" or len(self.top(alias)) > 1)
            for alias in self.stacks
        )

    def forget(self, digest: str) -> None:
        self.versions.remove(digest)
        self.pinned.discard(digest)
        latest = self.top("latest")
        for alias, stack in self.stacks.items():
            self.stacks[alias] = [state for state in stack if digest not in dict(state)]
        if latest == at(digest) and self.versions:
            self.stacks["latest"].append(at(self.versions[-1]))


class RegistryMachine(RuleBasedStateMachine):
    """Every call gives what the model gives, and every error where the model has one."""

    @initialize()
    def start(self) -> None:
        memory = "/dev/shm"  # nothing here is about what a disk keeps
        self.folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.model: dict[str, dict[str, Prefix]] = {"demo": {}, "acme": {}}
        self.etags: dict[tuple[str, str, str], str] = {}
        self.registry = self.opened()
        for tenant in self.model:
            self.registry.ensure_tenant(tenant)

    def opened(self) -> Registry:
        url = f"sqlite:///{self.folder}/catalog.sqlite3"
        return open_registry(url, self.folder / "store")

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.folder)

    def expect(
        self, error: type[PolyprefixError] | None, call: Callable[[], Result]
    ) -> Result | None:
        if error is None:
            return call()
        with pytest.raises(error):
            call()
        return None

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS, alias=st.none() | ALIASES)
    def upload(self, tenant: str, name: str, data: bytes, alias: str | None) -> None:
        digest = digest_of(data)
        info = VersionInfo(
            digest=digest, length=1, position_offset=0, dtype="float16", nbytes=len(data)
        )
        with self.registry.stage() as staged:
            staged.write(data)
            version, created = self.registry.add_version(
                tenant, name, info, staged.path, alias=alias
            )
        prefix = self.model[tenant].setdefault(name, Prefix())
        assert created == (digest not in prefix.versions)
        assert (version.tenant, version.name, version.digest) == (tenant, name, digest)
        if created:
            prefix.versions.append(digest)
        prefix.move("latest", at(digest))
        if alias is not None:
            prefix.move(alias, at(digest))

    @rule(tenant=TENANTS, name=NAMES, alias=ALIASES, data=CONTENTS, condition=st.booleans())
    def set_alias(self, tenant: str, name: str, alias: str, data: bytes, condition: bool) -> None:
        prefix = self.model[tenant].get(name)
        digest = digest_of(data)
        if_match = self.etags.get((tenant, name, alias), '"none"') if condition else None
        error: type[PolyprefixError] | None = None
        if prefix is None:
            error = PrefixNotFound
        elif condition and if_match != self.present_etag(tenant, name, alias):
            error = PreconditionFailed
        elif digest not in prefix.versions:
            error = PrefixNotFound
        moved = self.expect(
            error,
            lambda: self.registry.aliases.set(tenant, name, alias, digest, if_match=if_match),
        )
        if moved is not None and prefix is not None:
            prefix.move(alias, at(digest))
            self.etags[tenant, name, alias] = moved.etag

    @rule(
        tenant=TENANTS,
        name=NAMES,
        alias=ALIASES,
        contents=st.lists(CONTENTS, min_size=2, max_size=3, unique=True),
        weights=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    )
    def split_alias(
        self, tenant: str, name: str, alias: str, contents: list[bytes], weights: list[int]
    ) -> None:
        prefix = self.model[tenant].get(name)
        wanted = dict(zip(map(digest_of, contents), weights, strict=False))
        missing = prefix is None or not wanted.keys() <= set(prefix.versions)
        moved = self.expect(
            PrefixNotFound if missing else None,
            lambda: self.registry.aliases.set(tenant, name, alias, wanted),
        )
        if moved is not None and prefix is not None:
            prefix.move(alias, frozenset(wanted.items()))
            self.etags[tenant, name, alias] = moved.etag
            assert moved.split == wanted

    @rule(tenant=TENANTS, name=NAMES, to=st.sampled_from([[], ["demo"], ["acme"], ["*"]]))
    def publish(self, tenant: str, name: str, to: list[str]) -> None:
        prefix = self.model[tenant].get(name)
        grantees = [grantee for grantee in to if grantee not in ("*", tenant)]
        everyone = "*" in to
        self.expect(
            PrefixNotFound if prefix is None else None,
            lambda: self.registry.publications.set(tenant, name, grantees, everyone=everyone),
        )
        if prefix is not None:
            prefix.grantees = {*grantees, "*"} if everyone else set(grantees)

    def present_etag(self, tenant: str, name: str, alias: str) -> str | None:
        try:
            return self.registry.aliases.get(tenant, name, alias).etag
        except NotFound:
            return None

    @rule(tenant=TENANTS, name=NAMES, alias=ALIASES)
    def rollback(self, tenant: str, name: str, alias: str) -> None:
        prefix = self.model[tenant].get(name)
        error: type[PolyprefixError] | None = None
        target = None
        if prefix is None:
            error = PrefixNotFound
        elif alias not in prefix.stacks:
            error = NotFound
        else:
            target = prefix.undo(alias)
            error = Conflict if target is None else None
        moved = self.expect(error, lambda: self.registry.aliases.rollback(tenant, name, alias))
        assert (moved and moved.digest) == (target and main(target))
        assert (moved and moved.split) == (target and split(target))

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS)
    def delete_version(self, tenant: str, name: str, data: bytes) -> None:
        prefix = self.model[tenant].get(name)
        digest = digest_of(data)
        error: type[PolyprefixError] | None = None
        if prefix is None or digest not in prefix.versions:
            error = PrefixNotFound
        elif prefix.needs(digest):
            error = InUse
        self.expect(error, lambda: self.registry.delete_version(tenant, name, digest))
        if error is None and prefix is not None:
            prefix.forget(digest)
            if not prefix.versions:
                del self.model[tenant][name]

    @rule(tenant=TENANTS, name=NAMES)
    def delete_prefix(self, tenant: str, name: str) -> None:
        known = self.model[tenant].pop(name, None)
        error = PrefixNotFound if known is None else None
        self.expect(error, lambda: self.registry.delete_prefix(tenant, name))

    @rule(tenant=TENANTS, name=NAMES, data=CONTENTS, pinned=st.booleans())
    def pin(self, tenant: str, name: str, data: bytes, pinned: bool) -> None:
        prefix = self.model[tenant].get(name)
        digest = digest_of(data)
        missing = prefix is None or digest not in prefix.versions
        self.expect(
            PrefixNotFound if missing else None,
            lambda: self.registry.pin(tenant, name, digest, pinned=pinned),
        )
        if prefix is not None and not missing:
            (prefix.pinned.add if pinned else prefix.pinned.discard)(digest)

    @rule()
    def collect_garbage(self) -> None:
        self.registry.collect_garbage(0)
        needed = {
            (self.registry.ensure_tenant(tenant), digest)
            for tenant, prefixes in self.model.items()
            for prefix in prefixes.values()
            for digest in prefix.versions
        }
        files = (self.folder / "store").glob("*/*.safetensors")
        assert {(path.parent.name, path.stem) for path in files} == needed

    @rule()
    def restart(self) -> None:
        self.registry.close()
        self.registry = self.opened()

    @rule(
        caller=TENANTS,
        tenant=TENANTS,
        name=NAMES,
        selector=st.none() | ALIASES | CONTENTS.map(digest_of),
        user=st.none() | st.just("user"),
    )
    def resolve(
        self, caller: str, tenant: str, name: str, selector: str | None, user: str | None
    ) -> None:
        prefix = self.model[tenant].get(name, Prefix())
        wanted = dict(prefix.top(selector or "latest"))
        if selector in prefix.versions:
            wanted = {selector: 1}
        if caller != tenant and not prefix.grantees & {caller, "*"}:
            wanted = {}
        reference = PrefixReference(name, selector, tenant)
        error = None if wanted else PrefixNotFound
        for _ in range(2):
            found = self.expect(error, lambda: self.registry.resolve(caller, reference, user))
            assert found is None or found.digest in wanted

    @invariant()
    def the_lists_are_the_models(self) -> None:
        for tenant, prefixes in self.model.items():
            records = self.registry.list_prefixes(tenant).items
            assert {record.name: dict(record.aliases) for record in records} == {
                name: {alias: main(prefix.top(alias)) for alias in prefix.stacks}
                for name, prefix in prefixes.items()
            }
            contents = {digest for prefix in prefixes.values() for digest in prefix.versions}
            with self.registry.catalog.read() as connection:
                used = stored(connection, tenant)
            assert used == (len(prefixes), sum(SIZES[digest] for digest in contents))
            for name, prefix in prefixes.items():
                versions = self.registry.list_versions(tenant, name).items
                assert [version.digest for version in versions] == prefix.versions[::-1]
                assert {each.digest for each in versions if each.pinned} == prefix.pinned


RegistryMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRegistryAgainstItsModel = RegistryMachine.TestCase
