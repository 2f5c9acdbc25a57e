"""Turns failures of disks and databases into the errors that users meet."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import Conflict, InsufficientStorage, PolyprefixError, Unavailable

_CANNOT_STORE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_TRY_AGAIN = {errno.EINTR, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_PLANTED = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR}

_SQLITE_CANNOT_STORE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")
_SQLITE_TRY_AGAIN = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_CANTOPEN")
_SQLITE_DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
_POSTGRES_CANNOT_STORE = ("53100",)
# lost connections, no resources, timeouts of locks and statements, lost races, shutdown
_POSTGRES_TRY_AGAIN = ("08", "53", "55P03", "57", "40")


@contextmanager
def storage_faults(doing: str) -> Iterator[None]:
    """Maps OSError inside the block; `doing` says what failed ("storing the prefix file").

    No space, quota, I/O and read-only errors become InsufficientStorage; what passes by itself
    becomes Unavailable; the rest, a planted link for example, becomes a PolyprefixError. Only
    FileNotFoundError passes: what a missing file means is the caller's to say.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as fault:
        reason = errno.errorcode.get(fault.errno or 0, "unknown error")
        if fault.errno in _CANNOT_STORE:
            raise InsufficientStorage(f"{doing} failed: {reason}") from fault
        if fault.errno in _TRY_AGAIN:
            raise Unavailable(f"{doing} failed for now: {reason}") from fault
        if fault.errno in _PLANTED:
            reason = "something else is in the place of a file or folder"
        raise PolyprefixError(f"{doing} failed: {reason}") from fault


@contextmanager
def catalog_faults() -> Iterator[None]:
    """Maps what the database raises inside the block to what it means to users."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as fault:
        if (error := _catalog_error(fault)) is None:
            raise
        raise error from fault


def _catalog_error(fault: DBAPIError | PoolTimeout) -> PolyprefixError | None:
    """What a failure of the database means to users, as `storage_faults` says it for files.

    None if it means nothing to them: a wrong statement, for example.
    """
    if isinstance(fault, IntegrityError):
        return Conflict("another writer changed the catalog at the same time; try again")
    if isinstance(fault, PoolTimeout):
        return Unavailable("the catalog is busy")
    code = _code_of(fault)
    if code.startswith(_SQLITE_CANNOT_STORE) or code in _POSTGRES_CANNOT_STORE:
        return InsufficientStorage(f"the catalog cannot be written: {code}")
    if code.startswith(_SQLITE_TRY_AGAIN + _POSTGRES_TRY_AGAIN) or _is_lost(fault, code):
        return Unavailable(f"the catalog is busy: {code or 'connection lost'}")
    if code.startswith(_SQLITE_DAMAGED):
        return PolyprefixError(f"the catalog cannot be read: {code}")
    return None


def is_lost(fault: Exception) -> bool:
    """Whether there was no connection to the database, or none any more."""
    return isinstance(fault, DBAPIError) and _is_lost(fault, _code_of(fault))


def _code_of(fault: DBAPIError) -> str:
    """What the database calls the fault, empty if it has not said."""
    names = ("sqlite_errorname", "sqlstate")
    return next((str(code) for name in names if (code := getattr(fault.orig, name, None))), "")


def _is_lost(fault: DBAPIError, code: str) -> bool:
    """Whether there was no connection, or none any more: then the server has given no code."""
    return fault.connection_invalidated or (isinstance(fault, OperationalError) and not code)
