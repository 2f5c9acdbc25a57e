"""An object store in a bucket: `<prefix>/<owner>/<digest>.safetensors` on S3 or what speaks it.

While the store does not answer, the first callers wait for it and others are refused at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Client

from app.db.circuit_breaker import ProbingBreaker
from app.db.errors import storage_faults
from app.errors import InsufficientStorage, PolyprefixError, Unavailable
from app.registry.storage.staging import READ_FLAGS, FileInTransit, Staging
from app.registry.storage.store import StoredObject, check_owner, object_name
from app.registry.storage.url import S3Location

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config

_PROBE = ".probe"
"""Written when the store is opened, and asked for while it does not answer."""
_KEY = re.compile(r"[0-9a-z]{1,64}/([0-9a-f]{64})\.safetensors")

_PAGE = 1000
_PART_BYTES = 5 * 2**20  # the least that a part may have; an upload keeps two in memory
_PIECE_BYTES = 2**18
_MAX_BYTES = 4 * 2**30
_TRANSFER_S = 120.0
_REQUEST_LIFE_S = 20 * 60.0
"""How long a request can be under way: its signature is refused after 15 minutes."""
_PROBE_S = 1.0
_PATIENT_PROBES = 4
"""Of so many probes one waits as long as any call: a store may have become slow."""


class S3Store(Staging):
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`scratch` is the local folder; `clock` gives seconds since 1970.

        Credentials are the library's to find: `AWS_…` variables, or the machine's role.
        """
        super().__init__(scratch)
        self._bucket = location.bucket
        self._clock = clock
        # Of a retry only the start is bounded, so an attempt may take up to the other half.
        attempt = timedelta(seconds=0.45 * timeout_s)
        stalled = timedelta(seconds=0.9 * timeout_s)
        whole = timedelta(seconds=_TRANSFER_S)
        soon = timedelta(seconds=_PROBE_S)
        with s3_faults(self._bucket, "opening the store"):
            self._calls = _client(location, timeout_s, {"timeout": attempt})
            self._bodies = _client(location, timeout_s, {"timeout": whole, "read_timeout": stalled})
            # asked once: of two requests the first might be carried out after the second's answer
            self._removals = _client(location, timeout_s, {"timeout": stalled}, max_retries=0)
            self._probes = _client(location, timeout_s, {"timeout": soon}, max_retries=0)
        self._breaker = ProbingBreaker(
            f"the store of bucket '{self._bucket}'",
            lambda fault: isinstance(fault, Unavailable),
            self._probe,
        )

    def check(self) -> None:
        """PolyprefixError unless the bucket is there and may be listed and written."""
        with self._asking("opening the store"):
            for _ in obstore.list(self._calls, _PROBE, chunk_size=1):
                break
            obstore.put(self._calls, _PROBE, b"", use_multipart=False)

    def close(self) -> None:
        """Looks no longer whether a store answers that does not."""
        self._breaker.stop()

    def commit(self, owner: str, digest: str, staged: Path) -> None:
        """Makes a staged file the content of (owner, digest), durably, replacing what is there.

        It replaces rather than refuses: the same key is the same content, so overwriting repairs
        what was damaged.
        """
        key = _key(owner, digest)
        self.check_staged(staged)
        doing = "storing the prefix file"
        with (
            storage_faults(doing),
            open(os.open(staged, READ_FLAGS), "rb") as file,
            self._asking(doing),
        ):
            obstore.put(self._bodies, key, file, chunk_size=_PART_BYTES, max_concurrency=2)

    def size(self, owner: str, digest: str) -> int | None:
        """Bytes of the content, None if it is not there."""
        found = self._head(_key(owner, digest))
        return None if found is None else found["size"]

    @contextmanager
    def local(self, owner: str, digest: str) -> Iterator[Path | None]:
        """A private copy of the content for the length of the block, None if it is not there."""
        key = _key(owner, digest)
        with self.stage() as copy:
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

    @contextmanager
    def removing(self) -> Iterator[float | None]:
        """The right to remove contents, which every process has."""
        yield _REQUEST_LIFE_S

    def delete(self, owner: str, digest: str) -> bool:
        """Removes the content; whether it was there."""
        key = _key(owner, digest)
        if self._head(key) is None:
            return False
        with self._unless_missing("removing a prefix file"):
            obstore.delete(self._removals, key)
        return True

    def objects(self, owner: str) -> Iterator[StoredObject]:
        """The contents of one owner, a page at a time."""
        check_owner(owner)
        now = self._clock()
        with self._asking("listing the store"):
            for page in obstore.list(self._calls, owner, chunk_size=_PAGE):
                for meta in page:
                    name = _KEY.fullmatch(meta["path"])
                    if name is not None:
                        age_s = max(0.0, now - meta["last_modified"].timestamp())
                        yield StoredObject(name[1], meta["size"], age_s)

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

    def _head(self, key: str) -> ObjectMeta | None:
        with self._unless_missing("looking for a prefix file"):
            return obstore.head(self._calls, key)
        return None

    @contextmanager
    def _unless_missing(self, doing: str) -> Iterator[None]:
        """Leaves the block if the object is not there."""
        with (
            contextlib.suppress(FileNotFoundError),
            self._asking(doing, may_be_missing=True),
        ):
            yield

    @contextmanager
    def _asking(self, doing: str, *, may_be_missing: bool = False) -> Iterator[None]:
        """A call of the store; at once Unavailable while it is known not to answer."""
        with (
            self._breaker.watched(),
            s3_faults(self._bucket, doing, may_be_missing=may_be_missing),
        ):
            yield

    def _probe(self, attempt: int) -> None:
        client = self._probes if attempt % _PATIENT_PROBES else self._calls
        with (
            contextlib.suppress(FileNotFoundError),
            s3_faults(self._bucket, "probing the store", may_be_missing=True),
        ):
            obstore.head(client, _PROBE)


