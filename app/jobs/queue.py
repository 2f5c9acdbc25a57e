"""Which queued jobs come next: fair among tenants, within their limits, the oldest first.

Next is a tenant whose running jobs are fewest for its weight; among equals the one whose last turn
is longest ago. Within a tenant jobs come in the order of their making; one that gave its place to
another tenant's comes after those that were made until then.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from app.db.schema import tenants, training_jobs
from app.jobs import trained_tokens
from app.jobs.types import JobStatus
from app.tenancy.limits.limits import TenantLimits

_LOOKED_AT = 64
"""So many of a tenant's oldest jobs are looked through for some that gave their place away."""


@dataclass
class _Share:
    """What a tenant has of the workers, and how much more it may have."""

    tenant: str
    weight: float
    turn: int
    running: int
    free: float

    @property
    def place(self) -> tuple[float, int, str]:
        """Its place in the line: the smallest is next."""
        return self.running / self.weight, self.turn, self.tenant


def choose(connection: Connection, base_fingerprint: str, limit: int, now: float) -> list[Row[Any]]:
    """At most `limit` jobs for this base model, in the order of their turns.

    One that has lost a worker since its last checkpoint comes alone: it may have killed it.
    """
    line = [share.place + (share,) for share in _shares(connection, base_fingerprint, now)]
    heapq.heapify(line)
    counts: Counter[str] = Counter()
    turns: list[str] = []
    while line and len(turns) < limit:
        share = heapq.heappop(line)[-1]
        turns.append(share.tenant)
        counts[share.tenant] += 1
        share.running += 1
        share.free -= 1
        if share.free >= 1:
            heapq.heappush(line, (*share.place, share))
    oldest = {
        tenant: iter(_next(connection, base_fingerprint, tenant, count, now))
        for tenant, count in counts.items()
    }
    chosen = [next(oldest[tenant]) for tenant in turns]
    return list(takewhile(lambda row: not row.losses, chosen)) or chosen[:1]


def choose_yielding(
    connection: Connection, base_fingerprint: str, holders: Collection[str], now: float
) -> str | None:
    """Which of the tenants `holders` gives a place to the tenant that is next in the line.

    The one with the most running jobs for its weight, if it has more than that one; else None.
    """
    line = [share.place for share in _shares(connection, base_fingerprint, now)]
    if not line or not holders:
        return None
    running = _count_running(connection)
    query = select(tenants.c.id, tenants.c.limits).where(tenants.c.id.in_(list(holders)))
    held = {
        row.id: running.get(row.id, 0) / TenantLimits.from_json(row.limits).weight
        for row in connection.execute(query)
    }
    most, tenant = max((share, tenant) for tenant, share in held.items())
    return tenant if most > min(line)[0] else None


def _shares(connection: Connection, base_fingerprint: str, now: float) -> list[_Share]:
    """The tenants that have a queued job and may have another one run."""
    queued = connection.execute(
        select(training_jobs.c.tenant_id, func.count())
        .where(_is_waiting(base_fingerprint, now))
        .group_by(training_jobs.c.tenant_id)
    ).all()
    if not queued:
        return []
    running = _count_running(connection)
    shares = []
    for tenant, waiting in queued:
        row = connection.execute(select(tenants).where(tenants.c.id == tenant)).one()
        limits = TenantLimits.from_json(row.limits)
        if row.disabled_at is not None or is_spent(connection, tenant, limits, now):
            continue
        has = running.get(tenant, 0)
        most = math.inf if limits.max_running_jobs is None else limits.max_running_jobs
        free = min(waiting, most - has)
        if free >= 1:
            shares.append(_Share(tenant, limits.weight, row.training_turn, has, free))
    return shares


def _count_running(connection: Connection) -> dict[str, int]:
    """How many jobs of each tenant run."""
    counts = connection.execute(
        select(training_jobs.c.tenant_id, func.count())
        .where(training_jobs.c.status == JobStatus.RUNNING.value)
        .group_by(training_jobs.c.tenant_id)
    )
    return {row.tenant_id: row[1] for row in counts}


def is_spent(connection: Connection, tenant: str, limits: TenantLimits, now: float) -> bool:
    """Whether the tenant has trained on as many tokens today as it may."""
    most = limits.training_tokens_per_day
    return most is not None and trained_tokens.used_today(connection, tenant, now) >= most


def must_stop(connection: Connection, tenant: str, now: float) -> bool:
    """Whether no job of the tenant may run: it is disabled, or has used up its tokens."""
    query = select(tenants.c.limits, tenants.c.disabled_at).where(tenants.c.id == tenant)
    row = connection.execute(query).one_or_none()
    if row is None or row.disabled_at is not None:
        return True
    return is_spent(connection, tenant, TenantLimits.from_json(row.limits), now)


def _next(
    connection: Connection, base_fingerprint: str, tenant: str, count: int, now: float
) -> list[Row[Any]]:
    """The tenant's next jobs."""
    query = select(training_jobs).where(
        _is_waiting(base_fingerprint, now), training_jobs.c.tenant_id == tenant
    )
    rows = connection.execute(query.order_by(training_jobs.c.id).limit(count + _LOOKED_AT)).all()
    return sorted(rows, key=_queued_since)[:count]


def _queued_since(row: Row[Any]) -> float:
    """When the job was made, or when it gave its place to another tenant's."""
    has_yielded = row.token is None and row.lease_until is not None
    return float(row.lease_until if has_yielded else row.created_at)


def _is_waiting(base_fingerprint: str, now: float) -> ColumnElement[bool]:
    """Queued, and no worker holds it still: one that was paused and resumed is released first."""
    return and_(
        training_jobs.c.status == JobStatus.QUEUED.value,
        training_jobs.c.base_fingerprint == base_fingerprint,
        or_(training_jobs.c.token.is_(None), training_jobs.c.lease_until < now),
    )
