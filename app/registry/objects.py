"""What an object store promises: immutable contents under (owner, digest), whole or not at all.

Knows nothing about names, versions or the catalog. `FolderStore` is the embedded one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class StoredObject:
    """One content of the store; `age_s` counts from when it was stored or last touched."""

    digest: str
    nbytes: int
    age_s: float


class StagedFile(Protocol):
    """A file that is being received: readable at `path`, invisible in the store until commit."""

    @property
    def path(self) -> Path:
        """Where the file lies; a local folder."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; InsufficientStorage if the disk takes no more."""


class ObjectStore(Protocol):
    """Where prefix files are kept. Every method is safe to call from many threads.

    `owner` and `digest` are checked by the store: anything but an opaque owner key and 64
    hexadecimal digits is an InvalidRequest and touches nothing.
    """

    def stage(self) -> AbstractContextManager[StagedFile]:
        """A new staged file, removed at the end of the block unless it was committed."""

    def commit(self, owner: str, digest: str, staged: Path) -> None:
        """Makes a staged file the content of (owner, digest), durably, replacing what is there.

        Returns only when the content would survive a loss of power; InsufficientStorage if the
        disk takes no more, and then the staged file is still to be discarded by its block.
        """

    def size(self, owner: str, digest: str) -> int | None:
        """Bytes of the content, None if it is not there."""

    def path(self, owner: str, digest: str) -> Path | None:
        """A local file with the content, None if it is not there; never a link."""

    def open(self, owner: str, digest: str) -> BinaryIO | None:
        """The content for reading, None if it is not there; survives deletion while open."""

    def touch(self, owner: str, digest: str) -> None:
        """Makes the content young again, so that garbage collection waits; missing is fine."""

    def delete(self, owner: str, digest: str, *, older_than_s: float = 0.0) -> bool:
        """Removes the content unless it is younger; whether something was removed."""

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, in no order."""

    def sweep_temps(self) -> int:
        """Removes staged files whose process has ended; how many. Called at start."""
