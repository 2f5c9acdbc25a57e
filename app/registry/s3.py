"""An object store in a bucket: `<prefix>/<owner>/<digest>.safetensors` on S3 or what speaks it.

Ages are by the store's own clock. Two marks may stand beside a content: `.touched` makes it young,
and `.removing` says that a removal has begun, whose request may be carried out late even if nobody
waits for its answer. Knows nothing about names, versions or the catalog.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.store import S3Store as Client

from app.errors import InvalidRequest, PolyprefixError, Unavailable
from app.registry.faults import storage_faults
from app.registry.location import S3Location
from app.registry.objects import SUFFIX, StoredObject, check_owner, object_name
from app.registry.root import READ_FLAGS, Root
from app.registry.s3_faults import s3_faults
from app.registry.staging import FileInTransit, Staging

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config

_TOUCHED = ".touched"
_REMOVING = ".removing"
_CLOCK = ".clock"
_KEY = re.compile(r"[0-9a-z]{1,64}/([0-9a-f]{64})(\.safetensors|\.touched|\.removing)")

_PAGE = 1000
_PART_BYTES = 5 * 2**20  # the least that a part may have; an upload keeps two in memory
_PIECE_BYTES = 2**18
_MAX_BYTES = 4 * 2**30
_TRANSFER_S = 120.0
_REQUEST_LIFE_S = 20 * 60.0
"""How long a request can be under way: its signature is refused after 15 minutes."""
_RESOLUTION_S = 1.0
"""Stores give times in whole seconds."""


class S3Store:
    """An `ObjectStore` in a bucket. Files in transit lie in a local folder, private and swept.

    A call that gets no answer fails within `timeout_s`, retries included; so does a transfer that
    stands still, and every transfer after two minutes.
    """

    def __init__(
        self,
        location: S3Location,
        scratch: Path,
        *,
        timeout_s: float = 10.0,
        clock_valid_s: float = 60.0,
    ) -> None:
        """`scratch` is the local folder; the store's clock is looked at every `clock_valid_s`.

        Credentials are the library's to find: `AWS_…` variables, or the machine's role.
        """
        self._staging = Staging(Root(scratch))
        self._bucket = location.bucket
        self._clock_valid_s = clock_valid_s
        self._clock_lock = threading.Lock()
        self._clock: tuple[float, float] | None = None
        # Of a retry only the start is bounded, so an attempt may take up to the other half.
        attempt = timedelta(seconds=0.45 * timeout_s)
        stalled = timedelta(seconds=0.9 * timeout_s)
        whole = timedelta(seconds=_TRANSFER_S)
        with s3_faults(self._bucket, "opening the store"):
            self._calls = _client(location, timeout_s, {"timeout": attempt})
            self._bodies = _client(location, timeout_s, {"timeout": whole, "read_timeout": stalled})

    def check(self) -> None:
        """PolyprefixError unless the bucket is there and may be listed and written."""
        with s3_faults(self._bucket, "opening the store"):
            for _ in obstore.list(self._calls, _CLOCK, chunk_size=1):
                break
        self._now()

    def stage(self) -> AbstractContextManager[FileInTransit]:
        """A new staged file, removed at the end of the block."""
        return self._staging.file()

    def commit(self, owner: str, digest: str, staged: Path) -> None:
        """Makes a staged file the content of (owner, digest), durably, replacing what is there.

        It replaces rather than refuses: the same key is the same content, so overwriting repairs
        what was damaged. Unavailable while a removal may still be under way.
        """
        key = _key(owner, digest)
        if not self._staging.holds(staged):
            raise InvalidRequest("only a file staged in this store can be committed")
        doing = "storing the prefix file"
        with (
            storage_faults(doing),
            open(os.open(staged, READ_FLAGS), "rb") as file,
            s3_faults(self._bucket, doing),
        ):
            obstore.put(self._bodies, key, file, chunk_size=_PART_BYTES, max_concurrency=2)
        # After the put, so that of an upload and a removal at one time one notices the other.
        if self._is_being_removed(owner, digest):
            raise Unavailable("an old copy of the content is being removed; send it again later")

    def size(self, owner: str, digest: str) -> int | None:
        """Bytes of the content, None if it is not there or about to be removed."""
        found = self._head(_key(owner, digest))
        if found is None or self._is_being_removed(owner, digest):
            return None
        return found["size"]

    @contextmanager
    def local(self, owner: str, digest: str) -> Iterator[Path | None]:
        """A private copy of the content for the length of the block, None if it is not there."""
        key = _key(owner, digest)
        with self._staging.file() as copy:
            yield copy.path if self._fetch(key, copy) else None

    def open(self, owner: str, digest: str) -> BinaryIO | None:
        """The content for reading, fetched whole; None if it is not there."""
        with self.local(owner, digest) as path:
            if path is None:
                return None
            with storage_faults("opening a prefix file"):
                return open(os.open(path, READ_FLAGS), "rb")

    def start(self, owner: str, digest: str, nbytes: int) -> bytes | None:
        """The first bytes of the content, fewer if it is shorter; None if it is not there."""
        key = _key(owner, digest)
        found = self._head(key)
        if found is None or not found["size"]:
            return None if found is None else b""
        with self._unless_missing("reading a prefix file"):
            return bytes(obstore.get_range(self._calls, key, start=0, end=nbytes))
        return None

    def touch(self, owner: str, digest: str) -> None:
        """Makes the content young again, so that garbage collection waits; missing is fine."""
        if self._head(_key(owner, digest)) is not None:
            self._mark(owner, digest, _TOUCHED)

    def delete(self, owner: str, digest: str, *, older_than_s: float = 0.0) -> bool:
        """Removes the content unless it is younger; whether something was removed.

        The mark of the removal stays if its outcome is unknown, until no request can be under way.
        """
        if not self._is_old(owner, digest, older_than_s):
            return False
        others = self._is_being_removed(owner, digest)
        self._mark(owner, digest, _REMOVING)
        # Again, now that an upload which has not been seen yet will see the mark.
        removed = self._is_old(owner, digest, older_than_s)
        if removed:
            self._remove(_key(owner, digest))
            self._remove(_key(owner, digest, _TOUCHED))
        if not others:
            self._remove(_key(owner, digest, _REMOVING))
        return removed

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, a page at a time, and the marks that have lost theirs."""
        check_owner(owner)
        now = self._now()
        # The names of a content and its marks follow each other in the order of the listing.
        for digest, group in groupby(self._listed(owner), key=lambda found: found[0]):
            found = {suffix: meta for _, suffix, meta in group}
            youngest = max(
                meta["last_modified"].timestamp()
                for suffix, meta in found.items()
                if suffix != _REMOVING or len(found) == 1
            )
            nbytes = found[SUFFIX]["size"] if SUFFIX in found else 0
            yield StoredObject(digest, nbytes, _age(youngest, now))

    def sweep_temps(self) -> int:
        """Removes the files in transit whose process has ended; how many."""
        return self._staging.sweep()

    def _listed(self, owner: str) -> Iterator[tuple[str, str, ObjectMeta]]:
        """(digest, suffix, facts) of every object of an owner that has a name of ours."""
        with s3_faults(self._bucket, "listing the store"):
            for page in obstore.list(self._calls, owner, chunk_size=_PAGE):
                for meta in page:
                    name = _KEY.fullmatch(meta["path"])
                    if name is not None:
                        yield name[1], name[2], meta

    def _fetch(self, key: str, copy: FileInTransit) -> bool:
        """Copies an object into a local file; whether it is there. Unavailable if it is cut."""
        doing = "fetching a prefix file"
        with self._unless_missing(doing):
            found = obstore.get(self._bodies, key)
            size = found.meta["size"]
            if size > _MAX_BYTES:
                raise PolyprefixError(f"{doing} failed: no prefix file has {size} bytes")
            left = size
            for piece in found.stream(min_chunk_size=_PIECE_BYTES):
                copy.write(piece)
                left -= len(piece)
            if left:
                raise Unavailable(f"{doing} failed for now: {left} of {size} bytes are missing")
            return True
        return False

    def _is_old(self, owner: str, digest: str, least_s: float) -> bool:
        """Whether the content is there and was neither stored nor touched of late."""
        found = self._head(_key(owner, digest))
        if found is None:
            self._forget_marks(owner, digest)
            return False
        touched = self._head(_key(owner, digest, _TOUCHED))
        now = self._now()
        return all(
            _age(meta["last_modified"].timestamp(), now) >= least_s
            for meta in (found, touched)
            if meta is not None
        )

    def _is_being_removed(self, owner: str, digest: str) -> bool:
        """Whether the request of a removal may be under way."""
        mark = self._head(_key(owner, digest, _REMOVING))
        if mark is None:
            return False
        return _age(mark["last_modified"].timestamp(), self._now()) < _REQUEST_LIFE_S

    def _forget_marks(self, owner: str, digest: str) -> None:
        """Removes what stands beside a content that is gone, once it has no use any more."""
        self._remove(_key(owner, digest, _TOUCHED))
        if not self._is_being_removed(owner, digest):
            self._remove(_key(owner, digest, _REMOVING))

    def _head(self, key: str) -> ObjectMeta | None:
        with self._unless_missing("looking for a prefix file"):
            return obstore.head(self._calls, key)
        return None

    @contextmanager
    def _unless_missing(self, doing: str) -> Iterator[None]:
        """Leaves the block if the object is not there."""
        with (
            contextlib.suppress(FileNotFoundError),
            s3_faults(self._bucket, doing, may_be_missing=True),
        ):
            yield

    def _mark(self, owner: str, digest: str, suffix: str) -> None:
        with s3_faults(self._bucket, "marking a prefix file"):
            obstore.put(self._calls, _key(owner, digest, suffix), b"", use_multipart=False)

    def _remove(self, key: str) -> None:
        with self._unless_missing("removing a prefix file"):
            obstore.delete(self._calls, key)

    def _now(self) -> float:
        """Seconds since 1970 by the store's clock, or a little less."""
        with self._clock_lock:
            if self._clock is None or time.monotonic() - self._clock[1] > self._clock_valid_s:
                with s3_faults(self._bucket, "reading the store's clock"):
                    obstore.put(self._calls, _CLOCK, b"", use_multipart=False)
                    seen = obstore.head(self._calls, _CLOCK)["last_modified"].timestamp()
                self._clock = seen, time.monotonic()
            seen, since = self._clock
            return seen + time.monotonic() - since


def _client(location: S3Location, timeout_s: float, options: ClientConfig) -> Client:
    config: S3Config = {"disable_bulk_delete": True}
    if location.region is not None:
        config["region"] = location.region
    if location.endpoint is not None:
        config["endpoint"] = location.endpoint
        options["allow_http"] = location.endpoint.startswith("http://")
    options["connect_timeout"] = timedelta(seconds=0.2 * timeout_s)
    return Client(
        location.bucket,
        prefix=location.prefix or None,
        config=config,
        client_options=options,
        retry_config={
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=0.5 * timeout_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    )


def _key(owner: str, digest: str, suffix: str = SUFFIX) -> str:
    return f"{owner}/{object_name(owner, digest).removesuffix(SUFFIX)}{suffix}"


def _age(then: float, now: float) -> float:
    """Seconds between two times of the store, never more than there were."""
    return max(0.0, now - then - _RESOLUTION_S)
