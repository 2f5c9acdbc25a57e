"""Uploads and removals of one content by two replicas: whoever is first, no row loses its file.

An upload stores the content and then makes its row; a collection looks at the rows, then removes.
Each is stopped at every point between its steps while the other runs, over a folder and a bucket.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.db.database import Database
from app.db.schema import retired_owners, tenants
from app.errors import Unavailable
from app.registry.registry import Registry
from app.registry.types import Version, VersionInfo
from tests.registry.stores import FolderHandles, S3Handles, StoreHandles

GRACE_S = 60.0
DATA = b"content"
Describe = Callable[..., VersionInfo]


class Replicas:
    """Two registries on one catalog and store, and what they do with one content."""

    def __init__(self, handles: StoreHandles, url: str, describe: Describe) -> None:
        self.handles = handles
        self.ahead_s = 0.0
        self.one = Registry(Database(url), handles.store, clock=self.clock)
        self.two = Registry(Database(url), handles.another(), clock=self.clock)
        self.owner = self.one.ensure_tenant("demo")
        self.describe = describe
        self.info = describe(DATA)
        self.digest = hashlib.sha256(DATA).hexdigest()

    def clock(self) -> float:
        return time.time() + self.ahead_s

    def get_older(self, seconds: float) -> None:
        """Lets everything that is stored age."""
        self.handles.get_older(seconds)
        self.ahead_s += seconds

    def upload(self, registry: Registry, name: str = "e2e") -> Version:
        with registry.stage() as staged:
            staged.write(DATA)
            return registry.add_version("demo", name, self.info, staged.path)[0]

    def upload_other(self, data: bytes) -> None:
        with self.one.stage() as staged:
            staged.write(data)
            self.one.add_version("demo", "other", self.describe(data), staged.path)

    def leave_garbage(self) -> None:
        """The content is there, old, and nobody's."""
        self.upload(self.one)
        self.one.delete_prefix("demo", "e2e")
        self.get_older(GRACE_S + 1)

    def check(self) -> None:
        """Every row's content is whole."""
        for record in self.two.list_prefixes("demo").items:
            for version in self.two.list_versions("demo", record.name).items:
                with self.two.open_content("demo", version) as file:
                    assert hashlib.sha256(file.read()).hexdigest() == version.digest


@pytest.fixture(params=["folder", "s3"])
def replicas(
    request: pytest.FixtureRequest, tmp_path: Path, info_of: Describe
) -> Iterator[Replicas]:
    handles: StoreHandles
    if request.param == "folder":
        handles = FolderHandles(tmp_path)
    else:
        handles = S3Handles(request.getfixturevalue("s3"), tmp_path)
    replicas = Replicas(handles, f"sqlite:///{tmp_path}/data/catalog.sqlite3", info_of)
    yield replicas
    replicas.check()
    replicas.one.close()
    replicas.two.close()


def fail(owner: str, digest: str) -> bool:
    """A removal that gets no answer."""
    raise Unavailable(f"no answer about {owner}/{digest}")


