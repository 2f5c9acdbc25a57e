"""How tenants share what runs beside the engine: turns for computation, caps on what is open.

Computation runs one piece at a time, in a thread that ends with it: the engine keeps the machine's
other cores, and memory is that of one piece. Pieces are short, and tenants take turns, so that no
tenant waits longer because another asks for much.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from app.api.generation.prefix_selection import PrefixSelection
from app.errors import DeadlineExceeded, TenantQueueFull
from app.model.threads import run_in_fresh_thread
from app.runtime.workers import Turns
from app.tenancy.auth.principal import Principal
from app.tenancy.limits.limiter import Limiter
from app.tenancy.usage.ledger import UsageLedger, UsageTotals

Result = TypeVar("Result")

MAX_OPEN = 16
"""Of one kind, by one tenant."""
MAX_WAITING = 128
MAX_WAITING_OF_TENANT = 16
_MAX_PIECES = 32
"""Pieces that are reserved, and counted, as one request."""


class SideQueue:
    """Runs one piece at a time, one tenant's in the order of coming; for one event loop."""

    def __init__(self) -> None:
        self._turns = Turns(
            "evaluations",
            1,
            per_tenant=1,
            max_waiting=MAX_WAITING,
            max_waiting_of_tenant=MAX_WAITING_OF_TENANT,
        )

    @property
    def num_waiting(self) -> int:
        """Pieces that wait for their turn."""
        return sum(self._turns.waiting.values())

    async def run(
        self, tenant: str, deadline: float, work: Callable[..., Result], *arguments: Any
    ) -> Result:
        """`work(*arguments)` when its turn comes; `deadline` is on the clock of `time.monotonic`.

        Raises TenantQueueFull if too many of the tenant wait, Overloaded if too many of all do,
        DeadlineExceeded if the turn comes too late. A caller that is cancelled leaves at once; a
        piece that runs keeps its turn to its end.
        """
        try:
            await self._turns.take(tenant, max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise DeadlineExceeded("the request's time is over") from error
        running = asyncio.ensure_future(asyncio.to_thread(run_in_fresh_thread, work, *arguments))
        running.add_done_callback(partial(self._turns.give, tenant))
        return await asyncio.shield(running)


@dataclass(frozen=True)
class MeteredQueue:
    """The side queue for work that counts against its tenant's limits and in its usage.

    As for what runs in the engine, tokens are reserved before the work and noted once they are
    read.
    """

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
        tenant, limits = principal.tenant, principal.limits
        for start in range(0, len(pieces), _MAX_PIECES):
            counts = tokens[start : start + _MAX_PIECES]
            part = zip(pieces[start : start + _MAX_PIECES], counts, strict=True)
            reservation = await self.limiter.reserve(tenant, limits, tokens=sum(counts), rows=1)
            spent, began = UsageTotals(requests=1, failed=1), time.monotonic()
            try:
                for piece, count in part:
                    found.append(await self.queue.run(tenant, deadline, work, *piece))
                    spent.tokens_in += count
                spent.failed, spent.total_ms = 0, round(1000 * (time.monotonic() - began))
            finally:
                reservation.settle(spent.tokens_in)
                self.usage.add(tenant, selection.names, selection.digests, spent)
        return found


class ConcurrencyCap:
    """How much of a kind each tenant has open, bounded before any work is done for it.

    For what takes room or work that no limit counts yet: uploads that are not complete, evaluations
    that are read and encoded. It belongs to one event loop; `open` has those tenants that have
    something open.
    """

    def __init__(self, what: str) -> None:
        """`what` names the kind, as in "uploads"."""
        self._what = what
        self.open = Counter[str]()

    @contextmanager
    def slot(self, tenant: str) -> Iterator[None]:
        """One more of the tenant for the length of the block; TenantQueueFull at `MAX_OPEN`."""
        if self.open[tenant] >= MAX_OPEN:
            raise TenantQueueFull(
                f"{MAX_OPEN} {self._what} of this tenant are open; try again later"
            )
        self.open[tenant] += 1
        try:
            yield
        finally:
            self.open[tenant] -= 1
            if not self.open[tenant]:
                del self.open[tenant]
