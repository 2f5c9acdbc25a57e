"""Threads for work that blocks: a bounded pool for each thing that may be slow or frozen.

What waits for one of them keeps no thread of the others, and no tenant takes all threads of a pool.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from app.errors import Overloaded, TenantQueueFull

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MAX_WAITING = 2048
_MAX_WAITING_OF_TENANT = 512
_PATIENCE_S = 30.0


class WorkerPool:
    """Threads that tenants share in turns; it belongs to one event loop.

    `threads` pieces of work run at a time, and `per_tenant` of one tenant; further ones wait,
    for `patience_s` at most.
    """

    def __init__(
        self, name: str, threads: int, *, per_tenant: int, patience_s: float = _PATIENCE_S
    ) -> None:
        self._name, self._threads, self._per_tenant = name, threads, per_tenant
        self._patience_s = patience_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._running = Counter[str]()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(
        self,
        tenant: str,
        work: Callable[Parameters, Result],
        /,
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """What `work` returns, or raises, in a thread; context variables go with it.

        TenantQueueFull or Overloaded if too many wait, or for too long. A caller that is cancelled
        leaves at once; work that runs keeps its thread to its end.
        """
        return await asyncio.shield(await self._start(tenant, partial(work, *arguments, **named)))

    async def finish(
        self,
        tenant: str,
        work: Callable[Parameters, Result],
        /,
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """As `run`, for work that changes something: once it runs, its caller hears how it ends.

        A cancellation that comes then is too late: it is not passed on.
        """
        running = await self._start(tenant, partial(work, *arguments, **named))
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.cancelled():
                    raise

    def debug_state(self) -> dict[str, dict[str, int]]:
        """Pieces of work that run and that wait, by tenant."""
        waiting = {tenant: len(queue) for tenant, queue in self._waiting.items()}
        return {"running": dict(self._running), "waiting": waiting}

    async def close(self) -> None:
        """Waits for what runs, and ends the threads."""
        await asyncio.to_thread(self._executor.shutdown)

    async def _start(self, tenant: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
        if self._is_full(tenant):
            await self._wait(tenant)
        else:
            self._running[tenant] += 1
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        try:
            running = loop.run_in_executor(self._executor, context.run, work)
        except BaseException:  # it has been closed
            self._end(tenant)
            raise
        running.add_done_callback(lambda done: self._end(tenant, done))
        return running

    def _is_full(self, tenant: str) -> bool:
        busy = self._running.total() >= self._threads
        return busy or self._running[tenant] >= self._per_tenant

    async def _wait(self, tenant: str) -> None:
        """Until this caller is handed a thread."""
        queue = self._waiting.get(tenant, ())
        if len(queue) >= _MAX_WAITING_OF_TENANT:
            raise TenantQueueFull(
                f"too many requests of this tenant wait for '{self._name}' threads"
            )
        if sum(map(len, self._waiting.values())) >= _MAX_WAITING:
            raise Overloaded(f"too many requests wait for '{self._name}' threads")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            async with asyncio.timeout(self._patience_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._end(tenant)  # it was handed a thread and has no use for it
            else:
                self._leave(tenant, turn)
            if isinstance(error, TimeoutError):
                raise Overloaded(f"all '{self._name}' threads are busy; try again later") from error
            raise

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[tenant]

    def _end(self, tenant: str, done: asyncio.Future[Result] | None = None) -> None:
        """A thread is free: it goes to the tenant that has waited longest for one, if any may."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        if done is not None and not done.cancelled():
            done.exception()  # seen, though its caller may have left
        for other in list(self._waiting):
            if not self._is_full(other) and self._hand_on(other):
                return

    def _hand_on(self, tenant: str) -> bool:
        """Gives the tenant a thread; False if all who waited were cancelled just now."""
        queue = self._waiting.pop(tenant)
        while queue:
            turn = queue.popleft()
            if not turn.done():
                if queue:
                    self._waiting[tenant] = queue  # behind the others
                self._running[tenant] += 1
                turn.set_result(None)
                return True
        return False


class Workers:
    """The pools of one server, one for each thing that may be slow."""

    def __init__(self) -> None:
        self.keys = WorkerPool("keys", 4, per_tenant=2)
        """Callers whose key is not known yet; by their address instead of a tenant."""
        self.catalog = WorkerPool("catalog", 8, per_tenant=4)
        """What reads the catalog."""
        self.writes = WorkerPool("writes", 6, per_tenant=3)
        """What changes the catalog, and what is written to the audit log."""
        self.store = WorkerPool("store", 8, per_tenant=3)
        """What reads or writes the object store."""
        self.files = WorkerPool("files", 6, per_tenant=3)
        """What reads or writes local files in transit."""
        self.text = WorkerPool("text", 4, per_tenant=2)
        """What encodes or decodes text."""

    async def close(self) -> None:
        """Waits for what runs, and ends all threads."""
        pools = (self.keys, self.catalog, self.writes, self.store, self.files, self.text)
        await asyncio.gather(*(pool.close() for pool in pools))