def _client(
    location: S3Location, timeout_s: float, options: ClientConfig, *, max_retries: int = 4
) -> Client:
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
            "max_retries": max_retries,
            "retry_timeout": timedelta(seconds=0.5 * timeout_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    )


def _key(owner: str, digest: str) -> str:
    return f"{owner}/{object_name(owner, digest)}"


_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
_FULL = {"XMinioStorageFull", "QuotaExceeded", "StorageFull", "EntityTooLarge"}
_TRY_AGAIN = {"408", "409", "412", "425", "429"}


@contextmanager
def s3_faults(bucket: str, doing: str, *, may_be_missing: bool = False) -> Iterator[None]:
    """Maps the client's errors inside the block; `doing` says what failed.

    A store that is not reached, slow or overloaded is Unavailable, a full one InsufficientStorage;
    what only an operator can change (no such bucket, no access) is a PolyprefixError. With
    `may_be_missing`, the FileNotFoundError of an object passes: its meaning is the caller's to say.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as fault:
        text = str(fault)
        is_object = isinstance(fault, FileNotFoundError) and _NO_BUCKET not in text
        if may_be_missing and is_object:
            raise
        raise _meaning(bucket, doing, text) from fault


def _meaning(bucket: str, doing: str, text: str) -> PolyprefixError:
    """What a client's message stands for; its text is looked at and not repeated."""
    found = _STATUS.search(text)
    status = found[1] if found else ""
    named = _CODE.search(text)
    code = named[1] if named else (status or "no answer")
    if "/latest/api/token" in text or "/latest/meta-data/" in text:
        return Unavailable(
            f"{doing} failed: there are no credentials for bucket '{bucket}'; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    if code in _FULL or status == "507":
        return InsufficientStorage(f"{doing} failed: bucket '{bucket}' takes no more ({code})")
    if code == "NoSuchBucket":
        return PolyprefixError(f"{doing} failed: there is no bucket '{bucket}'")
    if status in {"401", "403"}:
        return PolyprefixError(
            f"{doing} failed: access to bucket '{bucket}' is refused ({code}); the credentials "
            "must be allowed to list it and to get, put and delete its objects"
        )
    if "configured region" in text:
        return PolyprefixError(f"{doing} failed: bucket '{bucket}' is in another region")
    if not status or status in _TRY_AGAIN or status.startswith("5"):
        return Unavailable(f"{doing} failed for now: the store of bucket '{bucket}' ({code})")
    return PolyprefixError(f"{doing} failed: bucket '{bucket}' answers {code}")
