"""The embedded object store: a local folder, `<root>/<owner>/<digest>.safetensors`.

A file is written beside the store, synced, renamed into place, and its folder synced: it is there
whole or not at all. Links are never followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.db.errors import storage_faults
from app.registry.storage.staging import FOLDER, READ_FLAGS, Staging, regular_file
from app.registry.storage.store import SUFFIX, StoredObject, check_owner, object_name

_UNLOCKED_S = 20 * 60.0
"""How long a removal can take where no lock tells whether its process lives."""
_OBJECT_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


class FolderStore(Staging):
    """An `ObjectStore` in a folder. Uploads are readable by the server's user alone."""

    def __init__(self, root: Path) -> None:
        """Creates the folder (0700) if it is missing; what is there keeps its permissions."""
        super().__init__(root)
        self.root = self._root.path

    def commit(self, owner: str, digest: str, staged: Path) -> None:
        """Makes a staged file the content of (owner, digest), durably, replacing what is there."""
        target = object_name(owner, digest)
        self.check_staged(staged)
        with storage_faults("storing the prefix file"), self._root.folder(FOLDER) as staging:
            descriptor = os.open(staged.name, READ_FLAGS, dir_fd=staging)
            try:
                os.utime(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._root.make(owner)
            with self._root.folder(owner) as folder:
                os.rename(staged.name, target, src_dir_fd=staging, dst_dir_fd=folder)
                os.fsync(folder)

    def size(self, owner: str, digest: str) -> int | None:
        """Bytes of the content, None if it is not there."""
        name = object_name(owner, digest)
        with storage_faults("looking for a prefix file"), self._root.existing(owner) as folder:
            found = None if folder is None else regular_file(name, folder)
            return None if found is None else found.st_size

    @contextmanager
    def local(self, owner: str, digest: str) -> Iterator[Path | None]:
        """The content's own file, None if it is not there; never a link."""
        there = self.size(owner, digest) is not None
        yield self.root / owner / object_name(owner, digest) if there else None

    def open(self, owner: str, digest: str) -> BinaryIO | None:
        """The content for reading, None if it is not there; survives deletion while open."""
        name = object_name(owner, digest)
        with storage_faults("opening a prefix file"), self._root.existing(owner) as folder:
            if folder is None or regular_file(name, folder) is None:
                return None
            try:
                descriptor = os.open(name, READ_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                return None
            return os.fdopen(descriptor, "rb")

    def start(self, owner: str, digest: str, nbytes: int) -> bytes | None:
        """The first bytes of the content, fewer if it is shorter; None if it is not there."""
        file = self.open(owner, digest)
        if file is None:
            return None
        with file, storage_faults("reading a prefix file"):
            return file.read(nbytes)

    @contextmanager
    def removing(self) -> Iterator[float | None]:
        """The right to remove contents: one process has it at a time, until it ends or dies."""
        with storage_faults("locking the store"), self._root.folder(".") as root:
            try:
                fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
                settled_s: float | None = 0.0
            except BlockingIOError:
                settled_s = None
            except OSError:  # a folder on the network may know no locks
                settled_s = _UNLOCKED_S
            yield settled_s

    def delete(self, owner: str, digest: str) -> bool:
        """Removes the content; whether it was there."""
        name = object_name(owner, digest)
        with storage_faults("removing a prefix file"), self._root.existing(owner) as folder:
            found = None if folder is None else regular_file(name, folder)
            if folder is None or found is None:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            return True

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, in no order."""
        check_owner(owner)
        with storage_faults("listing the store"), self._root.existing(owner) as folder:
            names = [] if folder is None else os.listdir(folder)
            for name in names:
                digest = name.removesuffix(SUFFIX)
                if folder is None or not _OBJECT_NAME.fullmatch(name):
                    continue
                found = regular_file(name, folder)
                if found is not None:
                    yield StoredObject(digest, found.st_size, time.time() - found.st_mtime)

    def close(self) -> None:
        """Nothing runs beside the calls."""
