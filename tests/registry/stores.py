"""A folder store and an S3 store behind one set of handles, for tests that hold of both."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.registry.storage.local import FolderStore
from app.registry.storage.s3 import S3Store
from app.registry.storage.store import ObjectStore
from app.registry.storage.url import S3Location, parse_location
from tests.s3_server import S3Server

OWNER = "a1" * 16
DIGEST = "0123456789abcdef" * 4


class StoreHandles(Protocol):
    """A store, and what tests do behind its back."""

    store: ObjectStore
    scratch: Path

    def another(self) -> ObjectStore:
        """The same store as another process sees it."""

    def get_older(self, seconds: float) -> None:
        """Lets everything that is stored age."""

    def plant(self, path: str, data: bytes) -> None:
        """Puts something there that the store did not, or alters what it did."""

    def stored(self) -> list[str]:
        """Paths of all that is stored."""


@dataclass
class FolderHandles:
    """A folder store below a test's folder."""

    folder: Path
    store: FolderStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.folder / "store")
        self.scratch = self.store.root

    def another(self) -> FolderStore:
        return FolderStore(self.folder / "store")

    def get_older(self, seconds: float) -> None:
        then = time.time() - seconds
        for path in self.store.root.glob("*/*.safetensors"):
            os.utime(path, (then, then))

    def plant(self, path: str, data: bytes) -> None:
        (self.store.root / path).parent.mkdir(exist_ok=True)
        (self.store.root / path).write_bytes(data)

    def stored(self) -> list[str]:
        root = self.store.root
        found = [path for path in root.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(root)) for path in found)


@dataclass
class S3Handles:
    """An S3 store in a bucket of its own.

    Its patience is that of a busy machine, unless a test is about it.
    """

    server: S3Server
    folder: Path
    port: int | None = None
    timeout_s: float = 240.0
    ahead_s: float = 0.0
    store: S3Store = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = self.server.new_bucket()
        self.scratch = self.folder / "scratch"
        self.store = self.another()

    def another(self) -> S3Store:
        location = parse_location(self.server.url(self.bucket, "some/where", self.port))
        assert isinstance(location, S3Location)
        return S3Store(
            location,
            self.scratch,
            timeout_s=self.timeout_s,
            clock=lambda: time.time() + self.ahead_s,
        )

    def get_older(self, seconds: float) -> None:
        self.ahead_s += seconds

    def plant(self, path: str, data: bytes) -> None:
        self.server.request("PUT", f"/{self.bucket}/some/where/{path}", data)

    def stored(self) -> list[str]:
        listing = self.server.request("GET", f"/{self.bucket}?list-type=2").decode()
        keys = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        paths = [key.removeprefix("some/where/") for key in keys]
        return sorted(path for path in paths if path != ".probe")


def put(store: ObjectStore, data: bytes, owner: str = OWNER, digest: str = DIGEST) -> None:
    """Stores bytes in one call."""
    with store.stage() as staged:
        staged.write(data)
        store.commit(owner, digest, staged.path)


def get(store: ObjectStore, owner: str = OWNER, digest: str = DIGEST) -> bytes | None:
    """The bytes of a content, None if it is not there."""
    file = store.open(owner, digest)
    if file is None:
        return None
    with file:
        return file.read()


def temps(scratch: Path) -> list[Path]:
    """The files in transit that are left."""
    return list((scratch / ".staging").glob("*"))
