"""How busy a server is, in one byte that its worker process can read at any time."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import IO

_MOST = 255


class LoadSignal:
    """The number of rows that a server decodes, in memory that two processes share.

    The server makes one and sets `rows`; the worker opens it by its file descriptor, which it
    inherits. Neither ever waits for the other.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._memory = mmap.mmap(file.fileno(), 1)

    @classmethod
    def create(cls) -> LoadSignal:
        """A new one, which says 0."""
        file = tempfile.TemporaryFile()  # noqa: SIM115  # it is open as long as the signal
        file.truncate(1)
        return cls(file)

    @classmethod
    def open(cls, fd: int) -> LoadSignal:
        """That of the process that this one has inherited `fd` from."""
        return cls(os.fdopen(fd, "r+b"))

    @property
    def fd(self) -> int:
        """The file descriptor that a child process must inherit."""
        return self._file.fileno()

    @property
    def rows(self) -> int:
        """Rows that are decoded or wait; 255 also stands for more."""
        return self._memory[0]

    @rows.setter
    def rows(self, rows: int) -> None:
        self._memory[0] = min(rows, _MOST)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        self._file.close()
