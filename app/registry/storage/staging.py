"""Files in transit: received for a store or fetched from one, gone when their work is done.

Each is locked by the process that works on it, so that what a dead process left can be told from
what is in use. Knows nothing about owners, digests or stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db.errors import storage_faults
from app.errors import InsufficientStorage
from app.registry.storage.safe_folder import READ_FLAGS, SafeFolder, regular_file

FOLDER = ".staging"
"""Name of the folder below the root."""
_NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileInTransit:
    """A private file (0600) in the staging folder, locked as long as its process works on it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; InsufficientStorage if the disk takes no more."""
        rest = memoryview(data).cast("B")
        with storage_faults("storing the prefix file"):
            while rest:
                written = os.write(self._descriptor, rest)
                if written == 0:
                    raise InsufficientStorage("storing the prefix file failed: nothing written")
                rest = rest[written:]


class Staging:
    """The staging folder of a root, made when it is first needed."""

    def __init__(self, root: SafeFolder) -> None:
        self._root = root

    @contextmanager
    def file(self) -> Iterator[FileInTransit]:
        """A new empty file, removed at the end of the block unless it was moved away."""
        with storage_faults("storing the prefix file"):
            name, descriptor = self._create()
        try:
            yield FileInTransit(self._root.path / FOLDER / name, descriptor)
        finally:
            # What cannot be removed now is swept at the next start.
            with contextlib.suppress(OSError), self._root.folder(FOLDER) as folder:
                os.unlink(name, dir_fd=folder)
            os.close(descriptor)

    def holds(self, path: Path) -> bool:
        """Whether the path is that of a file of this folder."""
        return path.parent == self._root.path / FOLDER

    def sweep(self) -> int:
        """Removes the files whose process has ended; how many."""
        with storage_faults("sweeping temporary files"), self._root.existing(FOLDER) as folder:
            names = [] if folder is None else os.listdir(folder)
            return sum(folder is not None and _remove_abandoned(name, folder) for name in names)

    def _create(self) -> tuple[str, int]:
        self._root.make(FOLDER)
        with self._root.folder(FOLDER) as folder:
            while True:
                name = f"{secrets.token_hex(16)}.part"
                descriptor = os.open(name, _NEW_FILE_FLAGS, 0o600, dir_fd=folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # A sweep may have taken the file for abandoned before it was locked.
                if os.fstat(descriptor).st_nlink:
                    return name, descriptor
                os.close(descriptor)


def _remove_abandoned(name: str, folder: int) -> bool:
    """Removes a staged file that no living process has locked."""
    if regular_file(name, folder) is None:
        return False
    try:
        descriptor = os.open(name, READ_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
