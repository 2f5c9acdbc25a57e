"""A folder that is entered by descriptor: links in it are never followed.

So nothing that is planted in the folder leads out of it. Knows nothing about what is kept there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db.errors import storage_faults
from app.errors import PolyprefixError

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
