"""Many threads, and several registries on one catalog: one winner, nothing lost, nothing mixed."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.errors import InUse, PolyprefixError, PreconditionFailed, PrefixNotFound, Unavailable
from app.prefix.reference import PrefixReference
from app.registry.registry import Registry
from app.registry.types import Version, VersionInfo
from tests.registry.conftest import Upload

Describe = Callable[..., VersionInfo]


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results, or errors of ours, of calls that begin at the same moment."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        except PolyprefixError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.fixture
def registries(registry: Registry, open_again: Callable[[], Registry]) -> list[Registry]:
    """Three registries on the same catalog and store, as three processes have them."""
    return [registry, open_again(), open_again()]


def test_of_those_who_move_an_alias_under_one_etag_one_wins(
    registries: list[Registry], upload: Upload
) -> None:
    digests = [upload("e2e", b"%d" % number)[0].digest for number in range(13)]
    etag = registries[0].aliases.set("demo", "e2e", "stable", digests[12]).etag
    for _ in range(3):
        outcomes = together(
            12,
            lambda number, tag=etag: registries[number % 3].aliases.set(
                "demo", "e2e", "stable", digests[number], if_match=tag
            ),
        )
        [winner] = [each for each in outcomes if not isinstance(each, PolyprefixError)]
        assert sum(isinstance(each, PreconditionFailed) for each in outcomes) == 11
        assert registries[1].aliases.get("demo", "e2e", "stable") == winner
        digests.append(winner.digest)
        etag = registries[2].aliases.set("demo", "e2e", "stable", digests[12]).etag


def test_the_same_upload_by_many_is_one_version(
    registries: list[Registry], info_of: Describe, tmp_path: Path
) -> None:
    def uploading(number: int) -> Any:
        registry = registries[number % 3]
        with registry.stage() as staged:
            staged.write(b"one")
            return registry.add_version("demo", "e2e", info_of(b"one"), staged.path)

    outcomes = together(12, uploading)
    assert sorted(created for _, created in outcomes) == [False] * 11 + [True]
    assert len({version for version, _ in outcomes}) == 1
    [record] = registries[0].list_prefixes("demo").items
    assert record.versions == 1
    assert len(list((tmp_path / "store").glob("*/*.safetensors"))) == 1


def test_different_uploads_at_once_are_all_there(
    registries: list[Registry], info_of: Describe
) -> None:
    def uploading(number: int) -> Any:
        registry = registries[number % 3]
        data = b"content %d" % number
        with registry.stage() as staged:
            staged.write(data)
            return registry.add_version("demo", "e2e", info_of(data), staged.path)[0]

    outcomes = together(12, uploading)
    listed = registries[0].list_versions("demo", "e2e").items
    assert {version.digest for version in listed} == {each.digest for each in outcomes}
    assert registries[0].get_prefix("demo", "e2e").latest == listed[0].digest


def test_a_tenant_made_by_many_is_one(registries: list[Registry]) -> None:
    made = together(9, lambda number: registries[number % 3].ensure_tenant("acme"))
    assert len(set(made)) == 1


class Churn:
    """Uploads, moves, deletes, reads and collections at random; notes what should not be."""

    def __init__(self, registries: list[Registry], info_of: Describe) -> None:
        self.registries = registries
        self.info_of = info_of
        self.wrong: list[str] = []

    def work(self, number: int) -> None:
        draw = random.Random(number)
        registry = self.registries[number % 3]
        act = (self.write, self.write, self.read, self.collect)[number % 4]
        for _ in range(25):
            try:
                act(registry, draw.choice("abc"), draw)
            except (PrefixNotFound, InUse):
                continue
            except Unavailable as error:
                if "send it again" not in error.message:
                    self.wrong.append(error.message)

    def write(self, registry: Registry, name: str, draw: random.Random) -> None:
        data = b"content %d" % draw.randrange(6)
        digest = self.info_of(data).digest
        action = draw.randrange(5)
        if action < 2:
            with registry.stage() as staged:
                staged.write(data)
                registry.add_version("demo", name, self.info_of(data), staged.path)
        elif action == 2:
            registry.delete_version("demo", name, digest)
        elif action == 3:
            registry.aliases.set("demo", name, "stable", digest)
        else:
            registry.delete_prefix("demo", name)

    def read(self, registry: Registry, name: str, _draw: random.Random) -> None:
        """What a name stands for is whole, unless it was deleted in between: there is no grace."""
        version = registry.resolve("demo", PrefixReference(name))
        for _ in range(5):
            try:
                self.read_whole(registry, version)
                return
            except PolyprefixError:
                version = registry.get_version("demo", name, version.digest)
        self.wrong.append(f"{name}@{version.digest} is lost")

    def read_whole(self, registry: Registry, version: Version) -> None:
        with registry.open_content("demo", version) as file:
            if hashlib.sha256(file.read()).hexdigest() != version.digest:
                self.wrong.append(f"{version.name}@{version.digest} is mixed up")

    def collect(self, registry: Registry, _name: str, _draw: random.Random) -> None:
        registry.collect_garbage(0)


def test_writers_readers_and_the_garbage_collector_do_one_another_no_harm(
    registries: list[Registry], info_of: Describe
) -> None:
    churn = Churn(registries, info_of)
    assert [each for each in together(8, churn.work) if each is not None] == []
    registries[0].collect_garbage(0)
    for record in registries[0].list_prefixes("demo").items:
        assert record.latest
        for version in registries[0].list_versions("demo", record.name).items:
            churn.read_whole(registries[0], version)
    assert churn.wrong == []
