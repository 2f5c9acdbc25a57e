"""Which queued jobs come next: fair among tenants, within their limits, the oldest first.

Next is a tenant whose running jobs are fewest for its weight; among equals the one whose last turn
is longest ago. Within a tenant jobs come in the order of their making.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from app.db.schema import tenants, training_jobs
from app.jobs import trained_tokens
from app.jobs.types import JobStatus
from app.tenancy.limits.limits import TenantLimits


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
    """At most `limit` jobs for this base model, in the order of their turns."""
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
        tenant: iter(_oldest(connection, base_fingerprint, tenant, count, now))
        for tenant, count in counts.items()
    }
    return [next(oldest[tenant]) for tenant in turns]


def _shares(connection: Connection, base_fingerprint: str, now: float) -> list[_Share]:
    """The tenants that have a queued job and may have another one run."""
    queued = connection.execute(
        select(training_jobs.c.tenant_id, func.count())
        .where(_is_waiting(base_fingerprint, now))
        .group_by(training_jobs.c.tenant_id)
    ).all()
    if not queued:
        return []
    counts = connection.execute(
        select(training_jobs.c.tenant_id, func.count())
        .where(training_jobs.c.status == JobStatus.RUNNING.value)
        .group_by(training_jobs.c.tenant_id)
    )
    running = {row.tenant_id: row[1] for row in counts}
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


def _oldest(
    connection: Connection, base_fingerprint: str, tenant: str, count: int, now: float
) -> list[Row[Any]]:
    query = select(training_jobs).where(
        _is_waiting(base_fingerprint, now), training_jobs.c.tenant_id == tenant
    )
    return list(connection.execute(query.order_by(training_jobs.c.id).limit(count)).all())


def _is_waiting(base_fingerprint: str, now: float) -> ColumnElement[bool]:
    """Queued, and no worker holds it still: one that was paused and resumed is released first."""
    return and_(
        training_jobs.c.status == JobStatus.QUEUED.value,
        training_jobs.c.base_fingerprint == base_fingerprint,
        or_(training_jobs.c.token.is_(None), training_jobs.c.lease_until < now),
    )
