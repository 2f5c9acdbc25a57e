"""Rates and rows of many tenants, counted in this process.

A rate is a meter that runs up with use and down by itself, by the whole limit in a minute: a full
minute's allowance may be used at once, and never more than (1 + minutes) × limit in any time. It
is kept as what is *used*, so that a changed limit holds at once.

It is for one thread; the clock is monotonic.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.tenancy.limits.decision import MINUTE, Cost, LimitDecision
from app.tenancy.limits.limits import TenantLimits

_ROUNDING = 1e-6


@dataclass(slots=True)
class _Usage:
    """One tenant's meters at the time `at`, and its rows."""

    at: float
    requests: float = 0.0
    tokens: float = 0.0
    rows: int = 0

    def run_down(self, limits: TenantLimits, now: float) -> None:
        elapsed = max(0.0, now - self.at)
        self.at = now
        self.requests = _down(self.requests, limits.requests_per_minute, elapsed)
        self.tokens = _down(self.tokens, limits.tokens_per_minute, elapsed)

    def has_room(self, limits: TenantLimits, cost: Cost) -> bool:
        return (
            _fits(self.requests + 1, limits.requests_per_minute)
            and _fits(self.tokens + cost.tokens, limits.tokens_per_minute)
            and _fits(self.rows + cost.rows, limits.max_rows)
        )

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        return self.rows == 0 and now - self.at >= MINUTE

    def standing(self, granted: bool) -> LimitDecision:
        return LimitDecision(granted, self.requests, self.tokens, self.rows)


class LocalLimits:
    """Takes from all of a tenant's limits or from none.

    At most `max_tenants` are remembered: beyond, those are forgotten that have no rows and have
    asked longest ago, which after a minute is no loss.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, max_tenants: int = 20_000
    ) -> None:
        self._clock, self._max_tenants = clock, max_tenants
        self._usages: OrderedDict[str, _Usage] = OrderedDict()

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._usages)

    def clear(self) -> None:
        """Forget every tenant's use."""
        self._usages.clear()

    def take(self, tenant: str, limits: TenantLimits, cost: Cost) -> LimitDecision:
        """Count a request if every limit has room for it, else leave all as it was."""
        usage = self._usage(tenant, limits)
        granted = usage.has_room(limits, cost)
        if granted:
            usage.requests = _within(usage.requests + 1, limits.requests_per_minute)
            usage.tokens = _within(usage.tokens + cost.tokens, limits.tokens_per_minute)
            usage.rows += cost.rows
        return usage.standing(granted)

    def look(self, tenant: str, limits: TenantLimits, cost: Cost) -> LimitDecision:
        """What `take` would say; nothing is counted."""
        usage = self._usage(tenant, limits)
        return usage.standing(usage.has_room(limits, cost))

    def give(
        self, tenant: str, limits: TenantLimits, *, requests: int, tokens: int, rows: int
    ) -> None:
        """Give back; negative `tokens` are a charge. What was forgotten stays forgotten."""
        if tenant not in self._usages:
            return
        usage = self._usage(tenant, limits)
        usage.requests = _within(usage.requests - requests, limits.requests_per_minute)
        usage.tokens = _within(usage.tokens - tokens, limits.tokens_per_minute)
        usage.rows = max(0, usage.rows - rows)

    def put(self, tenant: str, limits: TenantLimits, standing: LimitDecision) -> None:
        """Meters as another counter has them; its rows are left out."""
        usage = self._usage(tenant, limits)
        usage.requests, usage.tokens, usage.rows = standing.requests, standing.tokens, 0

    def _usage(self, tenant: str, limits: TenantLimits) -> _Usage:
        now = self._clock()
        usage = self._usages.pop(tenant, None) or _Usage(now)
        self._usages[tenant] = usage
        usage.run_down(limits, now)
        self._forget(now)
        return usage

    def _forget(self, now: float) -> None:
        """Drop the idle from the old end, and under pressure the first that holds no rows."""
        oldest = next(iter(self._usages))
        if self._usages[oldest].is_idle(now):
            del self._usages[oldest]
        if len(self._usages) > self._max_tenants:
            victim = next((name for name, usage in self._usages.items() if usage.rows == 0), None)
            if victim is not None:
                del self._usages[victim]


def _down(used: float, limit: int | None, elapsed: float) -> float:
    return 0.0 if limit is None else max(0.0, min(used, limit) - elapsed * limit / MINUTE)


def _fits(wanted: float, limit: int | None) -> bool:
    return limit is None or wanted <= limit + _ROUNDING


def _within(used: float, limit: int | None) -> float:
    return 0.0 if limit is None else min(max(0.0, used), float(limit))
