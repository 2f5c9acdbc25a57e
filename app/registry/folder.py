"""The embedded object store: a local folder, `<root>/<owner>/<digest>.safetensors`.

A file is written beside the store, synced, renamed into place, and its folder synced: it is there
whole or not at all. Folders are opened by descriptor and links are never followed, so nothing that
is planted in the store leads out of it. Knows nothing about names, versions or the catalog.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.errors import InsufficientStorage, InvalidRequest
from app.registry.faults import storage_faults
from app.registry.objects import StoredObject
from app.registry.records import check_digest

_OWNER = re.compile(r"[0-9a-z]{1,64}")
_STAGING = ".staging"
_SUFFIX = ".safetensors"
_OBJECT_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class StagedFolderFile:
    """A file in the staging folder, locked for as long as its process works on it."""

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


class FolderStore:
    """An `ObjectStore` in a folder. Uploads are readable by the server's user alone."""

    def __init__(self, root: Path) -> None:
        """Creates the folder (0700) if it is missing; what is there keeps its permissions."""
        with storage_faults(f"creating the store {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root = root.resolve(strict=True)

    @contextmanager
    def stage(self) -> Iterator[StagedFolderFile]:
        """A new staged file, removed at the end of the block unless it was committed."""
        with storage_faults("storing the prefix file"):
            name, descriptor = self._create_temp()
        try:
            yield StagedFolderFile(self.root / _STAGING / name, descriptor)
        finally:
            # What cannot be removed now is swept at the next start.
            with contextlib.suppress(OSError), self._folder(_STAGING) as staging:
                os.unlink(name, dir_fd=staging)
            os.close(descriptor)

    def commit(self, owner: str, digest: str, staged: Path) -> None:
        """Makes a staged file the content of (owner, digest), durably, replacing what is there."""
        target = _file_name(owner, digest)
        if staged.parent != self.root / _STAGING:
            raise InvalidRequest("only a file staged in this store can be committed")
        with storage_faults("storing the prefix file"), self._folder(_STAGING) as staging:
            descriptor = os.open(staged.name, _READ_FLAGS, dir_fd=staging)
            try:
                os.utime(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._make_folder(owner)
            with self._folder(owner) as folder:
                os.rename(staged.name, target, src_dir_fd=staging, dst_dir_fd=folder)
                os.fsync(folder)

    def size(self, owner: str, digest: str) -> int | None:
        """Bytes of the content, None if it is not there."""
        name = _file_name(owner, digest)
        with storage_faults("looking for a prefix file"), self._existing(owner) as folder:
            found = None if folder is None else _status(name, folder)
            return None if found is None else found.st_size

    def path(self, owner: str, digest: str) -> Path | None:
        """The content's file, None if it is not there; never a link."""
        if self.size(owner, digest) is None:
            return None
        return self.root / owner / _file_name(owner, digest)

    def open(self, owner: str, digest: str) -> BinaryIO | None:
        """The content for reading, None if it is not there; survives deletion while open."""
        name = _file_name(owner, digest)
        with storage_faults("opening a prefix file"), self._existing(owner) as folder:
            if folder is None or _status(name, folder) is None:
                return None
            try:
                descriptor = os.open(name, _READ_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                return None
            return os.fdopen(descriptor, "rb")

    def touch(self, owner: str, digest: str) -> None:
        """Makes the content young again, so that garbage collection waits; missing is fine."""
        name = _file_name(owner, digest)
        with (
            storage_faults("touching a prefix file"),
            self._existing(owner) as folder,
            contextlib.suppress(FileNotFoundError),
        ):
            if folder is not None:
                os.utime(name, dir_fd=folder, follow_symlinks=False)

    def delete(self, owner: str, digest: str, *, older_than_s: float = 0.0) -> bool:
        """Removes the content unless it is younger; whether something was removed."""
        name = _file_name(owner, digest)
        with storage_faults("removing a prefix file"), self._existing(owner) as folder:
            found = None if folder is None else _status(name, folder)
            if folder is None or found is None or time.time() - found.st_mtime < older_than_s:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            return True

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, in no order."""
        _check_owner(owner)
        with storage_faults("listing the store"), self._existing(owner) as folder:
            names = [] if folder is None else os.listdir(folder)
            for name in names:
                digest = name.removesuffix(_SUFFIX)
                if folder is None or not _OBJECT_NAME.fullmatch(name):
                    continue
                found = _status(name, folder)
                if found is not None:
                    yield StoredObject(digest, found.st_size, time.time() - found.st_mtime)

    def sweep_temps(self) -> int:
        """Removes staged files whose process has ended; how many. Called at start."""
        with storage_faults("sweeping temporary files"), self._existing(_STAGING) as staging:
            names = [] if staging is None else os.listdir(staging)
            return sum(staging is not None and _remove_abandoned(name, staging) for name in names)

    def _create_temp(self) -> tuple[str, int]:
        self._make_folder(_STAGING)
        with self._folder(_STAGING) as staging:
            while True:
                name = f"{secrets.token_hex(16)}.part"
                descriptor = os.open(name, _NEW_FILE_FLAGS, 0o600, dir_fd=staging)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # A sweep may have taken the file for abandoned before it was locked.
                if os.fstat(descriptor).st_nlink:
                    return name, descriptor
                os.close(descriptor)

    def _make_folder(self, name: str) -> None:
        with self._folder(".") as root:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)
            os.fsync(root)

    @contextmanager
    def _folder(self, name: str) -> Iterator[int]:
        """A descriptor of a folder of the store; OSError if it is missing or a link."""
        root = os.open(self.root, _FOLDER_FLAGS)
        try:
            descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=root)
        finally:
            os.close(root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _existing(self, name: str) -> Iterator[int | None]:
        """As `_folder`, but None if the folder is missing."""
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self._folder(name))
            except FileNotFoundError:
                descriptor = None
            yield descriptor


def _check_owner(owner: str) -> None:
    if not _OWNER.fullmatch(owner):
        raise InvalidRequest("the owner of a content is 1 to 64 digits or lower-case letters")


def _file_name(owner: str, digest: str) -> str:
    _check_owner(owner)
    return check_digest(digest) + _SUFFIX


def _status(name: str, folder: int) -> os.stat_result | None:
    """Facts about a regular file; None if there is none or something else has its name."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _remove_abandoned(name: str, staging: int) -> bool:
    """Removes a staged file that no living process has locked."""
    if _status(name, staging) is None:
        return False
    try:
        descriptor = os.open(name, _READ_FLAGS, dir_fd=staging)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=staging)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
