"""Chains of audit records, one for each replica: appended without gaps, listed, and verified.

`hash` is the SHA-256 of the hash before it followed by the record; a record names its replica, its
number, its time and its tenant, so that none of the columns can be changed alone. Works inside a
transaction that the caller holds, except where it takes a catalog.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from app.db.database import Database
from app.db.paging import Page, check_limit, make_cursor, read_cursor
from app.db.schema import audit_log
from app.errors import InvalidRequest, Unavailable

GENESIS = "0" * 64
"""The hash before a chain's first record."""
_ATTEMPTS = 20
_PAGE = 500
_MAX_NUMBER = 2**63


@dataclass(frozen=True)
class Link:
    """A place in a chain: the record's number, from 1 on, and its hash."""

    replica: str
    sequence: int
    hash: str


@dataclass(frozen=True)
class ChainReport:
    """A verified chain: its last good link (None: none is) and what is wrong after it, if so."""

    replica: str
    records: int
    head: Link | None
    fault: str | None


def link_hash(previous: str, record: str) -> str:
    """The hash of a record that follows `previous`, in hex."""
    return hashlib.sha256((previous + record).encode()).hexdigest()


def append(
    connection: Connection, replica: str, at: int, tenant: str, facts: Mapping[str, Any]
) -> Link:
    """Adds a record behind the present head of the replica's chain.

    Processes that share a name follow one another; Unavailable if the turn does not come.
    """
    for _ in range(_ATTEMPTS):
        sequence, previous = _head(connection, replica)
        place = {"replica": replica, "sequence": sequence + 1, "at": at, "tenant": tenant}
        record = json.dumps({**place, **facts}, sort_keys=True, separators=(",", ":"))
        link = Link(replica, sequence + 1, link_hash(previous, record))
        row = {
            "replica": replica,
            "sequence": link.sequence,
            "at": at,
            "tenant_id": tenant,
            "record": record,
            "previous": previous,
            "hash": link.hash,
        }
        try:
            with connection.begin_nested():
                connection.execute(insert(audit_log).values(row))
        except IntegrityError:
            continue  # somebody else has just taken the number
        return link
    raise Unavailable("the audit log is written by too many at once")


def _head(connection: Connection, replica: str) -> tuple[int, str]:
    query = (
        select(audit_log.c.sequence, audit_log.c.hash)
        .where(audit_log.c.replica == replica)
        .order_by(audit_log.c.sequence.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return (0, GENESIS) if row is None else (row.sequence, row.hash)


def contains(connection: Connection, link: Link) -> bool:
    """Whether the record is in the chain, as this transaction sees it."""
    query = select(audit_log.c.hash).where(
        audit_log.c.replica == link.replica, audit_log.c.sequence == link.sequence
    )
    return connection.scalar(query) == link.hash


def list_records(
    catalog: Database,
    *,
    tenant: str | None = None,
    start: int = 0,
    end: int | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page[Mapping[str, Any]]:
    """Records from `start` up to but not including `end` (seconds since 1970), oldest first.

    Each has its `hash` too. InvalidRequest if the cursor or the limit is wrong.
    """
    columns = (audit_log.c.at, audit_log.c.replica, audit_log.c.sequence)
    query = select(audit_log).where(audit_log.c.at >= start)
    if end is not None:
        query = query.where(audit_log.c.at < end)
    if tenant is not None:
        query = query.where(audit_log.c.tenant_id == tenant)
    if cursor is not None:
        query = query.where(tuple_(*columns) > tuple_(*_read_cursor(cursor)))
    with catalog.read() as connection:
        rows = connection.execute(query.order_by(*columns).limit(check_limit(limit) + 1)).all()
    more = None
    if len(rows) > limit:
        last = rows[limit - 1]
        more = make_cursor(json.dumps([last.at, last.replica, last.sequence]))
    return Page(tuple(_shown(row) for row in rows[:limit]), more)


def _shown(row: Row[Any]) -> Mapping[str, Any]:
    facts = _parsed(row.record)
    place = {"replica": row.replica, "sequence": row.sequence, "at": row.at}
    return {**place, "tenant": row.tenant_id, **(facts or {}), "hash": row.hash}


def _read_cursor(cursor: str) -> tuple[int, str, int]:
    refused = InvalidRequest("the cursor is not one that this list has given", param="cursor")
    try:
        at, replica, sequence = json.loads(read_cursor(cursor))
    except (ValueError, TypeError):
        raise refused from None
    if type(at) is not int or type(sequence) is not int or not isinstance(replica, str):
        raise refused
    if not (0 <= at < _MAX_NUMBER and 0 <= sequence < _MAX_NUMBER):
        raise refused
    return at, replica, sequence


def verify(catalog: Database, heads: Mapping[str, Link] | None = None) -> Iterator[ChainReport]:
    """Walks every chain, a page at a time, up to the records of now.

    `heads` are links that were kept elsewhere, by replica: a chain that has lost one of them, cut
    short or written anew, is faulty too.
    """
    wanted = dict(heads or {})
    replica: str | None = None
    while (replica := _next_replica(catalog, replica)) is not None:
        yield _verify_chain(catalog, replica, wanted.pop(replica, None))
    for missing, head in wanted.items():
        yield ChainReport(missing, 0, None, f"is gone: record {head.sequence} was its head")


def _next_replica(catalog: Database, after: str | None) -> str | None:
    query = select(func.min(audit_log.c.replica))
    if after is not None:
        query = query.where(audit_log.c.replica > after)
    with catalog.read() as connection:
        found: str | None = connection.scalar(query)
    return found


def _verify_chain(catalog: Database, replica: str, kept: Link | None) -> ChainReport:
    last = Link(replica, 0, GENESIS)
    kept_is_there = kept is None
    while rows := _page(catalog, last):
        for row in rows:
            fault = _fault(row, last)
            if fault is not None:
                return ChainReport(replica, last.sequence, last if last.sequence else None, fault)
            last = Link(replica, row.sequence, row.hash)
            kept_is_there = kept_is_there or last == kept
    fault = None
    if kept is not None and not kept_is_there:
        fault = f"record {kept.sequence} with the hash that was kept is not in it"
    return ChainReport(replica, last.sequence, last, fault)


def _page(catalog: Database, last: Link) -> list[Row[Any]]:
    query = select(audit_log).where(audit_log.c.replica == last.replica)
    if last.sequence:  # at the beginning there may be numbers below the first, which nobody gives
        query = query.where(audit_log.c.sequence > last.sequence)
    with catalog.read() as connection:
        return list(connection.execute(query.order_by(audit_log.c.sequence).limit(_PAGE)))


def _fault(row: Row[Any], last: Link) -> str | None:
    """What is wrong with the record that follows `last`, None if nothing is."""
    if row.sequence != last.sequence + 1:
        return f"record {last.sequence + 1} is missing; the next one is {row.sequence}"
    if row.previous != last.hash:
        return f"record {row.sequence} does not follow the one before it"
    if row.hash != link_hash(row.previous, row.record):
        return f"record {row.sequence} was changed: its hash is another"
    facts = _parsed(row.record) or {}
    for name, value in (
        ("replica", row.replica),
        ("sequence", row.sequence),
        ("at", row.at),
        ("tenant", row.tenant_id),
    ):
        if facts.get(name) != value:
            return f"record {row.sequence} was changed: its column for {name} contradicts it"
    return None


def _parsed(record: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(record)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
