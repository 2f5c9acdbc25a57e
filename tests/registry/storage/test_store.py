"""What holds of every object store: a folder, and a bucket on an S3 server.

The server is moto's; `tests/s3_server.py` says what it lacks of a real one. Ages are made by moving
files' times, or the server's clock.
"""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.registry.storage.store import ObjectStore
from tests.registry.stores import (
    DIGEST,
    OWNER,
    FolderHandles,
    S3Handles,
    StoreHandles,
    get,
    put,
    temps,
)

OTHER = "f" * 64


@pytest.fixture(params=["folder", "s3"])
def handles(request: pytest.FixtureRequest, tmp_path: Path) -> StoreHandles:
    if request.param == "folder":
        return FolderHandles(tmp_path)
    return S3Handles(request.getfixturevalue("s3"), tmp_path)


@pytest.fixture
def store(handles: StoreHandles) -> ObjectStore:
    return handles.store


class TestContents:
    def test_a_committed_content_is_read_back(self, handles: StoreHandles) -> None:
        put(handles.store, b"content")
        for store in (handles.store, handles.another()):
            assert get(store) == b"content"
            assert store.size(OWNER, DIGEST) == 7
            assert store.start(OWNER, DIGEST, 4) == b"cont"
            assert store.start(OWNER, DIGEST, 100) == b"content"
            with store.local(OWNER, DIGEST) as path:
                assert path is not None
                assert path.read_bytes() == b"content"
        assert temps(handles.scratch) == []

    def test_what_is_not_there_is_none(self, handles: StoreHandles) -> None:
        store = handles.store
        assert store.size(OWNER, DIGEST) is None
        assert store.open(OWNER, DIGEST) is None
        assert store.start(OWNER, DIGEST, 8) is None
        with store.local(OWNER, DIGEST) as path:
            assert path is None
        assert not store.delete(OWNER, DIGEST)
        assert list(store.objects(OWNER)) == []
        assert handles.stored() == []
        assert temps(handles.scratch) == []

    def test_an_empty_content_is_there(self, store: ObjectStore) -> None:
        put(store, b"")
        assert store.size(OWNER, DIGEST) == 0
        assert store.start(OWNER, DIGEST, 8) == b""
        assert get(store) == b""

    def test_a_staged_file_that_is_not_committed_leaves_nothing(
        self, handles: StoreHandles
    ) -> None:
        with handles.store.stage() as staged:
            staged.write(b"content")
            assert staged.path.read_bytes() == b"content"
        assert handles.stored() == []
        assert temps(handles.scratch) == []

    def test_an_upload_replaces_what_was_altered_or_cut_short(self, handles: StoreHandles) -> None:
        put(handles.store, b"content")
        for damaged in (b"CONTENT", b"con", b""):
            handles.plant(f"{OWNER}/{DIGEST}.safetensors", damaged)
            assert get(handles.store) == damaged
            put(handles.store, b"content")
            assert get(handles.store) == b"content"

    def test_owners_and_contents_are_kept_apart(self, store: ObjectStore) -> None:
        put(store, b"one")
        put(store, b"two", owner="b2" * 16)
        put(store, b"three", digest=OTHER)
        assert get(store) == b"one"
        assert get(store, owner="b2" * 16) == b"two"
        assert get(store, digest=OTHER) == b"three"
        assert store.delete("b2" * 16, DIGEST)
        assert get(store) == b"one"

    def test_a_content_that_is_open_survives_deletion_and_replacement(
        self, store: ObjectStore
    ) -> None:
        put(store, b"content")
        first, second = store.open(OWNER, DIGEST), store.open(OWNER, DIGEST)
        assert first is not None
        assert second is not None
        put(store, b"another")
        with first:
            assert first.read() == b"content"
        assert store.delete(OWNER, DIGEST)
        with second:
            assert second.read() == b"content"
        assert get(store) is None

    def test_a_big_content_passes_without_being_held_in_memory(self, handles: StoreHandles) -> None:
        block = os.urandom(1 << 20)
        with handles.store.stage() as staged:
            for _ in range(13):
                staged.write(block)
            staged.write(b"end")
            handles.store.commit(OWNER, DIGEST, staged.path)
        assert handles.store.size(OWNER, DIGEST) == (13 << 20) + 3
        tracemalloc.start()
        with handles.store.local(OWNER, DIGEST) as path:
            assert path is not None
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        assert found == hashlib.sha256(block * 13 + b"end").hexdigest()
        assert peak < 6 << 20

    def test_many_at_once_do_not_mix(self, store: ObjectStore) -> None:
        digests = [f"{number:064x}" for number in range(6)]
        barrier = threading.Barrier(12)

        def work(number: int) -> bytes | None:
            barrier.wait()
            digest = digests[number % 6]
            put(store, digest.encode() * 100, digest=digest)
            return get(store, digest=digest)

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(work, range(12)))
        assert found == [digests[number % 6].encode() * 100 for number in range(12)]
        assert sorted(each.digest for each in store.objects(OWNER)) == digests


