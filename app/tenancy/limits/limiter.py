"""Admission by a tenant's limits: reserve before the work, settle after it.

This replica's own meters are asked first, then Redis if there is one. What this replica alone has
admitted stays within the limits whatever Redis does, so that all replicas together admit at most
replicas × limit while Redis fails, and one replica never more than the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from app.errors import RateLimited
from app.tenancy.limits.decision import (
    Cost,
    LimitDecision,
    check_possible,
    rate_headers,
    refusal,
)
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.local import LocalLimits
from app.tenancy.limits.shared import RedisLimits


def _one_second(*_: object) -> float:
    return 1.0


@dataclass(eq=False)
class Reservation:
    """What one request was granted. Ended once, by `settle` or `release`; later calls do nothing.

    `headers` are the `x-ratelimit-…` headers of its reply.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    _tokens: int = 0
    _give_back: Callable[[int, int], None] | None = None

    def settle(self, tokens_used: int) -> None:
        """The request has ended and took `tokens_used`, prompts included; the rest comes free."""
        self._end(0, self._tokens - tokens_used)

    def release(self) -> None:
        """The request was never begun: as if it had not been asked for."""
        self._end(1, self._tokens)

    def _end(self, requests: int, tokens: int) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(requests, tokens)


class Limiter:
    """Reserves for tenants. `shared` are the limits over all replicas; None: this one is alone.

    `rows_wait(tenant, free, rows, new_tokens)` says in how many seconds a tenant, of whose limit
    `free` rows are free, may probably have `rows` that take `new_tokens` each.
    """

    def __init__(
        self,
        shared: RedisLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rows_wait: Callable[[str, int, int, int], float] = _one_second,
    ) -> None:
        self._shared, self._local = shared, LocalLimits(clock=clock)
        self.rows_wait = rows_wait

    @property
    def is_degraded(self) -> bool:
        """Whether limits should be shared and are not, since Redis fails."""
        return self._shared is not None and not self._shared.is_up

    @property
    def faults(self) -> int:
        """Faults of Redis so far."""
        return 0 if self._shared is None else self._shared.faults

    def forget_local(self) -> None:
        """Forget what this replica has counted itself, as a restart does."""
        self._local.clear()

    def debug_state(self) -> dict[str, int]:
        """For tests: the number of tenants that are remembered."""
        return {"tenants": len(self._local)}

    async def start(self) -> None:
        """Look for Redis; without it the limits are local until it comes."""
        if self._shared is not None:
            await self._shared.start()

    async def close(self) -> None:
        """End the connection to Redis."""
        if self._shared is not None:
            await self._shared.close()

    def check(self, tenant: str, limits: TenantLimits, *, rows: int = 1) -> None:
        """RateLimited if this replica knows that no request of so many rows would be granted.

        InvalidRequest if it never will be. Costs nothing and counts nothing: for the time before a
        request is looked at closely.
        """
        if limits.are_counted:
            smallest = Cost(tokens=0, rows=rows)
            check_possible(limits, smallest)
            standing = self._local.look(tenant, limits, smallest)
            if not standing.granted:
                raise self._refusal(tenant, limits, standing, smallest)

    async def reserve(
        self, tenant: str, limits: TenantLimits, *, tokens: int, rows: int
    ) -> Reservation:
        """Count a request of at most `tokens`, prompts included, on `rows` rows.

        All limits are taken from or none. Raises RateLimited, and InvalidRequest for what would
        never fit. Without limits nobody is asked.
        """
        if not limits.are_counted:
            return Reservation()
        cost = Cost(tokens, rows)
        check_possible(limits, cost)
        standing = self._local.take(tenant, limits, cost)
        if not standing.granted:
            raise self._refusal(tenant, limits, standing, cost)
        if self._shared is None:
            return self._reservation(tenant, limits, cost, standing, None)
        try:
            lease, shared = await self._shared.take(tenant, limits, cost)
        except asyncio.CancelledError:
            self._local.give(tenant, limits, requests=1, tokens=tokens, rows=rows)
            raise
        if shared is not None and not shared.granted:
            self._local.give(tenant, limits, requests=1, tokens=tokens, rows=rows)
            raise self._refusal(tenant, limits, shared, cost)
        return self._reservation(tenant, limits, cost, shared or standing, lease)

    def _refusal(
        self, tenant: str, limits: TenantLimits, standing: LimitDecision, cost: Cost
    ) -> RateLimited:
        most, wait = limits.max_rows, 1.0
        if most is not None and standing.rows + cost.rows > most:
            free = max(0, most - standing.rows)
            wait = self.rows_wait(tenant, free, cost.rows, cost.tokens // cost.rows)
        return refusal(limits, standing, cost, rows_wait=wait)

    def _reservation(
        self,
        tenant: str,
        limits: TenantLimits,
        cost: Cost,
        standing: LimitDecision,
        lease: str | None,
    ) -> Reservation:
        def give_back(requests: int, tokens: int) -> None:
            self._local.give(tenant, limits, requests=requests, tokens=tokens, rows=cost.rows)
            if self._shared is not None and lease is not None:
                self._shared.give(lease, requests=requests, tokens=tokens)

        return Reservation(rate_headers(limits, standing), cost.tokens, give_back)
