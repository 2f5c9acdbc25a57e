"""Work of a tenant beside the engine that counts against the tenant's limits and in its usage.

As for what runs in the engine, tokens are reserved before the work and noted once they are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.api.generation.prefix_selection import PrefixSelection
from app.api.side_work.turns import SideQueue
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limiter import Limiter
from app.tenancy.usage.ledger import UsageLedger, UsageTotals

Result = TypeVar("Result")

_MAX_PIECES = 32
"""Pieces that are reserved, and counted, as one request."""


@dataclass(frozen=True)
class MeteredQueue:
    """The side queue for work that counts."""

    queue: SideQueue
    limiter: Limiter
    usage: UsageLedger

    async def run(
        self,
        principal: Principal,
        deadline: float,
        work: Callable[..., Result],
        pieces: Sequence[tuple[Any, ...]],
        tokens: Sequence[int],
        selection: PrefixSelection,
    ) -> list[Result]:
        """`work(*piece)` for each piece, one after another; each reads so many `tokens`.

        It is counted under the prefixes of `selection`. `deadline` is on the clock of
        `time.monotonic`. Raises RateLimited or InvalidRequest by the tenant's limits, and what
        `SideQueue.run` raises.
        """
        found: list[Result] = []
        for start in range(0, len(pieces), _MAX_PIECES):
            end = start + _MAX_PIECES
            part = list(zip(pieces[start:end], tokens[start:end], strict=True))
            found += await self._run_part(principal, deadline, work, part, selection)
        return found

    async def _run_part(
        self,
        principal: Principal,
        deadline: float,
        work: Callable[..., Result],
        part: Sequence[tuple[tuple[Any, ...], int]],
        selection: PrefixSelection,
    ) -> list[Result]:
        tenant = principal.tenant
        most = sum(tokens for _, tokens in part)
        reservation = await self.limiter.reserve(tenant, principal.limits, tokens=most, rows=1)
        spent, began = UsageTotals(requests=1, failed=1), time.monotonic()
        try:
            found = []
            for piece, tokens in part:
                found.append(await self.queue.run(tenant, deadline, work, *piece))
                spent.tokens_in += tokens
            spent.failed, spent.total_ms = 0, round(1000 * (time.monotonic() - began))
            return found
        finally:
            reservation.settle(spent.tokens_in)
            self.usage.add(tenant, selection.names, selection.digests, spent)