class TestAges:
    def test_a_content_ages_until_it_is_stored_again(self, handles: StoreHandles) -> None:
        put(handles.store, b"content")
        handles.get_older(100)
        [found] = handles.store.objects(OWNER)
        assert 99 < found.age_s < 200
        assert found.nbytes == 7


class TestRemoving:
    def test_a_content_is_removed_once(self, handles: StoreHandles) -> None:
        put(handles.store, b"content")
        with handles.store.removing() as settled_s:
            assert settled_s is not None
            assert handles.store.delete(OWNER, DIGEST)
            assert not handles.store.delete(OWNER, DIGEST)
        assert handles.stored() == []

    def test_a_removal_that_another_began_is_over_before_it_is_done_again(
        self, handles: StoreHandles
    ) -> None:
        """In a folder the other has ended, as one holds the lock; a request may come late."""
        with handles.store.removing() as first:
            assert first is not None
            with handles.another().removing() as second:
                assert second is None or second >= 900
        with handles.another().removing() as third:
            assert third == first


class TestListing:
    def test_an_owners_contents_are_listed_and_nothing_else(self, handles: StoreHandles) -> None:
        put(handles.store, b"one")
        put(handles.store, b"three", digest=OTHER)
        put(handles.store, b"two", owner="b2" * 16)
        handles.plant(f"{OWNER}/notes.txt", b"kept")
        handles.plant(f"{OWNER}/{'A' * 64}.safetensors", b"kept")
        handles.plant(f"{OWNER}0/{DIGEST}.safetensors", b"another's")
        found = {each.digest: each.nbytes for each in handles.store.objects(OWNER)}
        assert found == {DIGEST: 3, OTHER: 5}

    def test_more_contents_than_a_page_has_are_all_listed(self, handles: StoreHandles) -> None:
        for number in range(1005):
            handles.plant(f"{OWNER}/{number:064x}.safetensors", b"one")
        found = [each.digest for each in handles.store.objects(OWNER)]
        assert sorted(found) == [f"{number:064x}" for number in range(1005)]


class TestHostileNames:
    @pytest.mark.parametrize(
        "owner", ["", ".", "..", "a/b", "/etc", "A", "a.b", "a\0", "a\n", ".staging", "é", "a" * 65]
    )
    def test_an_owner_that_could_be_a_path_is_refused(
        self, handles: StoreHandles, owner: str
    ) -> None:
        self.refuse(handles, owner, DIGEST)
        with pytest.raises(InvalidRequest):
            list(handles.store.objects(owner))

    @pytest.mark.parametrize(
        "digest",
        ["", "..", "../" + "a" * 61, DIGEST[:-1], DIGEST + "0", DIGEST.upper(), DIGEST + "\n"],
    )
    def test_a_digest_that_could_be_a_path_is_refused(
        self, handles: StoreHandles, digest: str
    ) -> None:
        self.refuse(handles, OWNER, digest)

    def refuse(self, handles: StoreHandles, owner: str, digest: str) -> None:
        store = handles.store
        uses: list[Callable[[str, str], object]] = [
            store.size,
            store.open,
            store.delete,
            lambda owner, digest: store.start(owner, digest, 8),
            lambda owner, digest: store.local(owner, digest).__enter__(),
        ]
        for use in uses:
            with pytest.raises(InvalidRequest):
                use(owner, digest)
        with pytest.raises(InvalidRequest), store.stage() as staged:
            store.commit(owner, digest, staged.path)
        assert handles.stored() == []

    def test_only_what_was_staged_here_can_be_committed(
        self, handles: StoreHandles, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        outside = handles.scratch / ".staging" / ".." / ".." / "secret"
        for path in (secret, outside):
            with pytest.raises(InvalidRequest):
                handles.store.commit(OWNER, DIGEST, path)
        assert handles.stored() == []


class TestSweeping:
    def test_what_is_being_staged_stays(self, handles: StoreHandles) -> None:
        with handles.store.stage() as staged:
            staged.write(b"content")
            assert handles.another().sweep_temps() == 0
            handles.store.commit(OWNER, DIGEST, staged.path)
        assert get(handles.store) == b"content"

    def test_what_nobody_has_locked_is_removed(self, handles: StoreHandles) -> None:
        assert handles.store.sweep_temps() == 0
        with handles.store.stage():
            abandoned = handles.scratch / ".staging" / "old.part"
            abandoned.write_bytes(b"half")
            assert handles.store.sweep_temps() == 1
        assert temps(handles.scratch) == []
