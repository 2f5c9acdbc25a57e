"""How tenants share what runs beside the engine: turns for computation, caps on what is open.

Computation runs one piece at a time, in a thread that ends with it: the engine keeps the machine's
other cores, and memory is that of one piece. Pieces are short, and tenants take turns, so that no
tenant waits longer because another asks for much.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from app.errors import DeadlineExceeded, Overloaded, TenantQueueFull
from app.model.threads import run_in_fresh_thread

Result = TypeVar("Result")

MAX_OPEN = 16
"""Of one kind, by one tenant."""
MAX_WAITING = 128
MAX_WAITING_OF_TENANT = 16


class SideQueue:
    """Gives turns; one tenant's in the order of coming. It belongs to one event loop."""

    def __init__(self) -> None:
        self._is_busy = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        """Pieces that wait for their turn."""
        return sum(map(len, self._queues.values()))

    async def run(
        self, tenant: str, deadline: float, work: Callable[..., Result], *arguments: Any
    ) -> Result:
        """`work(*arguments)` when its turn comes; `deadline` is on the clock of `time.monotonic`.

        Raises TenantQueueFull if too many of the tenant wait, Overloaded if too many of all do,
        DeadlineExceeded if the turn comes too late. A caller that is cancelled leaves at once; a
        piece that runs keeps its turn to its end.
        """
        if self._is_busy:
            await self._wait(tenant, deadline)
        self._is_busy = True
        running = asyncio.ensure_future(asyncio.to_thread(run_in_fresh_thread, work, *arguments))
        running.add_done_callback(self._end)
        return await asyncio.shield(running)

    async def _wait(self, tenant: str, deadline: float) -> None:
        """Return when the turn is handed over."""
        if len(self._queues.get(tenant, ())) >= MAX_WAITING_OF_TENANT:
            raise TenantQueueFull("too many evaluations of this tenant wait for their turn")
        if self.num_waiting >= MAX_WAITING:
            raise Overloaded("too many evaluations wait for their turn")
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._hand_on()
            else:
                self._leave(tenant, turn)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the request's time is over") from error
            raise

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        """Give up waiting."""
        queue = self._queues.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[tenant]

    def _hand_on(self) -> None:
        """The turn goes to the tenant that has waited longest for one, or is free."""
        while self._queues:
            tenant, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # behind the others
            if not turn.done():  # a caller that was cancelled may still be in the queue
                turn.set_result(None)
                return
        self._is_busy = False

    def _end(self, done: asyncio.Future[Any]) -> None:
        self._hand_on()
        if not done.cancelled():
            done.exception()  # retrieved, since its caller may have left


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
