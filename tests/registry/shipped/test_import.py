"""Prefixes that are shipped with a store: listed, imported once, never in the user's way."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import InvalidRequest, PolyprefixError, PrefixNotFound
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.shipped.import_ import seed
from app.registry.shipped.manifest import add_to_manifest, read_manifest, write_manifest
from app.registry.types import VersionInfo
from tests.registry.conftest import Upload, stored
from tests.s3_server import S3Server

Ship = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def ship(store: Path, tmp_path: Path, info_of: Callable[..., VersionInfo]) -> Ship:
    """Adds bytes to the manifest as a version of a name; its digest."""

    def shipping(name: str, data: bytes, alias: str | None = None) -> str:
        file = tmp_path / "trained.safetensors"
        file.write_bytes(data)
        return add_to_manifest(store, name, info_of(data), file, alias=alias).digest

    store.mkdir(exist_ok=True)
    return shipping


class TestManifest:
    def test_a_store_without_one_has_an_empty_one(self, tmp_path: Path) -> None:
        assert read_manifest(tmp_path).prefixes == {}

    def test_what_is_added_is_read_back(
        self, store: Path, ship: Ship, info_of: Callable[..., VersionInfo]
    ) -> None:
        one, two = ship("e2e", b"one"), ship("e2e", b"two", "stable")
        shipped = read_manifest(store).prefixes["e2e"]
        assert [version.digest for version in shipped.versions] == [one, two]
        assert shipped.aliases == {"stable": two}
        assert shipped.versions[0].info() == info_of(b"one")
        assert (store / "shipped" / f"{one}.safetensors").read_bytes() == b"one"

    def test_the_same_content_again_takes_the_place_of_its_entry(
        self, store: Path, ship: Ship
    ) -> None:
        one, two, _ = ship("e2e", b"one"), ship("e2e", b"two"), ship("e2e", b"one")
        shipped = read_manifest(store).prefixes["e2e"]
        assert [version.digest for version in shipped.versions] == [two, one]

    def test_everyone_may_read_what_is_shipped(self, store: Path, ship: Ship) -> None:
        digest = ship("e2e", b"one")
        modes = {
            path.name: path.stat().st_mode & 0o777
            for path in (
                store / "catalog.json",
                store / "shipped",
                store / "shipped" / f"{digest}.safetensors",
            )
        }
        assert list(modes.values()) == [0o644, 0o755, 0o644]

    def test_of_those_who_add_at_once_none_is_lost(
        self, store: Path, tmp_path: Path, info_of: Callable[..., VersionInfo]
    ) -> None:
        store.mkdir()

        def adding(number: int) -> None:
            file = tmp_path / f"{number}.safetensors"
            file.write_bytes(b"%d" % number)
            add_to_manifest(store, f"prefix-{number}", info_of(b"%d" % number), file)

        threads = [threading.Thread(target=adding, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read_manifest(store).prefixes) == 8

    def test_writing_replaces_in_one_step(self, store: Path, ship: Ship) -> None:
        ship("e2e", b"one")
        manifest = read_manifest(store)
        opened = (store / "catalog.json").open("rb")
        ship("other", b"two")
        with opened:
            assert b"other" not in opened.read()
        write_manifest(store, manifest)
        assert read_manifest(store) == manifest
        assert list((store / ".staging").iterdir()) == []

    @pytest.mark.parametrize(("name", "alias"), [("../e2e", None), ("E2E", None), ("e2e", "a/b")])
    def test_a_name_that_breaks_the_rules_is_refused(
        self, store: Path, ship: Ship, name: str, alias: str | None
    ) -> None:
        with pytest.raises(InvalidRequest):
            ship(name, b"one", alias)
        assert list(store.iterdir()) == []

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda text: text[:-5], "JSON"),
            (lambda text: text and "[]", "the file"),
            (lambda text: text.replace("catalog/1", "catalog/9"), "format"),
            (lambda text: text.replace('"length": 5', '"length": -5'), "versions.0.length"),
            (lambda text: text.replace('"length": 5', '"length": "5"'), "versions.0.length"),
            (lambda text: text.replace('"length"', '"lenght"'), "versions.0.length"),
            (lambda text: text.replace('"e2e"', '"../e2e"', 1), None),
            (lambda text: text.replace('"stable"', '"abcdef"'), None),
            (lambda text: json.dumps({**json.loads(text), "more": 1}), "more"),
            (lambda text: text + " " * (17 * 2**20), "larger"),
        ],
    )
    def test_a_damaged_one_is_refused_with_what_and_where(
        self,
        store: Path,
        ship: Ship,
        registry: Registry,
        damage: Callable[[str], str],
        message: str | None,
    ) -> None:
        ship("e2e", b"one", "stable")
        path = store / "catalog.json"
        path.write_text(damage(path.read_text()))
        with pytest.raises(PolyprefixError, match=message):
            read_manifest(store)
        with pytest.raises(PolyprefixError):
            seed(registry, store)

    def test_an_alias_names_a_version_of_its_prefix(self, store: Path, ship: Ship) -> None:
        ship("e2e", b"one", "stable")
        path = store / "catalog.json"
        known = json.loads(path.read_text())
        known["prefixes"]["e2e"]["aliases"]["stable"] = "0" * 64
        path.write_text(json.dumps(known))
        with pytest.raises(PolyprefixError, match="alias 'stable' of 'e2e'"):
            read_manifest(store)


class TestImport:
    def test_a_fresh_catalog_gets_everything(
        self, registry: Registry, store: Path, ship: Ship, info_of: Callable[..., VersionInfo]
    ) -> None:
        one, two, web = ship("e2e", b"one", "stable"), ship("e2e", b"two"), ship("web", b"web")
        assert seed(registry, store) == 3
        record = registry.get_prefix("demo", "e2e")
        assert record.aliases == {"latest": two, "stable": one}
        version = registry.get_version("demo", "web", web)
        assert version.owner == "shipped"
        assert stored(registry, version).read_bytes() == b"web"
        for field in VersionInfo.__dataclass_fields__:
            assert getattr(version, field) == getattr(info_of(b"web"), field)

    def test_a_store_in_a_bucket_is_given_the_files(
        self, s3: S3Server, store: Path, ship: Ship, tmp_path: Path
    ) -> None:
        digest, lost = ship("e2e", b"one"), ship("web", b"web")
        (store / "shipped" / f"{lost}.safetensors").unlink()
        url = s3.url(s3.new_bucket())
        for number in (1, 2):
            database = f"sqlite:///{tmp_path}/{number}.sqlite3"
            with closing(open_registry(database, url, tmp_path / "transit")) as registry:
                assert seed(registry, store) == 1
                version = registry.get_version("demo", "e2e", digest)
                with registry.open_content("demo", version) as file:
                    assert file.read() == b"one"
                assert registry.collect_garbage(0) == 0
                assert [each.name for each in registry.list_prefixes("demo").items] == ["e2e"]

    def test_what_belongs_to_another_base_model_waits_for_it(
        self, registry: Registry, store: Path, ship: Ship, info_of: Callable[..., VersionInfo]
    ) -> None:
        ship("e2e", b"one", "stable")
        own = info_of(b"one").base_fingerprint
        path = store / "catalog.json"
        known = json.loads(path.read_text())
        for name, fingerprint in (("tldr", "b" * 64), ("any", None)):
            known["prefixes"][name] = json.loads(json.dumps(known["prefixes"]["e2e"]))
            known["prefixes"][name]["versions"][0]["base_fingerprint"] = fingerprint
        path.write_text(json.dumps(known))
        names = [["any", "e2e"], ["any", "e2e", "tldr"]]
        for fingerprint, listed in zip((own, "b" * 64), names, strict=True):
            seed(registry, store, base_fingerprint=fingerprint)
            found = [record.name for record in registry.list_prefixes("demo").items]
            assert found == listed

    def test_the_tenant_is_made(self, open_again: Callable[[], Registry], store: Path) -> None:
        registry = open_again()
        assert seed(registry, store) == 0
        assert registry.list_prefixes("demo").items == ()
        registry.ensure_tenant("demo")
        assert registry.catalog.epoch() == 1

    def test_the_second_start_writes_nothing(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store)
        epoch = registry.catalog.epoch()
        assert seed(registry, store) == 0
        assert registry.catalog.epoch() == epoch

    def test_what_is_added_later_is_imported_and_becomes_latest(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store)
        two = ship("e2e", b"two")
        assert seed(registry, store) == 1
        assert registry.get_prefix("demo", "e2e").latest == two

    def test_what_the_user_deletes_stays_deleted(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        one = ship("e2e", b"one")
        two = ship("e2e", b"two")
        ship("web", b"web")
        seed(registry, store)
        registry.delete_version("demo", "e2e", two)
        registry.delete_prefix("demo", "web")
        assert seed(registry, store) == 0
        assert registry.get_prefix("demo", "e2e").latest == one
        with pytest.raises(PrefixNotFound):
            registry.get_prefix("demo", "web")

    def test_the_users_later_upload_stays_latest(
        self, registry: Registry, store: Path, ship: Ship, upload: Upload
    ) -> None:
        shipped = ship("e2e", b"one", "stable")
        path = store / "catalog.json"
        known = json.loads(path.read_text())
        known["prefixes"]["e2e"]["versions"][0]["added_at"] = 1000
        path.write_text(json.dumps(known))
        mine, _ = upload("e2e", b"mine", alias="stable")
        assert seed(registry, store) == 1
        record = registry.get_prefix("demo", "e2e")
        assert record.aliases == {"latest": mine.digest, "stable": mine.digest}
        assert registry.get_version("demo", "e2e", shipped).created_at == 1000

    def test_the_same_content_that_the_user_has_is_one_version(
        self, registry: Registry, store: Path, ship: Ship, upload: Upload
    ) -> None:
        mine, _ = upload("e2e", b"one")
        ship("e2e", b"one")
        assert seed(registry, store) == 1
        [version] = registry.list_versions("demo", "e2e").items
        assert version == mine

    def test_a_file_that_is_missing_or_cut_is_left_out_and_said(
        self, registry: Registry, store: Path, ship: Ship, caplog: pytest.LogCaptureFixture
    ) -> None:
        one, two, three = (ship(name, name.encode()) for name in ("one", "two", "three"))
        (store / "shipped" / f"{one}.safetensors").unlink()
        (store / "shipped" / f"{two}.safetensors").write_bytes(b"t")
        with caplog.at_level(logging.WARNING):
            assert seed(registry, store) == 1
        assert [record.name for record in registry.list_prefixes("demo").items] == ["three"]
        assert [one in caplog.text, two in caplog.text, three in caplog.text] == [True, True, False]
        ship("one", b"one")
        assert seed(registry, store) == 1

    def test_shipped_files_are_never_garbage(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        digest = ship("e2e", b"one")
        seed(registry, store)
        registry.delete_prefix("demo", "e2e")
        assert registry.collect_garbage(0) == 0
        assert (store / "shipped" / f"{digest}.safetensors").read_bytes() == b"one"

    def test_every_tenant_may_use_what_is_shipped(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store)
        registry.ensure_tenant("acme")
        offered = registry.publications.offered("acme").items
        assert [(found.tenant, found.name) for found in offered] == [("demo", "e2e")]

    def test_what_an_earlier_program_imported_is_published_once_there_are_keys(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        assert seed(registry, store, publish=False) == 1
        assert not registry.publications.get("demo", "e2e").everyone
        assert seed(registry, store) == 0
        assert registry.publications.get("demo", "e2e").everyone

    def test_a_publication_that_was_withdrawn_does_not_come_back(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store)
        registry.publications.set("demo", "e2e", (), everyone=False)
        ship("e2e", b"two")
        assert seed(registry, store) == 1
        assert not registry.publications.get("demo", "e2e").everyone

    def test_a_publication_that_was_there_stays_as_it_is_and_ends_for_good(
        self, registry: Registry, store: Path, ship: Ship
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store, publish=False)
        registry.publications.set("demo", "e2e", ["acme"], everyone=False)
        seed(registry, store)
        assert registry.publications.get("demo", "e2e").tenants == ("acme",)
        assert not registry.publications.get("demo", "e2e").everyone
        registry.publications.set("demo", "e2e", (), everyone=False)
        seed(registry, store)
        assert not registry.publications.get("demo", "e2e").everyone

    def test_a_name_with_an_upload_of_the_tenant_is_not_published(
        self, registry: Registry, store: Path, ship: Ship, upload: Upload
    ) -> None:
        ship("e2e", b"one")
        seed(registry, store, publish=False)
        upload("e2e", b"secret")
        epoch = registry.catalog.epoch()
        assert seed(registry, store) == 0
        assert not registry.publications.get("demo", "e2e").everyone
        assert registry.catalog.epoch() == epoch


def test_two_that_start_at_the_same_time_import_it_once(
    registry: Registry,
    open_again: Callable[[], Registry],
    store: Path,
    ship: Ship,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = ship("e2e", b"one", "stable")
    write, other = registry.catalog.write, open_again()
    imported: list[int] = []

    def after_the_other() -> object:
        monkeypatch.undo()
        imported.append(seed(other, store))
        return write()

    monkeypatch.setattr(registry.catalog, "write", after_the_other)
    assert seed(registry, store) == 0
    assert imported == [1]
    assert registry.get_prefix("demo", "e2e").aliases == {"latest": digest, "stable": digest}