def before(
    monkeypatch: pytest.MonkeyPatch, target: object, method: str, act: Callable[[], object]
) -> None:
    """Does something right before the next call of a method."""
    real = getattr(target, method)

    def call(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(target, method, real)
        act()
        return real(*args, **kwargs)

    monkeypatch.setattr(target, method, call)


class TestAnUploadThatIsInterrupted:
    """The content is garbage of old when the upload begins; the collection runs at one point."""

    @pytest.mark.parametrize(("where", "method"), [("objects", "commit"), ("catalog", "write")])
    def test_with_a_grace_it_succeeds(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch, where: str, method: str
    ) -> None:
        replicas.leave_garbage()
        removed: list[int] = []

        def collect() -> None:
            removed.append(replicas.two.collect_garbage(GRACE_S))

        before(monkeypatch, getattr(replicas.one, where), method, collect)
        version = replicas.upload(replicas.one)
        assert replicas.one.get_version("demo", "e2e", version.digest) == version
        assert removed == [0]  # it was noted before it was stored

    def test_without_any_grace_it_is_refused_rather_than_lost(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replicas.leave_garbage()
        before(monkeypatch, replicas.one.catalog, "write", lambda: replicas.two.collect_garbage(0))
        with pytest.raises(Unavailable, match="send it again"):
            replicas.upload(replicas.one)
        assert replicas.one.list_prefixes("demo").items == ()
        replicas.upload(replicas.one)


class TestACollectionThatIsInterrupted:
    @pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
    def test_an_upload_that_meets_a_removal_is_refused_until_its_end(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch, grace_s: float
    ) -> None:
        replicas.leave_garbage()

        def upload() -> None:
            with pytest.raises(Unavailable, match="being removed"):
                replicas.upload(replicas.one)

        before(monkeypatch, replicas.two.objects, "delete", upload)
        assert replicas.two.collect_garbage(grace_s) == 1
        replicas.upload(replicas.one)

    def test_an_upload_that_was_noted_before_a_removal_is_refused_rather_than_lost(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its file may be removed, or may come late: its version is not made in either case."""
        replicas.leave_garbage()

        def collect() -> None:
            monkeypatch.setattr(replicas.two.objects, "delete", fail)
            with pytest.raises(Unavailable, match="no answer"):
                replicas.two.collect_garbage(0)

        before(monkeypatch, replicas.one.objects, "commit", collect)
        with pytest.raises(Unavailable, match="send it again"):
            replicas.upload(replicas.one)
        assert replicas.one.list_prefixes("demo").items == ()

    def test_a_removal_whose_end_is_not_known_refuses_uploads_until_nothing_can_come_late(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replicas.leave_garbage()
        with monkeypatch.context() as patch:
            patch.setattr(replicas.two.objects, "delete", fail)
            with pytest.raises(Unavailable, match="no answer"):
                replicas.two.collect_garbage(GRACE_S)
        with pytest.raises(Unavailable, match="being removed"):
            replicas.upload(replicas.one)
        with replicas.two.objects.removing() as settled_s:
            assert settled_s is not None
        if settled_s:
            assert replicas.two.collect_garbage(GRACE_S) == 0
            with pytest.raises(Unavailable, match="being removed"):
                replicas.upload(replicas.one)
        replicas.get_older(settled_s)
        assert replicas.two.collect_garbage(GRACE_S) == 1
        replicas.upload(replicas.one)

    def test_what_it_has_not_begun_to_remove_is_there_again(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first removal fails; uploads of the others are not refused for it."""
        for number in range(3):
            replicas.upload_other(bytes([number]))
            replicas.one.delete_prefix("demo", "other")
        replicas.get_older(GRACE_S + 1)
        monkeypatch.setattr(replicas.two.objects, "delete", fail)
        with pytest.raises(Unavailable, match="no answer"):
            replicas.two.collect_garbage(GRACE_S)
        outcomes = []
        for number in range(3):
            try:
                replicas.upload_other(bytes([number]))
                outcomes.append("stored")
            except Unavailable:
                outcomes.append("refused")
        assert sorted(outcomes) == ["refused", "stored", "stored"]

    def test_a_process_that_died_in_it_is_followed_at_the_next_start(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replicas.leave_garbage()

        def die(*_: object) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(replicas.two.objects, "delete", die)
            patch.setattr(replicas.two.catalog, "append", die)
            with pytest.raises(KeyboardInterrupt):
                replicas.two.collect_garbage(GRACE_S)
        with replicas.one.objects.removing() as settled_s:
            assert settled_s is not None
        replicas.get_older(settled_s)
        replicas.one.finish_removals()
        assert replicas.handles.stored() == []
        replicas.upload(replicas.one)

    def test_a_row_that_comes_after_the_first_look_saves_its_content(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replicas.leave_garbage()
        before(monkeypatch, replicas.two.catalog, "write", lambda: replicas.upload(replicas.one))
        assert replicas.two.collect_garbage(0) == 0


class TestAContentThatIsShared:
    @pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
    def test_an_upload_that_found_it_does_not_lose_it_with_the_other_prefix(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch, grace_s: float
    ) -> None:
        """The upload stores nothing, as a sibling has the content; then the sibling goes."""
        replicas.upload(replicas.one)
        replicas.get_older(GRACE_S + 1)

        def delete_and_collect() -> None:
            replicas.two.delete_prefix("demo", "e2e")
            replicas.two.collect_garbage(grace_s)

        before(monkeypatch, replicas.one.catalog, "write", delete_and_collect)
        if grace_s:
            assert replicas.upload(replicas.one, "other").digest == replicas.digest
        else:
            with pytest.raises(Unavailable, match="send it again"):
                replicas.upload(replicas.one, "other")

    def test_an_altered_file_is_put_back_by_the_same_upload(self, replicas: Replicas) -> None:
        replicas.upload(replicas.one)
        for damaged in (b"CONTENT", b"cont"):
            replicas.handles.plant(f"{replicas.owner}/{replicas.digest}.safetensors", damaged)
            version = replicas.upload(replicas.two, "e2e")
            with replicas.one.open_content("demo", version) as file:
                assert file.read() == DATA


class TestCollections:
    def test_two_at_one_time_remove_each_content_once(self, replicas: Replicas) -> None:
        replicas.leave_garbage()
        removed: list[int] = []
        barrier = threading.Barrier(2)

        def work(registry: Registry) -> None:
            barrier.wait()
            removed.append(registry.collect_garbage(GRACE_S))

        threads = [
            threading.Thread(target=work, args=(registry,))
            for registry in (replicas.one, replicas.two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(removed) == [0, 1]
        assert replicas.handles.stored() == []

    def test_more_than_a_turn_has_are_all_removed_and_what_is_needed_stays(
        self, replicas: Replicas
    ) -> None:
        version = replicas.upload(replicas.one)
        for number in range(70):
            replicas.handles.plant(f"{replicas.owner}/{number:064x}.safetensors", b"one")
        replicas.get_older(GRACE_S + 1)
        assert replicas.two.collect_garbage(GRACE_S) == 70
        assert replicas.handles.stored() == [f"{replicas.owner}/{version.digest}.safetensors"]

    def test_one_that_is_to_end_ends_after_the_turn_that_runs(self, replicas: Replicas) -> None:
        replicas.leave_garbage()
        assert replicas.two.collect_garbage(GRACE_S, lambda: True) == 0
        assert len(replicas.handles.stored()) > 0
        assert replicas.two.collect_garbage(GRACE_S) == 1

    def test_contents_of_a_tenant_that_is_gone_follow_it_and_then_its_trace(
        self, replicas: Replicas
    ) -> None:
        replicas.upload(replicas.one)
        replicas.get_older(GRACE_S + 1)
        with replicas.one.catalog.write() as (connection, _):
            connection.execute(tenants.delete())
            row = {"owner": replicas.owner, "retired_at": 1000}
            connection.execute(retired_owners.insert().values(row))
        assert replicas.two.collect_garbage(GRACE_S) == 1
        assert replicas.handles.stored() == []
        with replicas.one.catalog.read() as connection:
            assert connection.execute(retired_owners.select()).all() == []
