"""The folder store: whole or not at all, durable before it is visible, never led outside."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.errors import InsufficientStorage, InvalidRequest, PolyprefixError, Unavailable
from app.registry.folder import FolderStore

OWNER = "a1" * 16
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, data: bytes, owner: str = OWNER, digest: str = DIGEST) -> None:
    with store.stage() as staged:
        staged.write(data)
        store.commit(owner, digest, staged.path)


def temps(store: FolderStore) -> list[Path]:
    return list((store.root / ".staging").glob("*"))


def test_a_committed_content_is_read_back(store: FolderStore) -> None:
    put(store, b"content")
    file = store.open(OWNER, DIGEST)
    assert file is not None
    with file:
        assert file.read() == b"content"
    path = store.path(OWNER, DIGEST)
    assert path is not None
    assert path.read_bytes() == b"content"
    assert store.size(OWNER, DIGEST) == 7
    assert temps(store) == []


def test_what_is_not_there_is_none(store: FolderStore) -> None:
    assert store.size(OWNER, DIGEST) is None
    assert store.path(OWNER, DIGEST) is None
    assert store.open(OWNER, DIGEST) is None
    assert not store.delete(OWNER, DIGEST)
    store.touch(OWNER, DIGEST)
    assert list(store.objects(OWNER)) == []


def test_a_staged_file_that_is_not_committed_leaves_nothing(store: FolderStore) -> None:
    with store.stage() as staged:
        staged.write(b"half")
        assert temps(store) == [staged.path]
    assert temps(store) == []
    assert list(store.objects(OWNER)) == []


def test_only_the_servers_user_can_read_uploads(store: FolderStore) -> None:
    put(store, b"content")
    folder = store.root / OWNER
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (store.root, folder, *folder.iterdir())]
    assert modes == [0o700, 0o700, 0o600]


def test_a_content_that_is_open_survives_its_deletion(store: FolderStore) -> None:
    put(store, b"content")
    file = store.open(OWNER, DIGEST)
    assert file is not None
    with file:
        assert store.delete(OWNER, DIGEST)
        assert file.read() == b"content"
    assert store.open(OWNER, DIGEST) is None


def test_young_contents_are_not_deleted(store: FolderStore) -> None:
    put(store, b"content")
    assert not store.delete(OWNER, DIGEST, older_than_s=60)
    long_ago = time.time() - 100
    os.utime(store.root / OWNER / f"{DIGEST}.safetensors", (long_ago, long_ago))
    [found] = store.objects(OWNER)
    assert 99 < found.age_s < 200
    store.touch(OWNER, DIGEST)
    assert not store.delete(OWNER, DIGEST, older_than_s=60)
    os.utime(store.root / OWNER / f"{DIGEST}.safetensors", (long_ago, long_ago))
    assert store.delete(OWNER, DIGEST, older_than_s=60)


@pytest.mark.parametrize(
    "owner", ["", ".", "..", "a/b", "/etc", "A", "a.b", "a\0", "a\n", ".staging", "é", "a" * 65]
)
def test_an_owner_that_could_be_a_path_is_refused(store: FolderStore, owner: str) -> None:
    for use in (store.size, store.path, store.open, store.touch, store.delete):
        with pytest.raises(InvalidRequest):
            use(owner, DIGEST)
    with pytest.raises(InvalidRequest):
        list(store.objects(owner))
    with pytest.raises(InvalidRequest), store.stage() as staged:
        store.commit(owner, DIGEST, staged.path)


@pytest.mark.parametrize(
    "digest", ["", "..", "../" + "a" * 61, DIGEST[:-1], DIGEST + "0", DIGEST.upper(), DIGEST + "\n"]
)
def test_a_digest_that_could_be_a_path_is_refused(store: FolderStore, digest: str) -> None:
    for use in (store.size, store.path, store.open, store.touch, store.delete):
        with pytest.raises(InvalidRequest):
            use(OWNER, digest)


def test_only_what_was_staged_here_can_be_committed(store: FolderStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with pytest.raises(InvalidRequest):
        store.commit(OWNER, DIGEST, secret)
    with pytest.raises(InvalidRequest):
        store.commit(OWNER, DIGEST, store.root / ".staging" / ".." / ".." / "secret")
    assert secret.read_bytes() == b"secret"


class TestPlantedLinks:
    def test_a_link_in_place_of_a_content_is_not_followed(
        self, store: FolderStore, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        put(store, b"other", digest="f" * 64)
        (store.root / OWNER / f"{DIGEST}.safetensors").symlink_to(secret)
        assert store.open(OWNER, DIGEST) is None
        assert store.path(OWNER, DIGEST) is None
        assert store.size(OWNER, DIGEST) is None
        assert not store.delete(OWNER, DIGEST)
        assert [found.digest for found in store.objects(OWNER)] == ["f" * 64]
        put(store, b"content")
        assert store.size(OWNER, DIGEST) == 7
        assert secret.read_bytes() == b"secret"

    def test_a_link_in_place_of_an_owners_folder_is_not_followed(
        self, store: FolderStore, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / f"{DIGEST}.safetensors").write_bytes(b"secret")
        (store.root / OWNER).symlink_to(outside)
        for use in (store.size, store.path, store.open, store.touch, store.delete):
            with pytest.raises(PolyprefixError, match="in the place of"):
                use(OWNER, DIGEST)
        with pytest.raises(PolyprefixError, match="in the place of"):
            put(store, b"content")
        assert (outside / f"{DIGEST}.safetensors").read_bytes() == b"secret"

    def test_a_link_in_place_of_the_staging_folder_is_not_followed(
        self, store: FolderStore, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"kept")
        (store.root / ".staging").symlink_to(outside)
        with pytest.raises(PolyprefixError, match="in the place of"):
            put(store, b"content")
        with pytest.raises(PolyprefixError, match="in the place of"):
            store.sweep_temps()
        assert [path.name for path in outside.iterdir()] == ["file"]

    def test_a_link_among_the_staged_files_is_not_followed(
        self, store: FolderStore, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        with store.stage() as staged:
            link = staged.path.with_name("link")
            link.symlink_to(secret)
            with pytest.raises(PolyprefixError, match="in the place of"):
                store.commit(OWNER, DIGEST, link)
        assert store.sweep_temps() == 0
        assert secret.read_bytes() == b"secret"

    def test_a_pipe_in_place_of_a_content_does_not_block(self, store: FolderStore) -> None:
        put(store, b"other", digest="f" * 64)
        os.mkfifo(store.root / OWNER / f"{DIGEST}.safetensors")
        assert store.open(OWNER, DIGEST) is None

    def test_a_folder_in_place_of_a_content_is_an_error(self, store: FolderStore) -> None:
        (store.root / OWNER / f"{DIGEST}.safetensors").mkdir(parents=True)
        assert store.open(OWNER, DIGEST) is None
        with pytest.raises(PolyprefixError, match="in the place of"):
            put(store, b"content")
        assert temps(store) == []


class TestSweeping:
    def test_what_a_dead_process_staged_is_removed(self, store: FolderStore) -> None:
        script = (
            "import os, sys; from pathlib import Path; from app.registry.folder import FolderStore;"
            "staging = FolderStore(Path(sys.argv[1])).stage(); staged = staging.__enter__();"
            "staged.write(b'half'); os._exit(9)"
        )
        ended = subprocess.run([sys.executable, "-c", script, str(store.root)], check=False)
        assert ended.returncode == 9
        assert len(temps(store)) == 1
        assert store.sweep_temps() == 1
        assert temps(store) == []

    def test_what_is_being_staged_stays(self, store: FolderStore) -> None:
        with store.stage() as staged:
            assert FolderStore(store.root).sweep_temps() == 0
            staged.write(b"content")
            store.commit(OWNER, DIGEST, staged.path)
        assert store.size(OWNER, DIGEST) == 7

    def test_a_store_without_uploads_has_nothing_to_sweep(self, store: FolderStore) -> None:
        assert store.sweep_temps() == 0


class TestDurability:
    def test_the_file_is_synced_before_it_is_visible_and_its_folder_after(
        self, store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, b"other", digest="f" * 64)
        events: list[str] = []
        fsync, rename = os.fsync, os.rename

        def synced(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            events.append(f"sync {'file' if name.endswith('.part') else Path(name).name}")
            fsync(descriptor)

        def renamed(*args: str, src_dir_fd: int, dst_dir_fd: int) -> None:
            events.append("rename")
            rename(*args, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "rename", renamed)
        put(store, b"content")
        # The root is synced for the staging folder and for the owner's.
        assert events == ["sync store", "sync file", "sync store", "rename", f"sync {OWNER}"]

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (errno.ENOSPC, InsufficientStorage),
            (errno.EDQUOT, InsufficientStorage),
            (errno.EIO, InsufficientStorage),
            (errno.EROFS, InsufficientStorage),
            (errno.EFBIG, InsufficientStorage),
            (errno.EMFILE, Unavailable),
            (errno.EINTR, Unavailable),
            (errno.EACCES, PolyprefixError),
        ],
    )
    @pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "utime", "mkdir"])
    def test_a_failing_disk_leaves_nothing_half_written(
        self,
        store: FolderStore,
        monkeypatch: pytest.MonkeyPatch,
        call: str,
        code: int,
        error: type[PolyprefixError],
    ) -> None:
        def failing(*_args: object, **_kwargs: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            with pytest.raises(error):
                put(store, b"content")
        assert store.size(OWNER, DIGEST) is None
        store.sweep_temps()
        assert temps(store) == []
        put(store, b"content")
        assert store.size(OWNER, DIGEST) == 7

    def test_short_writes_are_continued(
        self, store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
        put(store, b"ten bytes.")
        assert store.size(OWNER, DIGEST) == 10

    def test_a_disk_that_takes_nothing_is_an_error(
        self, store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "write", lambda _fd, _data: 0)
        with pytest.raises(InsufficientStorage):
            put(store, b"content")
