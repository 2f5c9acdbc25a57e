"""What an object store promises: immutable contents under (owner, digest), whole or not at all.

`FolderStore` is the embedded one, `S3Store`
the one that several servers share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from app.errors import InvalidRequest
from app.registry.types import check_digest

SUFFIX = ".safetensors"
"""What the name of every content ends with, after its digest."""
_OWNER = re.compile(r"[0-9a-z]{1,64}")


@dataclass(frozen=True)
class StoredObject:
    """One content of the store; `age_s` counts from when it was stored."""

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
    hexadecimal digits is an InvalidRequest and touches nothing. Any method may raise Unavailable;
    a remote store does so within a bounded time.
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

    def local(self, owner: str, digest: str) -> AbstractContextManager[Path | None]:
        """A local file with the content for the length of the block, None if it is not there.

        Never a link, and not to be written to. It is as the store gave it: whoever reads it checks
        what it says.
        """

    def open(self, owner: str, digest: str) -> BinaryIO | None:
        """The content for reading, None if it is not there; survives deletion while open."""

    def start(self, owner: str, digest: str, nbytes: int) -> bytes | None:
        """The first bytes of the content, fewer if it is shorter; None if it is not there."""

    def removing(self) -> AbstractContextManager[float | None]:
        """The right to remove contents, for the length of the block.

        Seconds after which a removal that somebody else began, and whose end is not known, is
        certainly over; None if another has the right now and this one must not be used.
        """

    def delete(self, owner: str, digest: str) -> bool:
        """Removes the content; whether it was there.

        If this fails, the removal may still be carried out late: see `removing`.
        """

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, in no order."""

    def sweep_temps(self) -> int:
        """Removes staged files whose process has ended; how many. Called at start."""

    def close(self) -> None:
        """Ends what runs beside the calls."""


def check_owner(owner: str) -> str:
    """The owner key itself, if it is one; InvalidRequest otherwise."""
    if not _OWNER.fullmatch(owner):
        raise InvalidRequest("the owner of a content is 1 to 64 digits or lower-case letters")
    return owner


def object_name(owner: str, digest: str) -> str:
    """`<digest>.safetensors`, if both are what they should be; InvalidRequest otherwise."""
    check_owner(owner)
    return check_digest(digest) + SUFFIX
