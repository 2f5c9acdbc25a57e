"""The folder store: durable before it is visible, never led outside.

What holds of every store is in `test_objects.py`.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import InsufficientStorage, PolyprefixError, Unavailable
from app.registry.storage.local import FolderStore
from tests.registry.stores import DIGEST, OWNER, put, temps


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_only_the_servers_user_can_read_uploads(store: FolderStore) -> None:
    put(store, b"content")
    folder = store.root / OWNER
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (store.root, folder, *folder.iterdir())]
    assert modes == [0o700, 0o700, 0o600]


class TestPlantedLinks:
    def test_a_link_in_place_of_a_content_is_not_followed(
        self, store: FolderStore, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        put(store, b"other", digest="f" * 64)
        (store.root / OWNER / f"{DIGEST}.safetensors").symlink_to(secret)
        assert store.open(OWNER, DIGEST) is None
        with store.local(OWNER, DIGEST) as path:
            assert path is None
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
        for use in (store.size, store.open, store.delete):
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
        assert temps(store.root) == []


class TestSweeping:
    def test_what_a_dead_process_staged_is_removed(self, store: FolderStore) -> None:
        script = (
            "import os, sys; from pathlib import Path;"
            "from app.registry.storage.local import FolderStore;"
            "staging = FolderStore(Path(sys.argv[1])).stage(); staged = staging.__enter__();"
            "staged.write(b'half'); os._exit(9)"
        )
        ended = subprocess.run([sys.executable, "-c", script, str(store.root)], check=False)
        assert ended.returncode == 9
        assert len(temps(store.root)) == 1
        assert store.sweep_temps() == 1
        assert temps(store.root) == []


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
        assert temps(store.root) == []
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
