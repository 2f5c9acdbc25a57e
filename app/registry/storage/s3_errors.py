"""Turns what an S3 store or its client answers into the errors that users meet.

Messages name the bucket and the store's own code for the fault; no keys, URLs or signatures.
Knows nothing about what was being stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError

from app.errors import InsufficientStorage, PolyprefixError, Unavailable

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
