"""Local folders that are safe to write to, and the files in transit in them.

A folder is entered by descriptor and links in it are never followed, so nothing that is planted in
it leads out of it. A file in transit is locked by the process that works on it, so that a sweep can
tell what a dead process left from what is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db.errors import storage_faults
from app.errors import InsufficientStorage, InvalidRequest, PolyprefixError

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""How a file below a root is opened: no link is followed and no pipe is waited for."""


class SafeFolder:
    """A folder and the folders right below it."""

    def __init__(self, path: Path) -> None:
        """Creates the folder (0700) if it is missing; what is there keeps its permissions."""
        doing = f"creating the folder {path}"
        try:
            with storage_faults(doing):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.path = path.resolve(strict=True)
        except FileNotFoundError as fault:
            raise PolyprefixError(f"{doing} failed: no folder can be made there") from fault

    def make(self, name: str) -> None:
        """Makes a folder (0700) unless it is there, durably."""
        with self.folder(".") as root:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)
            os.fsync(root)

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """A descriptor of a folder; OSError if it is missing or a link."""
        root = os.open(self.path, _FOLDER_FLAGS)
        try:
            descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=root)
        finally:
            os.close(root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def existing(self, name: str) -> Iterator[int | None]:
        """As `folder`, but None if the folder is missing."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self.folder(name))
            except FileNotFoundError:
                descriptor = None
            yield descriptor


def regular_file(name: str, folder: int) -> os.stat_result | None:
    """Facts about a regular file; None if there is none or something else has its name."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


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
    """What all stores do with files in transit; they lie in a folder below a local root.

    The folder is made when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = SafeFolder(root)

    @contextmanager
    def stage(self) -> Iterator[FileInTransit]:
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

    def check_staged(self, path: Path) -> None:
        """InvalidRequest unless the path is that of a file of this folder."""
        if path.parent != self._root.path / FOLDER:
            raise InvalidRequest("only a file staged in this store can be committed")

    def sweep_temps(self) -> int:
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
