"""Deleting versions and prefixes, and the contents that nobody needs any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.schema import contents as table
from app.errors import InUse, PrefixNotFound
from app.registry.registry import Registry
from tests.registry.conftest import Upload, stored


def contents(tmp_path: Path) -> list[str]:
    """Digests of the files in the store, whoever owns them."""
    return sorted(path.stem for path in (tmp_path / "store").glob("*/*.safetensors"))


def age(registry: Registry, seconds: float) -> None:
    with registry.catalog.append() as connection:
        connection.execute(update(table).values(touched_at=table.c.touched_at - seconds))


class TestDeleting:
    def test_latest_falls_back_to_the_newest_that_is_left(
        self, registry: Registry, upload: Upload
    ) -> None:
        one, two, three = (upload("e2e", data)[0] for data in (b"one", b"two", b"three"))
        registry.delete_version("demo", "e2e", three.digest)
        assert registry.get_prefix("demo", "e2e").latest == two.digest
        registry.delete_version("demo", "e2e", one.digest)
        assert registry.get_prefix("demo", "e2e").latest == two.digest
        with pytest.raises(PrefixNotFound):
            registry.get_version("demo", "e2e", three.digest)

    def test_a_prefix_is_gone_with_its_last_version(
        self, registry: Registry, upload: Upload
    ) -> None:
        version, _ = upload("e2e", b"one")
        assert registry.delete_version("demo", "e2e", version.digest[:8]) == version
        with pytest.raises(PrefixNotFound):
            registry.get_prefix("demo", "e2e")
        assert registry.list_prefixes("demo").items == ()

    def test_a_version_that_an_alias_points_at_stays(
        self, registry: Registry, upload: Upload
    ) -> None:
        version, _ = upload("e2e", b"one", alias="stable")
        with pytest.raises(InUse, match="alias 'stable' of 'e2e'"):
            registry.delete_version("demo", "e2e", version.digest)
        assert registry.get_version("demo", "e2e", version.digest) == version

    def test_a_prefix_goes_with_versions_and_aliases(
        self, registry: Registry, upload: Upload
    ) -> None:
        upload("e2e", b"one", alias="stable")
        upload("e2e", b"two")
        registry.delete_prefix("demo", "e2e")
        with pytest.raises(PrefixNotFound):
            registry.list_versions("demo", "e2e")
        version, created = upload("e2e", b"one")
        assert created
        assert registry.get_prefix("demo", "e2e").aliases == {"latest": version.digest}
        assert len(registry.aliases.history("demo", "e2e", "latest")) == 1

    def test_what_does_not_exist_cannot_be_deleted(
        self, registry: Registry, upload: Upload
    ) -> None:
        upload("e2e", b"one")
        for digest in ("0" * 64, "latest", "", "0", "%"):
            with pytest.raises(PrefixNotFound):
                registry.delete_version("demo", "e2e", digest)
        with pytest.raises(PrefixNotFound):
            registry.delete_prefix("demo", "other")


class TestGarbage:
    def test_contents_follow_their_rows_after_the_grace(
        self, registry: Registry, upload: Upload, tmp_path: Path
    ) -> None:
        one, two = (upload("e2e", data)[0] for data in (b"one", b"two"))
        age(registry, 1000)
        registry.delete_version("demo", "e2e", two.digest)
        assert registry.collect_garbage(100) == 0  # running requests may still read it
        age(registry, 1000)
        assert registry.collect_garbage(100) == 1
        assert contents(tmp_path) == [one.digest]

    def test_an_upload_that_died_before_its_row_is_collected(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        owner = registry.ensure_tenant("demo")
        with registry.stage() as staged:
            staged.write(b"one")
            registry.objects.commit(owner, "0" * 64, staged.path)
        assert registry.collect_garbage(100) == 0
        assert registry.collect_garbage(0) == 1
        assert contents(tmp_path) == []

    def test_other_files_in_the_store_are_left_alone(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        owner = registry.ensure_tenant("demo")
        for folder in (owner, "another", "shipped"):
            (tmp_path / "store" / folder).mkdir(parents=True)
        (tmp_path / "store" / owner / "notes.txt").write_bytes(b"kept")
        for folder in ("another", "shipped"):
            (tmp_path / "store" / folder / f"{'0' * 64}.safetensors").write_bytes(b"kept")
        assert registry.collect_garbage(0) == 0

    def test_a_row_made_after_the_first_look_saves_its_content(
        self, registry: Registry, upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version, _ = upload("e2e", b"one")
        registry.delete_prefix("demo", "e2e")
        write = registry.catalog.write

        def write_after_an_upload() -> object:
            monkeypatch.setattr(registry.catalog, "write", write)
            upload("e2e", b"one")
            return write()

        monkeypatch.setattr(registry.catalog, "write", write_after_an_upload)
        assert registry.collect_garbage(0) == 0
        assert stored(registry, version).read_bytes() == b"one"
